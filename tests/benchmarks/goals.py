"""The goals of the benchmarks, what was measured, and whether it meets them."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.cells import (
    ENGINE_ONE_BY_ONE,
    ENGINE_PAUSED,
    NO_SERVERS,
    OURS,
    PUBLISHED,
    SINGLE,
    closed_cells,
    open_loop,
)
from tests.benchmarks.contenders import BROUGHT, NETWORKS, Form
from tests.benchmarks.measurements import ByRound, Measurements, median, ratio
from tests.benchmarks.mixed import ALONE, BESIDE, BESIDE_PACED, greatest_deviation, slopes_ms
from tests.benchmarks.serving_record import Record
from tests.benchmarks.serving_tables import RATES, compared_cells, faster_engine, ours_to
from tests.benchmarks.tables import write_table

RECIPE, DEFAULT = (network.name for network in NETWORKS)
# Our rate as a multiple of the best peer's.
BEST_MULTIPLES = {
    DEFAULT: {"64 rows": 1.03, "1 row": 1.0, "raw image": 1.0},
    RECIPE: {"64 rows": 1.4},
    **{network.name: {"64 rows": 1.0, "1 row": 1.0, "raw image": 1.0} for network in BROUGHT},
}
OTHER_MULTIPLE = 1.15
"""Of all peers of the default network but the best."""
BEST_LATENCIES = {"64 rows": 0.8, "1 row": 1.0}
LEAST_ENGINE_SHARE = 0.92
MOST_SECONDS, MOST_MEGABYTES = 0.8, 113.0
# PUBLISHED serves another network, and the last one decodes with our code.
NO_PEERS = {*NO_SERVERS, OURS, PUBLISHED, "FastAPI + LiteRT (our decoder)"}


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
        if self.unit == "%":
            return f"{value:.1%}"
        return f"{value:.3g}x" if self.unit == "x" else f"{value:.3g} {self.unit}"


def write_goals(record: Record, folder: Path | None) -> None:
    """The goals whose figures the record has."""
    rows = [goal.row() for goal in _goals(record) if goal.measured is not None]
    header = ["goal", "target", "measured", "met"]
    write_table("serving_goals", header, rows, about=record.about, folder=folder)


def _goals(record: Record) -> Iterator[Goal]:
    measurements = record.measurements
    for network in measurements.networks:
        yield from _rates(measurements, network)
        yield from _engine(measurements, network)
    yield from _against_best_latency(measurements)
    yield from _latency(measurements)
    yield from _large_batches(measurements)
    yield from _footprint(record)


def _rates(measurements: Measurements, network: str) -> Iterator[Goal]:
    for what, target in BEST_MULTIPLES.get(network, {}).items():
        form, rows = RATES[what]
        rates = {
            name: measurements.best_rates(network, name, compared_cells(name, form, rows))
            for name in set(measurements.contenders(network)) - NO_PEERS
        }
        ranked = sorted((name for name in rates if rates[name]), key=lambda name: -median(rates[name]))
        if not ranked:
            continue
        multiples = [ours_to(measurements, network, name, form, rows) for name in ranked]
        title = f"{network}, {what}: images/s to "
        yield Goal(title + f"the best peer, {ranked[0]}", target, at_least=True, measured=multiples[0])
        if network == DEFAULT and len(ranked) > 1:
            least = min((found for found in multiples[1:] if found is not None), default=None)
            yield Goal(title + "each other peer", OTHER_MULTIPLE, at_least=True, measured=least)


def _engine(measurements: Measurements, network: str) -> Iterator[Goal]:
    engine = faster_engine(measurements, network) if network == DEFAULT else None
    if engine is not None:
        share = ours_to(measurements, network, engine, "snowflake", 64)
        title = f"{network}, 64 rows: images/s to the {engine}"
        yield Goal(title, LEAST_ENGINE_SHARE, at_least=True, measured=share, unit="%")


def _against_best_latency(measurements: Measurements) -> Iterator[Goal]:
    for what, target in BEST_LATENCIES.items():
        cell = closed_cells(*RATES[what])[0]
        found = {
            name: measurements.by_round(DEFAULT, name, cell, "p50_ms")
            for name in set(measurements.contenders(DEFAULT)) - NO_PEERS
        }
        best = min(
            (name for name in found if found[name]), key=lambda name: median(found[name]), default=None
        )
        if best is not None:
            ours = measurements.by_round(DEFAULT, OURS, cell, "p50_ms")
            title = f"{DEFAULT}, {what}: unloaded p50 to the best peer's, {best}"
            yield Goal(title, target, at_least=False, measured=ratio(ours, found[best]))


def _latency(measurements: Measurements) -> Iterator[Goal]:
    single = measurements.by_round(RECIPE, OURS, SINGLE, "p50_ms")
    for engine, what in (
        (ENGINE_ONE_BY_ONE, "right after another"),
        (ENGINE_PAUSED, "after a pause of 1 ms"),
    ):
        bare = measurements.by_round(RECIPE, engine, SINGLE, "p50_ms")
        yield Goal(
            f"{RECIPE}: p50 of a raw image to bare decode + predict, {what}",
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
            f"{RECIPE}: p99 of {what} at 50 % load to unloaded p50",
            3.0,
            at_least=False,
            measured=ratio(loaded, unloaded),
        )


def _large_batches(measurements: Measurements) -> Iterator[Goal]:
    alone = measurements.by_round(RECIPE, OURS, ALONE, "p50_ms")
    for cell, what in ((BESIDE, "one after another"), (BESIDE_PACED, "20 a second")):
        beside: ByRound = measurements.by_round(RECIPE, OURS, cell, "p99_ms")
        yield Goal(
            f"{RECIPE}: p99 of images {what}, beside 4,096 rows, to unloaded p50",
            5.0,
            at_least=False,
            measured=ratio(beside, alone),
        )
    slopes = slopes_ms(measurements, RECIPE)
    middle = f", {statistics.median(slopes.values()):.2f} ms" if slopes else ""
    yield Goal(
        f"{RECIPE}: cost of a row more, from 16 to 4,096 rows: off its median{middle}",
        0.1,
        at_least=False,
        measured=greatest_deviation(slopes) if slopes else None,
        unit="%",
    )


def _footprint(record: Record) -> Iterator[Goal]:
    for found in record.footprints:
        if (found.network, found.contender) == (DEFAULT, OURS):
            seconds = statistics.median(found.cold_start_seconds)
            yield Goal(
                f"{DEFAULT}: start to the first label",
                MOST_SECONDS,
                at_least=False,
                measured=seconds,
                unit="s",
            )
            yield Goal(
                f"{DEFAULT}: memory when ready",
                MOST_MEGABYTES,
                at_least=False,
                measured=found.ready.pss,
                unit="MB",
            )
