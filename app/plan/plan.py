"""The whole way from measured figures to a plan; nothing is measured here, and nothing printed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.plan.costs import calls_in_flight, price_run, time_run
from app.plan.figures import Figure, Measured, PlanError, Request
from app.plan.sizing import Places, size_batch, size_fleet, size_places

# Shorter deadlines that are tried, as shares of the one asked for.
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)


@dataclass(frozen=True)
class Plan:
    instances: int
    max_batch_rows: int
    places: Places
    seconds: float
    cost_usd: float
    figures: tuple[Figure, ...]
    """In the order in which they follow from one another."""
    costs: tuple[Figure, ...]
    notes: tuple[str, ...]


def make_plan(measured: Measured, request: Request) -> Plan:
    """Raises PlanError where no batch, or no warehouse, is large enough."""
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
    """Of the deadline and shorter ones, whose instances Snowflake's calls keep busy.

    The warehouse is paid for as long as the query runs: more instances may cost less in all.
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
            "It misses the deadline: Snowflake sends too few batches at once to keep all instances busy. "
            "Split the rows over several queries, or take a larger warehouse from ten million rows on."
        )
    if not request.in_warehouse:
        yield "A vCPU is often a thread of a core and not a core: measure again where the service will run."
    yield "The network between Snowflake and the service, and starting instances, are not in the minutes."
    yield f"Left out of the cost: {'; '.join(request.terms.left_out)}."
