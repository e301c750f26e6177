"""The `ext-classify plan` command: reads flags, prints a table or JSON."""

import functools
import json
import statistics
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.cli.command_line import Add, end_well_when_stopped
from app.cli.plan.figures import Figure, Measured, Request, show
from app.cli.plan.measuring import measure, service_to_measure
from app.cli.plan.plan import Plan, find_cheapest, make_plan
from app.cli.plan.prices import PROVIDERS, WAREHOUSE_CREDITS_PER_HOUR
from app.images.files import find_images
from app.settings import Settings
from model.cores import usable_cores
from model.defaults import SAMPLES

# More images do not change the measurement, and a folder may hold a million.
MOST_IMAGES = 64
# Assumed size of an outcome with evidence if not measured; those of the samples have up to 6,200 bytes.
EVIDENCE_BYTES = 8_000
WIDTH = 110
INDENT = 48


@dataclass(frozen=True)
class Answer:
    measured: Measured
    request: Request
    plan: Plan
    cheapest: Plan


def plan(
    url: str | None,
    image_folder: Path,
    rate: float | None,
    image_bytes: int | None,
    cores: int | None,
    as_json: bool,
    max_concurrent_fetches: int | None,
    **options: Any,
) -> None:
    """Measure (unless `rate` is given), plan, print. Raises PlanError, or ClientError if measuring fails."""
    end_well_when_stopped()
    settings = Settings()
    fetches = max_concurrent_fetches or settings.max_concurrent_fetches
    request = Request(**options, max_rows=settings.max_rows, max_concurrent_fetches=fetches)
    cores = usable_cores() if cores is None else cores
    images = [path.read_bytes() for path in find_images([image_folder])[:MOST_IMAGES]]
    if rate is None:
        measured = _measure(url, images, cores, request)
    else:
        mean_bytes = round(statistics.mean(map(len, images)))
        outcome_bytes = EVIDENCE_BYTES if request.evidence else Measured.outcome_bytes
        measured = Measured(rate, cores, mean_bytes, outcome_bytes, how="given by --rate")
    if image_bytes is not None:
        measured = replace(measured, image_bytes=image_bytes)
    answer = Answer(measured, request, make_plan(measured, request), find_cheapest(measured, request))
    print(_as_json(answer) if as_json else "\n".join(_as_text(answer)))


def add_commands(add: Add) -> None:
    command = add(
        "plan", plan, "recommend batch size and instances for a number of images, and estimate the cost"
    )
    number = functools.partial(command.add_argument, metavar="N")
    command.add_argument(
        "--images", type=int, default=Request.images, metavar="N", help="(default 1,000,000)"
    )
    number("--deadline-minutes", type=float, default=Request.deadline_minutes, help="(default 60)")
    command.add_argument("--provider", choices=PROVIDERS, default=Request.provider, help="(default aws)")
    command.add_argument(
        "--source",
        choices=("url", "base64"),
        default=Request.source,
        help="what rows hold (default url; stage files count as URLs)",
    )
    number(
        "--fetch-milliseconds",
        type=float,
        default=Request.fetch_milliseconds,
        help="time to fetch one image from its URL; it is not measured (default 100)",
    )
    command.add_argument(
        "--concurrent-fetches",
        type=int,
        dest="max_concurrent_fetches",
        metavar="N",
        help="the service's MAX_CONCURRENT_FETCHES (default: this environment's setting, else 64)",
    )
    command.add_argument("--evidence", action="store_true", help="plan for rows with the `evidence` option")
    command.add_argument("--url", help="the service to measure (default: start one)")
    command.add_argument(
        "--image-folder",
        type=Path,
        default=SAMPLES,
        metavar="DIR",
        help="images to measure with (default: the samples)",
    )
    number("--rate", type=float, help="images/s of one instance; skips the measurement")
    number("--cores", type=int, help="cores of one instance (default: this machine's)")
    number("--image-bytes", type=int, help="bytes per image (default: the mean of the folder's images)")
    command.add_argument(
        "--warehouse", choices=WAREHOUSE_CREDITS_PER_HOUR, default=Request.warehouse, help="(default XS)"
    )
    command.add_argument(
        "--credit-price",
        type=float,
        default=Request.credit_price,
        metavar="USD",
        help="price of a credit in your contract (default %(default).2f, an example)",
    )
    command.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def _measure(url: str | None, images: list[bytes], cores: int, request: Request) -> Measured:
    if url is not None:
        return measure(url, images, cores, evidence=request.evidence)
    with service_to_measure() as (own_url, cpu_clock):
        return measure(own_url, images, cores, cpu_clock, evidence=request.evidence)


def _as_json(answer: Answer) -> str:
    return json.dumps(asdict(answer), indent=2)


def _as_text(answer: Answer) -> Iterator[str]:
    request, made = answer.request, answer.plan
    row = "a URL" if request.source == "url" else "an image in base64"
    yield f"{request.images:,} images, each row {row}, by {request.terms.name}"
    yield ""
    yield from _summary(request, made)
    if answer.cheapest.cost_usd < made.cost_usd:
        yield ""
        yield "It costs less to finish sooner, because the warehouse runs for less time:"
        yield from _summary(request, answer.cheapest)
    for heading, figures in (
        ("One instance", _measured_figures(answer)),
        ("Calculated", made.figures),
        ("Cost in USD", made.costs),
    ):
        yield from ("", heading, *_lines(figures))
    yield ""
    for note in made.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")


def _summary(request: Request, made: Plan) -> Iterator[str]:
    if request.in_warehouse:
        yield f"  nodes of the warehouse  {made.instances}"
        yield f"  max_batch_size          {made.max_batch_rows}, if the UDF is vectorized"
    else:
        yield f"  instances               {made.instances}"
        yield f"  MAX_BATCH_ROWS          {made.max_batch_rows}"
        busy, most = made.places.busy, made.places.most
        yield f"  concurrent batches      {busy} keep an instance busy; at most {most} finish in time"
    yield f"  minutes                 {show(made.seconds / 60)}"
    yield f"  cost                    {made.cost_usd:,.2f} USD"


def _measured_figures(answer: Answer) -> Iterator[Figure]:
    measured = answer.measured
    yield Figure("images_per_second", "images/s", measured.images_per_second, measured.how)
    cpu = measured.cpu_seconds_per_image
    if cpu:
        alone = f"{measured.cores} cores / {show(cpu)} s = {show(measured.cores / cpu)} images/s at best"
        yield Figure("cpu_seconds_per_image", "CPU seconds per image", cpu, alone)
    overhead = measured.batch_overhead_seconds
    yield Figure("batch_overhead_seconds", "fixed seconds per batch", overhead, "regardless of its rows")
    yield Figure("image_bytes", "bytes per image", measured.image_bytes, "before base64")
    evidence = "with evidence" if answer.request.evidence else "without evidence"
    yield Figure("outcome_bytes", "bytes per outcome", measured.outcome_bytes, evidence)


def _lines(figures: Iterable[Figure]) -> Iterator[str]:
    """Label, value and wrapped arithmetic of each figure."""
    for figure in figures:
        head = f"  {figure.label:<34}{show(figure.value):>11} "
        yield from textwrap.wrap(
            figure.arithmetic, WIDTH, initial_indent=head, subsequent_indent=" " * INDENT
        ) or [head.rstrip()]
