"""Calculates instances, rows per batch and concurrent batches from the measurement of one instance."""

import math
from dataclasses import dataclass

from app.cli.plan import prices
from app.cli.plan.figures import Figure, Measured, PlanError, Request, show
from app.cli.plan.prices import CPUS_PER_NODE, WAREHOUSE_CREDITS_PER_HOUR
from app.images.allowlist import MAX_URL_CHARACTERS

# Planned share of an instance's capacity; the rest is for uneven batches, retries and restarts.
UTILISATION = 0.8
# Planned share of the time limit of a batch: Snowflake retries a late one.
TIME_SHARE = 0.5
# Batches per concurrent slot: with fewer, some cores are idle at the end.
BATCHES_PER_PLACE = 4
# Bytes of a row in addition to its source: brackets, a number, quotes and commas.
ROW_BYTES = 32


@dataclass(frozen=True)
class Fleet:
    """Instances of the service, or nodes of the warehouse that runs the UDF."""

    instance_rate: float
    """Images/s of one instance or node."""
    instances: int
    at_once: int
    """Concurrent batches that one may receive."""

    @property
    def planned_rate(self) -> float:
        return UTILISATION * self.instance_rate * self.instances


@dataclass(frozen=True)
class Places:
    """Concurrent batches of one instance: `busy` keep it busy, more than `most` miss the time limit."""

    busy: int
    most: int
    seconds_alone: float
    """Seconds of a batch that runs alone."""


def size_fleet(measured: Measured, request: Request) -> tuple[Fleet, list[Figure]]:
    """The instances or nodes needed to meet the deadline."""
    one = "node" if request.in_warehouse else "instance"
    rate, rate_shown = _instance_rate(measured, request)
    needed = request.images / (request.deadline_minutes * 60)
    instances = math.ceil(needed / (UTILISATION * rate))
    at_once, at_once_shown = _at_once(request, instances)
    if request.in_warehouse:
        instances = _whole_warehouse(instances)
    minutes = show(request.deadline_minutes)
    rounding = "rounded up to a warehouse size" if request.in_warehouse else "rounded up"
    return Fleet(rate, instances, at_once), [
        Figure("instance_images_per_second", f"images/s of one {one}", rate, rate_shown),
        Figure(
            "needed_images_per_second",
            "images/s needed",
            needed,
            f"{request.images:,} / {minutes} min / 60",
        ),
        Figure(
            "instances",
            "nodes of the warehouse" if request.in_warehouse else "instances",
            instances,
            f"{show(needed)} / ({UTILISATION} x {show(rate)}), {rounding}",
        ),
        Figure("batches_an_instance_may_get", "max batches sent to one instance", at_once, at_once_shown),
    ]


def size_batch(measured: Measured, request: Request, fleet: Fleet) -> tuple[int, list[Figure]]:
    """MAX_BATCH_ROWS: the largest power of two within all limits. Raises PlanError if no row fits."""
    limits = [
        _limit_by_time(measured, request, fleet),
        _limit_for_even_work(measured, request, fleet),
        *_limits_of_service(request),
        *_limits_by_bytes(measured, request),
    ]
    least = min(limits, key=lambda limit: limit.value)
    if least.value < 1:
        raise PlanError(
            f"A batch must have room for one image. Received: {least.label} = {least.arithmetic}."
        )
    rows = 2 ** (int(least.value).bit_length() - 1)
    shown = f"largest power of two within all: {show(least.value)}, {least.label}"
    return rows, [*limits, Figure("max_batch_rows", "MAX_BATCH_ROWS", rows, shown)]


def size_places(measured: Measured, request: Request, fleet: Fleet, rows: int) -> tuple[Places, list[Figure]]:
    """Concurrent batches by Little's law: batches per second x seconds per batch."""
    rate = fleet.instance_rate
    if request.in_warehouse:  # Snowflake schedules the batches itself
        return Places(fleet.at_once, fleet.at_once, rows * fleet.at_once / rate), []
    fixed = _fixed_seconds(measured, request)
    alone = fixed + rows / rate
    busy = max(measured.busy_batches, math.ceil(rate / rows * alone))
    most = max(1, math.floor(_spare_seconds(measured, request) * rate / rows))
    by_little = f"{show(rate)} / {rows} rows x {show(alone)} s; measured {measured.busy_batches}; the larger"
    in_time = f"{_spare_shown(measured, request)} x {show(rate)} / {rows} rows"
    return Places(busy, most, alone), [
        Figure(
            "batch_seconds",
            "seconds of a batch alone",
            alone,
            f"{show(fixed)} s + {rows} rows / {show(rate)}",
        ),
        Figure("busy_batches", "concurrent batches to stay busy", busy, by_little),
        Figure("most_batches", "max concurrent batches in time", most, in_time),
    ]


def _instance_rate(measured: Measured, request: Request) -> tuple[float, str]:
    rate, fetch = measured.images_per_second, request.fetch_seconds
    if request.in_warehouse:
        # Each process of a node fetches and classifies one image at a time.
        a_process = f"({measured.cores} cores / {show(rate)} + {show(fetch)} s to fetch)"
        return CPUS_PER_NODE / (measured.cores / rate + fetch), f"{CPUS_PER_NODE} CPUs / {a_process}"
    if not fetch:
        return rate, measured.how
    fetched = request.max_concurrent_fetches / fetch
    shown = (
        f"{request.max_concurrent_fetches} fetches / {show(fetch)} s = {show(fetched)}; measured {show(rate)}"
    )
    return min(rate, fetched), f"{shown}; the smaller"


def _at_once(request: Request, instances: int) -> tuple[int, str]:
    if request.in_warehouse:
        return CPUS_PER_NODE, f"one per CPU; {prices.BOUND_SOURCE}"
    nodes = WAREHOUSE_CREDITS_PER_HOUR[request.warehouse]
    shown = (
        f"{prices.MOST_CALLS_PER_NODE} per node x {nodes} / {instances}, rounded up; {prices.BOUND_SOURCE}"
    )
    return math.ceil(prices.MOST_CALLS_PER_NODE * nodes / instances), shown


def _whole_warehouse(nodes: int) -> int:
    largest = max(WAREHOUSE_CREDITS_PER_HOUR.values())
    if nodes > largest:
        raise PlanError(
            f"A warehouse has at most {largest} nodes; allow more minutes. Received: {nodes:,} needed."
        )
    return min(size for size in WAREHOUSE_CREDITS_PER_HOUR.values() if size >= nodes)


def _limit_by_time(measured: Measured, request: Request, fleet: Fleet) -> Figure:
    rows = math.floor(_spare_seconds(measured, request) * fleet.instance_rate / fleet.at_once)
    shown = f"{_spare_shown(measured, request)} x {show(fleet.instance_rate)} / {fleet.at_once} concurrent"
    return Figure("rows_by_time", "rows by time", rows, f"{shown}; {request.terms.call_source}")


def _limit_for_even_work(measured: Measured, request: Request, fleet: Fleet) -> Figure:
    places = fleet.instances * (fleet.at_once if request.in_warehouse else measured.busy_batches)
    rows = max(1, request.images // (BATCHES_PER_PLACE * places))
    shown = f"{request.images:,} / {BATCHES_PER_PLACE} / {places}, measured concurrent batches x instances"
    return Figure("rows_by_even_work", "rows for even load", rows, shown)


def _limits_of_service(request: Request) -> list[Figure]:
    if request.in_warehouse:
        return []
    return [Figure("rows_by_setting", "rows by MAX_ROWS", request.max_rows, "the service's setting")]


def _limits_by_bytes(measured: Measured, request: Request) -> list[Figure]:
    terms = request.terms
    limits = []
    if not request.in_warehouse:
        source = "Snowflake, external functions"
        limits.append(("response", prices.RESPONSE_BYTES, measured.outcome_bytes, source))
    if terms.request_bytes is not None:
        each = _source_bytes(measured, request)
        limits.append(("request", terms.request_bytes, each, terms.request_source))
    return [
        Figure(
            f"rows_by_{name}_bytes",
            "rows by memory" if request.in_warehouse else f"rows by size of {name}",
            most // (each + ROW_BYTES),
            f"{most:,} bytes / ({each:,} + {ROW_BYTES}); {source}",
        )
        for name, most, each, source in limits
    ]


def _source_bytes(measured: Measured, request: Request) -> int:
    """Bytes of a row's source: base64 adds a third; for URLs, the maximum length that the service accepts."""
    if request.in_warehouse:
        return measured.image_bytes
    return MAX_URL_CHARACTERS if request.source == "url" else 4 * math.ceil(measured.image_bytes / 3)


def _fixed_seconds(measured: Measured, request: Request) -> float:
    return measured.batch_overhead_seconds + request.fetch_seconds


def _spare_seconds(measured: Measured, request: Request) -> float:
    """The seconds of a batch that remain for its rows."""
    return TIME_SHARE * request.terms.call_seconds - _fixed_seconds(measured, request)


def _spare_shown(measured: Measured, request: Request) -> str:
    return f"({TIME_SHARE} x {request.terms.call_seconds} s - {show(_fixed_seconds(measured, request))} s)"
