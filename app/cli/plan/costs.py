"""Estimates how long the query runs, and its cost."""

import math
from collections.abc import Iterator

from app.cli.plan import prices
from app.cli.plan.figures import Figure, Measured, Request, show
from app.cli.plan.prices import LEAST_BILLED_SECONDS, WAREHOUSE_CREDITS_PER_HOUR, Price
from app.cli.plan.sizing import UTILISATION, Fleet, Places


def time_run(request: Request, fleet: Fleet, rows: int, places: Places) -> tuple[float, list[Figure]]:
    """Seconds that the query runs; the instances or Snowflake's concurrent calls limit the rate."""
    planned = fleet.planned_rate
    shown = f"{UTILISATION} x {show(fleet.instance_rate)} x {fleet.instances}"
    figures = [Figure("fleet_images_per_second", "images/s of all instances", planned, shown)]
    rate = planned
    if not request.in_warehouse:
        calls, calls_shown = calls_in_flight(request)
        batches = math.ceil(request.images / rows)
        if batches < calls:
            calls, calls_shown = batches, "all batches"
        sent = calls * rows / places.seconds_alone
        rate = min(planned, sent)
        at_most = f"{calls} x {rows} rows / {show(places.seconds_alone)} s"
        figures += [
            Figure("calls", "concurrent batches from Snowflake", calls, calls_shown),
            Figure("sent_images_per_second", "images/s sent by Snowflake, at most", sent, at_most),
        ]
    seconds = request.images / rate
    minutes = Figure(
        "minutes", "minutes", seconds / 60, f"{request.images:,} / {show(rate)} / 60; the lower rate"
    )
    return seconds, [*figures, minutes]


def calls_in_flight(request: Request) -> tuple[int, str]:
    """Concurrent calls that Snowflake was observed to make for these rows and warehouse, and the source."""
    images, nodes = request.images, WAREHOUSE_CREDITS_PER_HOUR[request.warehouse]
    if images < 1_000_000:
        return prices.CALLS_BELOW_MILLION, f"below a million rows; {prices.CALLS_SOURCE}"
    if images < 10_000_000:
        return prices.CALLS_FROM_MILLION, f"from a million rows; {prices.CALLS_SOURCE}"
    calls = prices.MOST_CALLS_PER_NODE * nodes
    return calls, f"{prices.MOST_CALLS_PER_NODE} per node from ten million rows; {prices.CALLS_SOURCE}"


def price_run(
    measured: Measured, request: Request, instances: int, batches: int, seconds: float
) -> list[Figure]:
    """Costs in USD while the query runs; idle time before and after it is not included."""
    hours = max(seconds, LEAST_BILLED_SECONDS) / 3600
    return [
        *_price_containers(measured, request, instances, hours),
        *_price_pool(measured, request, instances, hours),
        *_price_gateway(measured, request, batches),
        _price_warehouse(request, instances, hours),
    ]


def _price_containers(measured: Measured, request: Request, instances: int, hours: float) -> Iterator[Figure]:
    """Assumes one vCPU per measured core."""
    terms = request.terms
    vcpus = instances * measured.cores
    if terms.vcpu_hour:
        yield _cost("vcpus", "vCPUs", f"{vcpus} x {show(hours)} h", vcpus * hours, terms.vcpu_hour)
    if terms.gb_hour:
        memory = vcpus * prices.GB_PER_VCPU
        yield _cost("memory", "memory", f"{memory} GB x {show(hours)} h", memory * hours, terms.gb_hour)


def _price_pool(measured: Measured, request: Request, instances: int, hours: float) -> Iterator[Figure]:
    pool = request.terms.pool
    if pool is None:
        return
    nodes = math.ceil(instances * measured.cores / pool.vcpus)
    credits_used = nodes * hours * pool.credits.amount
    count = f"{nodes} {pool.family} of {pool.vcpus} vCPUs x {show(hours)} h x {pool.credits.amount} credits"
    shown = f"{count} x {request.credit_price:.2f}; {pool.credits.source}"
    yield Figure("pool", "compute pool", credits_used * request.credit_price, shown)


def _price_gateway(measured: Measured, request: Request, batches: int) -> Iterator[Figure]:
    terms = request.terms
    if terms.million_requests:
        quantity = batches / 1_000_000
        yield _cost(
            "requests", "gateway requests", f"{batches:,} / 1,000,000", quantity, terms.million_requests
        )
    if terms.gb_out:
        gigabytes = request.images * measured.outcome_bytes / 1e9
        shown = f"{request.images:,} x {measured.outcome_bytes} bytes / 1e9"
        yield _cost("data_out", "responses sent out", shown, gigabytes, terms.gb_out)


def _price_warehouse(request: Request, instances: int, hours: float) -> Figure:
    size, per_hour = request.warehouse, WAREHOUSE_CREDITS_PER_HOUR[request.warehouse]
    if request.in_warehouse:
        size, per_hour = next(item for item in WAREHOUSE_CREDITS_PER_HOUR.items() if item[1] == instances)
    shown = f"{per_hour} per hour, size {size}, x {show(hours)} h x {request.credit_price:.2f} USD"
    usd = per_hour * hours * request.credit_price
    return Figure(
        "warehouse", "warehouse", usd, f"{shown}; credits: Snowflake documentation; price: --credit-price"
    )


def _cost(key: str, label: str, shown: str, quantity: float, price: Price) -> Figure:
    arithmetic = f"{shown} x {price.amount:.6g} {price.unit}; {price.source}"
    return Figure(key, label, quantity * price.amount, arithmetic)
