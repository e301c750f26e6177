"""Turns a measurement and a request into a plan, without any I/O."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.cli.plan.costs import calls_in_flight, price_run, time_run
from app.cli.plan.figures import Figure, Measured, PlanError, Request
from app.cli.plan.sizing import Places, size_batch, size_fleet, size_places

# Shorter deadlines that find_cheapest tries, as shares of the requested one.
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)


@dataclass(frozen=True)
class Plan:
    instances: int
    max_batch_rows: int
    places: Places
    seconds: float
    cost_usd: float
    figures: tuple[Figure, ...]
    """In order of calculation."""
    costs: tuple[Figure, ...]
    notes: tuple[str, ...]


def make_plan(measured: Measured, request: Request) -> Plan:
    """Raises PlanError if not even one row fits a batch, or no warehouse is large enough."""
    fleet, fleet_figures = size_fleet(measured, request)
    rows, row_figures = size_batch(measured, request, fleet)
    places, place_figures = size_places(measured, request, fleet, rows)
    seconds, time_figures = time_run(request, fleet, rows, places)
    batches = math.ceil(request.images / rows)
    costs = price_run(measured, request, fleet.instances, batches, seconds)
    return Plan(
        instances=fleet.instances,
        max_batch_rows=rows,
        places=places,
        seconds=seconds,
        cost_usd=sum(cost.value for cost in costs),
        figures=(*fleet_figures, *row_figures, *place_figures, *time_figures),
        costs=tuple(costs),
        notes=tuple(_notes(request, seconds)),
    )


def find_cheapest(measured: Measured, request: Request) -> Plan:
    """The cheapest plan for the deadline or a shorter one, if Snowflake's calls keep its instances busy.

    The warehouse costs money as long as the query runs, so more instances may cost less in total.
    """
    plans = [make_plan(measured, request)]
    for share in SHARES:
        shorter = replace(request, deadline_minutes=request.deadline_minutes * share)
        try:
            plan = make_plan(measured, shorter)
        except PlanError:  # no warehouse is large enough
            break
        if _is_kept_busy(plan, request):
            plans.append(plan)
    return min(plans, key=lambda plan: plan.cost_usd)


def _is_kept_busy(plan: Plan, request: Request) -> bool:
    calls, _ = calls_in_flight(request)
    return request.in_warehouse or plan.instances * plan.places.busy <= calls


def _notes(request: Request, seconds: float) -> Iterator[str]:
    if seconds > request.deadline_minutes * 60 * 1.001:  # more than rounding
        yield (
            "It misses the deadline: Snowflake sends too few concurrent batches to keep all instances busy. "
            "Split the rows over several queries or, from ten million rows, use a larger warehouse."
        )
    if not request.in_warehouse:
        yield "A vCPU is often a hardware thread, not a core: measure again where the service will run."
    yield "The minutes exclude network latency between Snowflake and the service, and starting instances."
    yield f"Not included in the cost: {'; '.join(request.terms.left_out)}."
