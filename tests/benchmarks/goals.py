"""The goals of the benchmarks, what was measured, and whether it meets them."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.cells import (
    BATCH,
    ENGINE_ONE_BY_ONE,
    ENGINE_PAUSED,
    NO_SERVERS,
    OURS,
    PUBLISHED,
    SINGLE,
    closed_cells,
    open_loop,
)
from tests.benchmarks.contenders import NETWORKS, Form
from tests.benchmarks.measurements import ByRound, Measurements, ratio
from tests.benchmarks.mixed import ALONE, BESIDE, BESIDE_PACED, greatest_deviation, slopes_ms
from tests.benchmarks.serving_record import Record
from tests.benchmarks.serving_tables import faster_engine, ours_to
from tests.benchmarks.tables import write_table

RECIPE = NETWORKS[0].name
# The rate in batches of 64 rows, as a multiple of each peer's.
LEAST_MULTIPLE = 1.8
LEAST_MULTIPLES = {"FastAPI + TensorFlow": 1.4, "FastAPI + onnxruntime (rewritten)": 1.0}


class Goal(NamedTuple):
    what: str
    target: float
    at_least: bool
    measured: float | None
    unit: str = "x"

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def row(self) -> list[str]:
        sign = "at least" if self.at_least else "at most"
        measured = "not measured" if self.measured is None else self._show(self.measured)
        met = {True: "yes", False: "no", None: "–"}[self.is_met]
        return [self.what, f"{sign} {self._show(self.target)}", measured, met]

    def _show(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.4g}x" if value < 100 else f"{value:.0f}x"


def write_goals(record: Record, folder: Path | None) -> None:
    rows = [goal.row() for goal in _goals(record.measurements)]
    about = f"{RECIPE} unless said; {record.about}"
    write_table("serving_goals", ["goal", "target", "measured", "met"], rows, about=about, folder=folder)


def _goals(measurements: Measurements) -> Iterator[Goal]:
    yield from _throughput(measurements)
    yield from _against_published(measurements)
    yield from _latency(measurements)
    yield from _large_batches(measurements)


def _throughput(measurements: Measurements) -> Iterator[Goal]:
    engine = faster_engine(measurements, RECIPE)
    share = ours_to(measurements, RECIPE, engine, "snowflake", 64) if engine else None
    yield Goal(f"64 rows, images/s to the {engine or 'engine'}", 0.9, at_least=True, measured=share, unit="%")
    for name in measurements.contenders(RECIPE):
        if name not in {*NO_SERVERS, OURS, PUBLISHED}:
            target = LEAST_MULTIPLES.get(name, LEAST_MULTIPLE)
            multiple = ours_to(measurements, RECIPE, name, "snowflake", 64)
            yield Goal(f"64 rows, images/s to {name}", target, at_least=True, measured=multiple)


def _against_published(measurements: Measurements) -> Iterator[Goal]:
    """Its server always serves the published network; ours serves the one named."""
    for network in (NETWORKS[1].name, RECIPE):
        for cell, what, target in ((BATCH, "64 rows", 100.0), (SINGLE, "one image a request", 40.0)):
            multiple = ratio(
                measurements.by_round(network, OURS, cell), measurements.by_round(network, PUBLISHED, cell)
            )
            against = f"{what}, {network}, images/s to the {PUBLISHED}"
            yield Goal(against, target, at_least=True, measured=multiple)


def _latency(measurements: Measurements) -> Iterator[Goal]:
    single = measurements.by_round(RECIPE, OURS, SINGLE, "p50_ms")
    for engine, what in (
        (ENGINE_ONE_BY_ONE, "right after another"),
        (ENGINE_PAUSED, "after a pause of 1 ms"),
    ):
        bare = measurements.by_round(RECIPE, engine, SINGLE, "p50_ms")
        yield Goal(
            f"p50 of a raw image to bare decode + predict, {what}",
            1.3,
            at_least=False,
            measured=ratio(single, bare),
        )
    forms: tuple[tuple[Form, int, str], ...] = (
        ("snowflake", 1, "1 row"),
        ("image", 1, "a raw image"),
        ("snowflake", 64, "64 rows"),
    )
    for form, rows, what in forms:
        unloaded = measurements.by_round(RECIPE, OURS, closed_cells(form, rows)[0], "p50_ms")
        loaded = measurements.by_round(RECIPE, OURS, open_loop(form, rows, 0.5), "p99_ms")
        yield Goal(
            f"p99 of {what} at 50 % load to unloaded p50",
            3.0,
            at_least=False,
            measured=ratio(loaded, unloaded),
        )


def _large_batches(measurements: Measurements) -> Iterator[Goal]:
    alone = measurements.by_round(RECIPE, OURS, ALONE, "p50_ms")
    for cell, what in ((BESIDE, "one after another"), (BESIDE_PACED, "20 a second")):
        beside: ByRound = measurements.by_round(RECIPE, OURS, cell, "p99_ms")
        yield Goal(
            f"p99 of images {what}, beside 4,096 rows, to unloaded p50",
            5.0,
            at_least=False,
            measured=ratio(beside, alone),
        )
    slopes = slopes_ms(measurements, RECIPE)
    median = f", {statistics.median(slopes.values()):.2f} ms" if slopes else ""
    yield Goal(
        f"cost of a row more, from 16 to 4,096 rows: off its median{median}",
        0.1,
        at_least=False,
        measured=greatest_deviation(slopes) if slopes else None,
        unit="%",
    )
