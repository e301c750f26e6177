"""Limits and list prices of each provider, with their sources.

Prices change and contracts differ: the plan prints every price with its source, for comparison with a bill.
"""

from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Price:
    amount: float
    unit: str
    source: str


@dataclass(frozen=True)
class Pool:
    """A compute pool of Snowpark Container Services."""

    family: str
    vcpus: int
    credits: Price


@dataclass(frozen=True)
class Terms:
    """Limits and prices of a platform that runs the model, and of its gateway."""

    name: str
    call_seconds: float
    """Maximum duration of one batch."""
    call_source: str
    request_bytes: int | None = None
    """Maximum body size of the gateway, if documented."""
    request_source: str = ""
    vcpu_hour: Price | None = None
    gb_hour: Price | None = None
    million_requests: Price | None = None
    gb_out: Price | None = None
    pool: Pool | None = None
    left_out: tuple[str, ...] = ()


# Snowflake documentation, "Introduction to external functions": the maximum response size of a batch.
RESPONSE_BYTES = 10 * MEGABYTE

# Snowflake documentation, "Overview of warehouses", first-generation standard warehouses: credits an hour.
# A warehouse has one node per credit an hour (that page in 2020: "servers / cluster").
WAREHOUSE_CREDITS_PER_HOUR = {
    "XS": 1, "S": 2, "M": 4, "L": 8, "XL": 16, "2XL": 32, "3XL": 64, "4XL": 128, "5XL": 256, "6XL": 512,
}  # fmt: skip
# The same page: a warehouse is billed by the second, for at least this long each time it starts. AWS Fargate
# has the same minimum; the other platforms' minimum is lower, which matters only to runs of seconds.
LEAST_BILLED_SECONDS = 60

# Snowflake Service Consumption Table, effective 12 May 2026, table 2(a): Enterprise, on demand, AWS US East.
# Standard is 2.00 there, and Enterprise 3.90 in Frankfurt. Only an example: prices depend on the contract.
EXAMPLE_CREDIT_PRICE_USD = 3.00

# Snowflake does not document how many batches it sends concurrently. A third party saw 4 to 9 up to 100,000
# rows, about 16 at a million for any warehouse, 64 on an XS from ten million, over 900 on an XL at a hundred
# million (SkyflowFoundry/SnowflakePerformance on GitHub, February 2026).
CALLS_BELOW_MILLION = 9
CALLS_FROM_MILLION = 16
CALLS_SOURCE = "observed by a third party, Skyflow"
# Another third party states the bound: 8 CPUs per node, 8 calls each (Protegrity, Cloud Protect 4.0, AWS,
# Snowflake).
CPUS_PER_NODE = 8
MOST_CALLS_PER_NODE = 64
BOUND_SOURCE = "stated by a third party, Protegrity"

# Memory per core: twenty times what the service uses, and the minimum that Fargate sells with a vCPU.
GB_PER_VCPU = 2

_FARGATE = "AWS Fargate, Linux/x86, US East, March 2026"
_CONTAINER_APPS = "Azure Container Apps, Consumption plan, Central US (Microsoft Tech Community, 2025)"
_CLOUD_RUN = "Google Cloud Run, request-based billing, tier 1 regions"

# Snowflake documentation, "AWS instance families": 3 vCPUs and 13 GiB; recommended for new workloads.
_GEN_X64_G2_4 = Pool(
    family="GEN_X64_G2_4",
    vcpus=3,
    credits=Price(
        0.184, "credits per node-hour", "Snowflake Service Consumption Table, 12 May 2026, table 1(g), AWS"
    ),
)

PROVIDERS = {
    "aws": Terms(
        name="AWS API Gateway, Fargate",
        call_seconds=29,
        call_source="API Gateway's integration time-out, REST API; a quota that can be raised",
        request_bytes=10 * MEGABYTE,
        request_source="API Gateway's payload quota",
        vcpu_hour=Price(0.04048, "USD per vCPU-hour", _FARGATE),
        gb_hour=Price(0.004445, "USD per GB-hour", _FARGATE),
        million_requests=Price(3.50, "USD per million", "API Gateway REST API, first tier, AWS whitepaper"),
        gb_out=Price(0.09, "USD per GB", "AWS data transfer to the internet, US East, May 2025"),
        left_out=("load balancer and VPC link", "logs", "fetches from the image store"),
    ),
    "azure": Terms(
        name="Azure API Management, Container Apps",
        call_seconds=240,
        call_source="API Management's forward-request policy: longer timeouts may not be honoured",
        vcpu_hour=Price(0.000024 * 3600, "USD per vCPU-hour", _CONTAINER_APPS),
        gb_hour=Price(0.000003 * 3600, "USD per GB-hour", _CONTAINER_APPS),
        left_out=(
            "API Management: sources disagree, and its tiers differ in kind",
            "API Management's payload limit: none found",
            "data transfer",
            "logs",
            "fetches from the image store",
        ),
    ),
    "google": Terms(
        name="Google API Gateway, Cloud Run",
        call_seconds=15,
        call_source="API Gateway's default, third party; x-google-backend.deadline raises it",
        request_bytes=32 * MEGABYTE,
        request_source="API Gateway's payload limit",
        vcpu_hour=Price(0.000024 * 3600, "USD per vCPU-hour", _CLOUD_RUN),
        gb_hour=Price(0.0000025 * 3600, "USD per GB-hour", _CLOUD_RUN),
        million_requests=Price(3.00, "USD per million", "API Gateway after 2 million free, by c3x.dev"),
        left_out=("data transfer", "logs", "fetches from the image store"),
    ),
    "spcs": Terms(
        name="Snowpark Container Services",
        call_seconds=30,
        call_source="a longer call is retried, Snowflake documentation, SPCS troubleshooting",
        pool=_GEN_X64_G2_4,
        left_out=("storage of the container image", "data transfer", "nodes that idle before they suspend"),
    ),
    "udf": Terms(
        name="a Python UDF inside the warehouse",
        call_seconds=180,
        call_source="Snowflake documentation, vectorized Python UDFs",
        request_bytes=64 * 1024 * 1024,
        request_source="assumed memory limit of a process; the real one is not published",
        left_out=("package installation in the first query",),
    ),
}
