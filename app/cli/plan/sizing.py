"""Batch size, concurrency, instances, time and cost measured; infra/docs/capacity.md has the formulas."""

import math
import tomllib
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from app.errors import CommandError
from app.images.allowlist import MAX_URL_CHARACTERS

PRICES = Path(__file__).with_name("prices.toml")
PROVIDERS = ("aws", "azure", "google", "spcs", "udf")
WAREHOUSES = ("XS", "S", "M", "L", "XL", "2XL", "3XL", "4XL", "5XL", "6XL")
# The reasons for these numbers are in infra/docs/capacity.md.
UTILISATION, TIME_SHARE = 0.8, 0.5
CPUS_PER_NODE, MAX_CALLS_PER_NODE, BATCHES_PER_CALL = 8, 64, 4
RESPONSE_BYTES, ROW_BYTES = 10_000_000, 32
LEAST_BILLED_SECONDS = SUSPEND_SECONDS = 60
GB_PER_VCPU = 2
# Shorter deadlines that find_cheapest tries, as shares of the requested one.
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)


class PlanError(CommandError):
    """No plan is possible for this input."""


class Provider(BaseModel, extra="forbid"):
    """Limits and prices of a platform that runs the model, and of its gateway."""

    name: str
    call_seconds: PositiveFloat
    request_bytes: PositiveInt | None = None
    vcpu_hour_usd: NonNegativeFloat = 0
    gb_hour_usd: NonNegativeFloat = 0
    million_requests_usd: NonNegativeFloat = 0
    gb_out_usd: NonNegativeFloat = 0
    pool_vcpus: PositiveInt = 1
    pool_credits_per_hour: NonNegativeFloat = 0
    pool_idle_seconds: NonNegativeFloat = 0
    not_included: tuple[str, ...] = ()


class Prices(BaseModel, extra="forbid"):
    date: date
    credit_usd: NonNegativeFloat
    providers: dict[str, Provider]


@dataclass(frozen=True)
class Measured:
    """What one instance does with images that need no fetching."""

    images_per_second: float
    cores: int
    image_bytes: int
    outcome_bytes: int = 500
    busy_batches: int = 2
    """Concurrent batches that keep its cores busy."""
    network: str = ""
    """Name and version of the network that was measured; empty if the rate was given."""


@dataclass(frozen=True)
class Request:
    images: int = 1_000_000
    deadline_minutes: float = 60.0
    provider: str = "aws"
    source: Literal["stage", "url", "base64"] = "stage"
    """Stage files, whose URLs the service signs, URLs that are signed or public, or the images themselves."""
    fetch_milliseconds: float = 100.0
    warehouse: str = "XS"
    max_concurrent_fetches: int = 64
    evidence: bool = False
    max_rows: int = 4096

    @property
    def in_warehouse(self) -> bool:
        """Whether a UDF classifies inside the warehouse, without a gateway."""
        return self.provider == "udf"

    @property
    def fetch_seconds(self) -> float:
        return 0.0 if self.source == "base64" else self.fetch_milliseconds / 1000

    @property
    def warehouse_nodes(self) -> int:
        return int(2 ** WAREHOUSES.index(self.warehouse))

    @property
    def concurrent_calls(self) -> int:
        """Concurrent calls that Snowflake was observed to make for so many rows."""
        if self.images < 1_000_000:
            return 9
        return 16 if self.images < 10_000_000 else MAX_CALLS_PER_NODE * self.warehouse_nodes


@dataclass(frozen=True)
class Plan:
    """`instances` of the service, or nodes of the warehouse. Concurrent batches are those of one instance."""

    instances: int
    max_batch_rows: int
    busy_batches: int
    max_batches: int
    seconds: float
    limits: dict[str, int]
    """Rows of a batch by each limit."""
    cost_usd: float = 0.0
    costs_usd: dict[str, float] = field(default_factory=dict)


def load_prices(path: Path, provider: str) -> Prices:
    """Raises PlanError unless the file has the form of prices.toml and a table for the provider."""
    rule = f"Prices must have the form of {PRICES}."
    try:
        prices = Prices.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise PlanError(f"{rule} Received: {path}: {'; '.join(faults)}") from None
    except ValueError as error:
        raise PlanError(f"{rule} Received: {path}: {error}") from None
    if provider not in prices.providers:
        raise PlanError(f"Prices must have a table providers.{provider}. Received: {path}")
    return prices


def make_plan(measured: Measured, request: Request, prices: Prices) -> Plan:
    """Raises PlanError if not even one row fits a batch, or no warehouse is large enough."""
    provider = prices.providers[request.provider]
    rate = _instance_rate(measured, request)
    instances = _instances(request, rate)
    rows_in_time = (TIME_SHARE * provider.call_seconds - request.fetch_seconds) * rate
    limits = _limits(measured, request, provider, rows_in_time, instances)
    rows = _largest_batch(limits, measured, provider)
    seconds_alone = request.fetch_seconds + rows / rate
    sent = min(request.concurrent_calls, math.ceil(request.images / rows)) * rows / seconds_alone
    planned = UTILISATION * rate * instances
    plan = Plan(
        instances=instances,
        max_batch_rows=rows,
        busy_batches=max(_busy_batches(measured, request), math.ceil(rate / rows * seconds_alone)),
        max_batches=max(1, math.floor(rows_in_time / rows)),
        seconds=request.images / (planned if request.in_warehouse else min(planned, sent)),
        limits=limits,
    )
    costs = {name: usd for name, usd in _costs(measured, request, prices, plan).items() if usd}
    return replace(plan, costs_usd=costs, cost_usd=sum(costs.values()))


def find_cheapest(measured: Measured, request: Request, prices: Prices) -> Plan:
    """The cheapest plan for the deadline or a shorter one, if Snowflake's calls keep its instances busy."""
    plans = [make_plan(measured, request, prices)]
    for share in SHARES:
        shorter = replace(request, deadline_minutes=request.deadline_minutes * share)
        try:
            plan = make_plan(measured, shorter, prices)
        except PlanError:  # no warehouse is large enough
            break
        if request.in_warehouse or plan.instances * plan.busy_batches <= request.concurrent_calls:
            plans.append(plan)
    return min(plans, key=lambda plan: plan.cost_usd)


def _instance_rate(measured: Measured, request: Request) -> float:
    """Images per second of an instance, or of a node, where each CPU fetches and classifies in turn."""
    rate, fetch_seconds = measured.images_per_second, request.fetch_seconds
    if request.in_warehouse:
        return CPUS_PER_NODE / (measured.cores / rate + fetch_seconds)
    return min(rate, request.max_concurrent_fetches / fetch_seconds) if fetch_seconds else rate


def _instances(request: Request, rate: float) -> int:
    needed = math.ceil(request.images / (request.deadline_minutes * 60) / (UTILISATION * rate))
    if not request.in_warehouse:
        return needed
    largest = 2 ** (len(WAREHOUSES) - 1)
    if needed > largest:
        rule = f"A warehouse has at most {largest} nodes; allow more minutes."
        raise PlanError(f"{rule} Received: {needed:,} needed.")
    return int(2 ** (needed - 1).bit_length())


def _limits(
    measured: Measured, request: Request, provider: Provider, rows_in_time: float, instances: int
) -> dict[str, int]:
    busy = _busy_batches(measured, request)
    calls = math.ceil(MAX_CALLS_PER_NODE * request.warehouse_nodes / instances)
    limits = {
        "time": math.floor(rows_in_time / (busy if request.in_warehouse else calls)),
        "even_load": max(1, request.images // (BATCHES_PER_CALL * busy * instances)),
    }
    if not request.in_warehouse:
        limits["max_rows"] = request.max_rows
        limits["response_size"] = RESPONSE_BYTES // (measured.outcome_bytes + ROW_BYTES)
    if provider.request_bytes is not None:
        limits["request_size"] = provider.request_bytes // _row_bytes(measured, request)
    return limits


def _busy_batches(measured: Measured, request: Request) -> int:
    """Concurrent batches that keep the cores of an instance, or of a node, busy."""
    return CPUS_PER_NODE if request.in_warehouse else measured.busy_batches


def _row_bytes(measured: Measured, request: Request) -> int:
    """Bytes of the largest row, which holds the image itself if the warehouse classifies it."""
    if request.in_warehouse:
        return measured.image_bytes + ROW_BYTES
    base64_bytes = 4 * math.ceil(measured.image_bytes / 3)
    return (base64_bytes if request.source == "base64" else MAX_URL_CHARACTERS) + ROW_BYTES


def _largest_batch(limits: dict[str, int], measured: Measured, provider: Provider) -> int:
    """The largest power of two of rows within all limits. Raises PlanError if there is none."""
    name = min(limits, key=lambda name: limits[name])
    if limits[name] < 1:
        raise PlanError(
            f"A batch must have room for one image. Received, for {provider.name}: more than the {name} of "
            f"{provider.call_seconds:g} s, {provider.request_bytes or math.inf:,} bytes sent and "
            f"{RESPONSE_BYTES:,} bytes received allows, with images of {measured.image_bytes:,} bytes, "
            f"outcomes of {measured.outcome_bytes:,} bytes and {measured.images_per_second:g} images/s."
        )
    return int(2 ** (limits[name].bit_length() - 1))


def _costs(measured: Measured, request: Request, prices: Prices, plan: Plan) -> dict[str, float]:
    """USD of the query, for one vCPU per measured core."""
    provider, vcpus = prices.providers[request.provider], plan.instances * measured.cores
    batches = math.ceil(request.images / plan.max_batch_rows)
    hours = max(plan.seconds, LEAST_BILLED_SECONDS) / 3600
    pool_usd = math.ceil(vcpus / provider.pool_vcpus) * provider.pool_credits_per_hour * prices.credit_usd
    signs = request.source == "stage" and not request.in_warehouse
    return {
        "vCPUs": vcpus * provider.vcpu_hour_usd * hours,
        "memory": GB_PER_VCPU * vcpus * provider.gb_hour_usd * hours,
        "compute_pool": pool_usd * hours,
        "idle_pool": pool_usd * provider.pool_idle_seconds / 3600,
        "warehouse": (plan.instances if request.in_warehouse else request.warehouse_nodes)
        * (prices.credit_usd * hours),
        # A statement a batch keeps it awake; the smallest size is enough.
        "signing_warehouse": signs * prices.credit_usd * (hours + SUSPEND_SECONDS / 3600),
        "gateway_requests": batches / 1e6 * provider.million_requests_usd,
        "responses_sent_out": request.images * measured.outcome_bytes / 1e9 * provider.gb_out_usd,
    }
