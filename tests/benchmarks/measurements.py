"""Figures of all rounds. A ratio is formed within a round, and the median of the ratios is taken."""

import csv
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from tests.benchmarks.cells import Cell
from tests.benchmarks.load import Report

ByRound = Mapping[int, float]


class Measurement(NamedTuple):
    """One contender in one cell in one round."""

    network: str
    contender: str
    form: str
    rows: int
    load: str
    round: int
    images_per_second: float
    requests: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms_per_image: float | None = None
    load_cpu_share: float | None = None
    """CPU seconds of the load process a second."""
    refusals: int = 0
    errors: int = 0
    """Without the refusals."""
    first_error: str = ""


def measurement_of(report: Report, network: str, contender: str, cell: Cell, turn: int) -> Measurement:
    return Measurement(
        network=network,
        contender=contender,
        form=cell.form,
        rows=cell.rows,
        load=cell.load,
        round=turn,
        images_per_second=report.images_per_second,
        requests=report.requests,
        p50_ms=report.p50_ms,
        p99_ms=report.p99_ms,
        cpu_ms_per_image=1000 * report.server_cpu_seconds / report.images if report.images else None,
        load_cpu_share=report.load_cpu_seconds / report.seconds if report.seconds else None,
        refusals=report.refusals,
        errors=sum(report.errors.values()) - report.refusals,
        first_error=" ".join((report.first_error or "").split())[:160],
    )


@dataclass
class Measurements:
    measured: list[Measurement] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        self.measured.append(measurement)

    def by_round(self, network: str, contender: str, cell: Cell, field: str = "images_per_second") -> ByRound:
        """Rounds in which nothing was answered are missing."""
        return {
            m.round: getattr(m, field)
            for m in self.measured
            if (m.network, m.contender, m.form, m.rows, m.load)
            == (network, contender, cell.form, cell.rows, cell.load)
            and getattr(m, field) is not None
            and m.images_per_second > 0
        }

    def best(self, network: str, contender: str, cells: Iterable[Cell]) -> Cell | None:
        """The cell with the highest median rate: a server is compared at its best load."""
        rates = {cell: self.by_round(network, contender, cell) for cell in cells}
        measured = {cell: median(found) for cell, found in rates.items() if found}
        return max(measured, key=measured.__getitem__, default=None)

    def best_rates(self, network: str, contender: str, cells: Iterable[Cell]) -> ByRound:
        best = self.best(network, contender, cells)
        return {} if best is None else self.by_round(network, contender, best)

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(m.network for m in self.measured))

    def contenders(self, network: str) -> list[str]:
        return list(dict.fromkeys(m.contender for m in self.measured if m.network == network))


def median(values: ByRound) -> float:
    return statistics.median(values.values())


def ratio(values: ByRound, baseline: ByRound) -> float | None:
    """Of the rounds that have both."""
    shared = values.keys() & baseline.keys()
    return statistics.median(values[turn] / baseline[turn] for turn in shared) if shared else None


def write_csv(measurements: Measurements, file: TextIO, about: str) -> None:
    file.write(f"# {about}\n")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Measurement._fields)
    writer.writerows(measurements.measured)  # floats to their last digit: tables are made from them again


def read_csv(path: Path) -> tuple[Measurements, str]:
    """The measurements, and what was measured where."""
    about, *lines = path.read_text(encoding="utf-8").splitlines()
    return Measurements(list(map(_from_texts, csv.DictReader(lines)))), about.removeprefix("# ")


def _from_texts(texts: Mapping[str, str]) -> Measurement:
    def number(name: str) -> float | None:
        return float(texts[name]) if texts[name] else None

    return Measurement(
        network=texts["network"],
        contender=texts["contender"],
        form=texts["form"],
        rows=int(texts["rows"]),
        load=texts["load"],
        round=int(texts["round"]),
        images_per_second=float(texts["images_per_second"]),
        requests=int(texts["requests"]),
        p50_ms=number("p50_ms"),
        p99_ms=number("p99_ms"),
        cpu_ms_per_image=number("cpu_ms_per_image"),
        load_cpu_share=number("load_cpu_share"),
        refusals=int(texts["refusals"]),
        errors=int(texts["errors"]),
        first_error=texts["first_error"],
    )
