"""python -m tests.trials.capacity: cost and time of a million images, and of a billion, on each platform.

Uses the rate that `make bench` measured last, and the formulas of `ext-classify plan`.
"""

from collections.abc import Iterator
from pathlib import Path

from app.cli.plan import PRICES, Measured, Request, find_cheapest, load_prices
from tests.benchmarks.cells import OURS
from tests.benchmarks.measurements import Measurements, median, read_csv
from tests.benchmarks.serving_tables import compared_cells, cpu_ms
from tests.benchmarks.tables import RESULTS as BENCHMARKS
from tests.benchmarks.tables import write_table

RESULTS = Path(__file__).parent / "results"
NETWORK = "steel_defects"
CORES = 2
IMAGE_BYTES = 22_433
CONCURRENT_FETCHES = 128
HOURS = {1_000_000: 1, 1_000_000_000: 24}
PROVIDERS = {
    "aws": "Fargate, API Gateway",
    "azure": "Container Apps, API Management",
    "google": "Cloud Run, API Gateway",
    "spcs": "Snowpark Container Services",
    "udf": "inside the warehouse",
}


def measured_rate(measurements: Measurements) -> float:
    """Images a second, in batches of 64 rows."""
    cells = compared_cells(OURS, "snowflake", 64)
    return median(measurements.best_rates(NETWORK, OURS, cells))


def rows_of(measured: Measured) -> Iterator[list[str]]:
    for images, hours in HOURS.items():
        for provider, name in PROVIDERS.items():
            request = Request(
                images, hours * 60, provider, source="stage", max_concurrent_fetches=CONCURRENT_FETCHES
            )
            plan = find_cheapest(measured, request, load_prices(PRICES, provider))
            costs = sorted(plan.costs_usd.items(), key=lambda cost: -cost[1])[:2]
            yield [
                f"{images:,} within {hours} h",
                name,
                f"{plan.instances:,}",
                f"{plan.max_batch_rows:,}",
                f"{plan.seconds / 60:,.0f}",
                f"{plan.cost_usd:,.2f}",
                "; ".join(f"{name.replace('_', ' ')} {usd:,.2f}" for name, usd in costs),
            ]


def main() -> None:
    measurements, about = read_csv(BENCHMARKS / "serving_cells.csv")
    rate = measured_rate(measurements)
    milliseconds = median(cpu_ms(measurements, NETWORK, OURS))
    measured = Measured(rate, CORES, IMAGE_BYTES)
    flags = f"--rate {rate:.0f} --cores {CORES} --concurrent-fetches {CONCURRENT_FETCHES}"
    write_table(
        "capacity",
        ["images", "where", "instances", "MAX_BATCH_ROWS", "minutes", "USD", "of which, most"],
        list(rows_of(measured)),
        command=f"ext-classify plan {flags}",
        about=f"{milliseconds:.2f} CPU-ms an image, {NETWORK}, {about}",
        folder=RESULTS,
    )


if __name__ == "__main__":
    main()
