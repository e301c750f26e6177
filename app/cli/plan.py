"""ext-classify plan: batch size, instances, time and cost of a number of images, from a measured rate.

infra/docs/capacity.md has the formulas and the reasons for the constants.
"""

import base64
import functools
import json
import math
import statistics
import textwrap
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from app.cli.command_line import Add, add_json, end_well_when_stopped, integer, parse_number
from app.cli.service_process import (
    add_model,
    default_images,
    describe_model,
    named_or_own_service,
    refuse_model_of_another_service,
)
from app.client import Client, ClientError, Image
from app.errors import CommandError, UsageError
from app.images.allowlist import MAX_URL_CHARACTERS
from app.images.files import find_images
from app.settings import Settings
from model.defaults import SAMPLES, usable_cores

PRICES = Path(__file__).with_name("prices.toml")
PROVIDERS = ("aws", "azure", "google", "spcs", "udf")
WAREHOUSES = ("XS", "S", "M", "L", "XL", "2XL", "3XL", "4XL", "5XL", "6XL")
UTILISATION, TIME_SHARE = 0.8, 0.5
CPUS_PER_NODE, MAX_CALLS_PER_NODE, BATCHES_PER_CALL = 8, 64, 4
RESPONSE_BYTES, ROW_BYTES = 10_000_000, 32
LEAST_BILLED_SECONDS = SUSPEND_SECONDS = 60
GB_PER_VCPU = 2
# Assumed size of an outcome with evidence if not measured; those of the samples have up to 6,200 bytes.
EVIDENCE_BYTES = 8_000
# More images do not change the measurement, and a folder may hold a million.
MAX_IMAGES = 64
CONCURRENCY, ROUND_SECONDS = (1, 2, 4, 8, 16), 1.5
# Limits of one measured batch, so that slow models and large photographs also take seconds only.
MAX_ROWS, MAX_BATCH_SECONDS, MAX_BODY_BYTES = 64, 0.5, 8_000_000
# The minimum gain of a higher concurrency; less is noise.
GAIN = 1.05


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
    for halvings in range(1, 6):
        shorter = replace(request, deadline_minutes=request.deadline_minutes / 2**halvings)
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


def measure(client: Client, images: Sequence[bytes], cores: int, *, evidence: bool = False) -> Measured:
    """Measure the client's service, which has `cores` cores, in a closed loop of batches, for some seconds.

    On the service's own machine, generating the load lowers the rate. Raises ClientError, also for invalid
    images.
    """
    started = time.perf_counter()
    outcomes = list(client.classify_all(images, evidence=evidence))
    seconds_of_one = (time.perf_counter() - started) / len(images)
    for error in filter(None, (outcome["error"] for outcome in outcomes)):  # it would take less time
        raise ClientError(f"Images to measure with must be classified. Received: {error['code']}.")
    batch, rates = _batch_of(images, seconds_of_one), [0.0]
    for concurrency in CONCURRENCY:
        rates.append(_rate(client, batch, concurrency, evidence=evidence))
        if rates[-1] <= rates[-2] * GAIN:
            break
    best = max(rates)
    return Measured(
        images_per_second=best,
        cores=cores,
        image_bytes=round(statistics.mean(map(len, images))),
        outcome_bytes=max(len(json.dumps(outcome)) for outcome in outcomes),
        busy_batches=next(n for n, rate in zip(CONCURRENCY, rates[1:], strict=False) if rate * GAIN >= best),
    )


def _batch_of(images: Sequence[bytes], seconds_of_one: float) -> list[Image]:
    """The largest power of two of rows within the limits of time and bytes."""
    sources = [base64.b64encode(image).decode() for image in images]
    in_body = MAX_BODY_BYTES // (max(map(len, sources)) + 1)
    most = max(1, min(MAX_ROWS, int(MAX_BATCH_SECONDS / seconds_of_one), in_body))
    return list(islice(cycle(sources), 2 ** (most.bit_length() - 1)))


def _rate(client: Client, batch: Sequence[Image], concurrency: int, *, evidence: bool) -> float:
    """Images per second."""
    started = time.perf_counter()

    def classify_for_a_round(_: int) -> int:
        images = 0
        while not images or time.perf_counter() < started + ROUND_SECONDS:
            images += len(client.classify_batch(batch, evidence=evidence))
        return images

    with ThreadPoolExecutor(concurrency) as threads:
        images = sum(threads.map(classify_for_a_round, range(concurrency)))
    return images / (time.perf_counter() - started)


def plan(
    url: str | None,
    model: Path | None,
    image_folder: Path | None,
    rate: float | None,
    image_bytes: int | None,
    cores: int | None,
    prices: Path,
    credit_price: float | None,
    as_json: bool,
    max_concurrent_fetches: int | None,
    **options: Any,
) -> None:
    """Measure unless `rate` is given, plan, print. Raises PlanError, or ClientError if measuring fails."""
    end_well_when_stopped()
    settings = Settings()
    fetches = max_concurrent_fetches or settings.max_concurrent_fetches
    request = Request(**options, max_rows=settings.max_rows, max_concurrent_fetches=fetches)
    loaded = load_prices(prices, request.provider)
    if credit_price is not None:
        loaded = loaded.model_copy(update={"credit_usd": credit_price})
    measured = _measured(url, model, image_folder, rate, cores or usable_cores(), evidence=request.evidence)
    if image_bytes is not None:
        measured = replace(measured, image_bytes=image_bytes)
    made, cheapest = make_plan(measured, request, loaded), find_cheapest(measured, request, loaded)
    if as_json:
        parts = {"measured": measured, "request": request, "plan": made, "cheapest": cheapest}
        print(json.dumps(parts, default=asdict, indent=2))
    else:
        print("\n".join(_report(measured, request, loaded, made, cheapest, prices)))


def _measured(
    url: str | None,
    model: Path | None,
    folder: Path | None,
    rate: float | None,
    cores: int,
    *,
    evidence: bool,
) -> Measured:
    if rate is not None and model is not None:
        raise UsageError(
            f"`--rate` skips the measurement, so it excludes `--model`. Received: --model {model}"
        )
    refuse_model_of_another_service(model, url)
    if folder is None:
        starts_service = url is None and rate is None
        folder = default_images(model, "--image-folder") if starts_service else SAMPLES
    images = [path.read_bytes() for path in find_images([folder])[:MAX_IMAGES]]
    if rate is None:
        with named_or_own_service(url, None, patience_seconds=0, model=model) as client:
            measured = measure(client, images, cores, evidence=evidence)
            return replace(measured, network=describe_model(client))
    mean_bytes = round(statistics.mean(map(len, images)))
    return Measured(rate, cores, mean_bytes, EVIDENCE_BYTES if evidence else Measured.outcome_bytes)


def _report(
    measured: Measured, request: Request, prices: Prices, made: Plan, cheapest: Plan, prices_path: Path
) -> Iterator[str]:
    provider = prices.providers[request.provider]
    row = {"stage": "a stage file", "url": "a URL", "base64": "an image in base64"}[request.source]
    yield f"{request.images:,} images, each row {row}, by {provider.name}\n"
    yield from _summary(request, made)
    if cheapest.cost_usd < made.cost_usd:
        yield "\nIt costs less to finish sooner, because the warehouse runs for less time:"
        yield from _summary(request, cheapest)
    network = f", measured with {measured.network}" if measured.network else ""
    yield f"\nOne instance: {measured.images_per_second:,.0f} images/s with {measured.cores} cores{network}"
    yield f"\nCost in USD, prices of {prices.date}, {prices.credit_usd:.2f} per credit"
    yield from (f"  {name.replace('_', ' '):<22}{usd:,.2f}" for name, usd in made.costs_usd.items())
    yield ""
    if made.seconds > request.deadline_minutes * 60 * 1.001:  # more than rounding
        yield _note(
            "The run misses the deadline: Snowflake sends too few concurrent batches to keep all instances "
            "busy. Split the rows over several queries or, from ten million rows, use a larger warehouse."
        )
    yield _note(f"Not included in the cost: {'; '.join(provider.not_included)}.")
    why = "infra/docs/capacity.md explains each figure and what is not measured."
    yield _note(f"The prices are in {prices_path}; {why}")


def _note(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="- ", subsequent_indent="  ")


def _summary(request: Request, made: Plan) -> Iterator[str]:
    if request.in_warehouse:
        yield f"  nodes of the warehouse  {made.instances}"
        yield f"  max_batch_size          {made.max_batch_rows}, if the UDF is vectorized"
    else:
        yield f"  instances               {made.instances}"
        yield f"  MAX_BATCH_ROWS          {made.max_batch_rows}"
        busy, most = made.busy_batches, made.max_batches
        yield f"  concurrent batches      {busy} keep an instance busy; at most {most} finish in time"
    yield f"  minutes                 {made.seconds / 60:,.2f}"
    yield f"  cost                    {made.cost_usd:,.2f} USD"


def add_commands(add: Add) -> None:
    summary = "recommend batch size and instances for a number of images, and estimate the cost"
    command = add("plan", plan, summary)
    flag = command.add_argument
    count = functools.partial(flag, metavar="N", type=integer(1, 10**12))
    number = functools.partial(flag, metavar="N", type=functools.partial(parse_number, least=1e-6))
    price = functools.partial(flag, metavar="N", type=parse_number)
    count("--images", default=Request.images, help="(default 1,000,000)")
    number("--deadline-minutes", default=Request.deadline_minutes, help="(default 60)")
    flag("--provider", choices=PROVIDERS, default=Request.provider, help="(default aws)")
    row = "what rows hold: stage files (the default), whose URLs the service signs, other URLs, or base64"
    flag("--source", choices=("stage", "url", "base64"), default=Request.source, help=row)
    fetch = "time to fetch one image from its URL; it is not measured (default 100)"
    price("--fetch-milliseconds", default=Request.fetch_milliseconds, help=fetch)
    fetches = "the service's MAX_CONCURRENT_FETCHES (default: this environment's setting, else 64)"
    count("--concurrent-fetches", dest="max_concurrent_fetches", help=fetches)
    flag("--evidence", action="store_true", help="plan for rows with the `evidence` option")
    flag("--url", help="the service to measure (default: start one)")
    add_model(command)
    folder = "images to measure with (default: the network's samples)"
    flag("--image-folder", type=Path, metavar="DIR", help=folder)
    number("--rate", help="images/s of one instance; skips the measurement")
    count("--cores", help="cores of one instance (default: this machine's)")
    count("--image-bytes", help="bytes per image (default: the mean of the folder's images)")
    flag("--warehouse", choices=WAREHOUSES, default=Request.warehouse, help="(default XS)")
    credit = "price of a credit in your contract (default: as in --prices)"
    price("--credit-price", metavar="USD", help=credit)
    toml = "TOML file of prices (default: list prices, as examples)"
    flag("--prices", type=Path, default=PRICES, metavar="FILE", help=toml)
    add_json(command)
