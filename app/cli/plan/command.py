"""ext-classify plan: recommend batch size and instances, and estimate time and cost, from a measured rate."""

import functools
import json
import statistics
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.cli.command_line import Add, add_json, end_well_when_stopped, parse_integer, parse_number
from app.cli.plan import sizing
from app.cli.plan.measuring import measure
from app.cli.plan.sizing import Measured, Plan, Provider, Request
from app.cli.service_process import (
    add_model,
    default_images,
    describe_model,
    named_or_own_service,
    refuse_model_of_another_service,
)
from app.errors import UsageError
from app.images.files import find_images
from app.settings import Settings
from model.defaults import SAMPLES, usable_cores

# More images do not change the measurement, and a folder may hold a million.
MAX_IMAGES = 64
# Assumed size of an outcome with evidence if not measured; those of the samples have up to 6,200 bytes.
EVIDENCE_BYTES = 8_000


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
    loaded = sizing.load_prices(prices, request.provider)
    if credit_price is not None:
        loaded = loaded.model_copy(update={"credit_usd": credit_price})
    measured = _measured(url, model, image_folder, rate, cores or usable_cores(), evidence=request.evidence)
    if image_bytes is not None:
        measured = replace(measured, image_bytes=image_bytes)
    made = sizing.make_plan(measured, request, loaded)
    cheapest = sizing.find_cheapest(measured, request, loaded)
    if as_json:
        parts = {"measured": measured, "request": request, "plan": made, "cheapest": cheapest}
        print(json.dumps(parts, default=asdict, indent=2))
        return
    provider = loaded.providers[request.provider]
    print("\n".join(_lines(request, provider, made, cheapest)))
    network = f", measured with {measured.network}" if measured.network else ""
    print(f"\nOne instance: {measured.images_per_second:,.0f} images/s with {measured.cores} cores{network}")
    print(f"\nCost in USD, prices of {loaded.date}, {loaded.credit_usd:.2f} per credit")
    for name, usd in made.costs_usd.items():
        print(f"  {name.replace('_', ' '):<22}{usd:,.2f}")
    print()
    for note in _notes(request, provider, made, prices):
        print(textwrap.fill(note, 110, initial_indent="- ", subsequent_indent="  "))


def add_commands(add: Add) -> None:
    summary = "recommend batch size and instances for a number of images, and estimate the cost"
    command = add("plan", plan, summary)
    flag = command.add_argument
    count = functools.partial(flag, metavar="N", type=functools.partial(parse_integer, least=1, most=10**12))
    number = functools.partial(flag, metavar="N", type=functools.partial(parse_number, least=1e-6))
    price = functools.partial(flag, metavar="N", type=parse_number)
    count("--images", default=Request.images, help="(default 1,000,000)")
    number("--deadline-minutes", default=Request.deadline_minutes, help="(default 60)")
    flag("--provider", choices=sizing.PROVIDERS, default=Request.provider, help="(default aws)")
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
    flag("--warehouse", choices=sizing.WAREHOUSES, default=Request.warehouse, help="(default XS)")
    price(
        "--credit-price", metavar="USD", help="price of a credit in your contract (default: as in --prices)"
    )
    prices = "TOML file of prices (default: list prices, as examples)"
    flag("--prices", type=Path, default=sizing.PRICES, metavar="FILE", help=prices)
    add_json(command)


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


def _lines(request: Request, provider: Provider, made: Plan, cheapest: Plan) -> Iterator[str]:
    row = {"stage": "a stage file", "url": "a URL", "base64": "an image in base64"}[request.source]
    yield f"{request.images:,} images, each row {row}, by {provider.name}\n"
    yield from _summary(request, made)
    if cheapest.cost_usd < made.cost_usd:
        yield "\nIt costs less to finish sooner, because the warehouse runs for less time:"
        yield from _summary(request, cheapest)


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


def _notes(request: Request, provider: Provider, made: Plan, prices: Path) -> Iterator[str]:
    if made.seconds > request.deadline_minutes * 60 * 1.001:  # more than rounding
        yield (
            "The run misses the deadline: Snowflake sends too few concurrent batches to keep all instances "
            "busy. Split the rows over several queries or, from ten million rows, use a larger warehouse."
        )
    yield f"Not included in the cost: {'; '.join(provider.not_included)}."
    yield f"The prices are in {prices}; infra/docs/capacity.md explains each figure and what is not measured."
