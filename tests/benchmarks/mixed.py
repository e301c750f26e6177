"""Our service alone, with the largest batch: how it slows single images, and the cost of a row.

4,096 PNG files exceed the default limit of a body, so these images are JPEG files of the same pictures.
"""

import itertools
import statistics
from dataclasses import dataclass, replace

from tests.benchmarks.cells import OURS, Cell
from tests.benchmarks.contenders import Form
from tests.benchmarks.footprint import memory, server_processes
from tests.benchmarks.images import JPEG
from tests.benchmarks.load import Job, Report
from tests.benchmarks.load_process import LoadProcess
from tests.benchmarks.measurements import Measurements, measurement_of, median
from tests.benchmarks.servers import Server

BATCH_SIZES = (16, 64, 256, 1024, 4096)
LARGEST = BATCH_SIZES[-1]
PACED_PER_SECOND = 20.0
ALONE = Cell("image", 1, "JPEG, alone")
BESIDE = Cell("image", 1, f"JPEG, beside {LARGEST} rows")
BESIDE_PACED = Cell("image", 1, f"JPEG, beside {LARGEST} rows, {PACED_PER_SECOND:.0f}/s")
ADDED_ROWS = {rows: Cell("snowflake", rows, "JPEG, 1 connection") for rows in BATCH_SIZES}
# Requests are slow: a shorter run would have too few for a p99.
_PACED_FACTOR = 2
_BATCH_UNDER_WAY_SECONDS = 1.0


@dataclass(frozen=True)
class MixedLoad:
    """Two load processes, for batches and for single images, at one server."""

    server: Server
    batches: LoadProcess
    singles: LoadProcess
    measurements: Measurements
    seconds: float

    def take_round(self, turn: int) -> None:
        self._cost_of_rows(turn)
        self._beside_batch(turn)

    @property
    def peak_rss_mb(self) -> float:
        return memory(server_processes(self.server.process.pid)).peak_rss

    def _cost_of_rows(self, turn: int) -> None:
        """Batches of each size, one at a time; sizes go up in one round and down in the next."""
        for rows in BATCH_SIZES if turn % 2 == 0 else reversed(BATCH_SIZES):
            self._add(self.batches.run(self._batch(rows, self.seconds)), ADDED_ROWS[rows], turn)

    def _beside_batch(self, turn: int) -> None:
        """Single images alone, then while a batch of 4,096 rows is always in flight."""
        alone = self._single()
        beside = replace(alone, warm_up_seconds=_BATCH_UNDER_WAY_SECONDS)
        paced_seconds = _PACED_FACTOR * self.seconds
        paced = replace(alone, seconds=paced_seconds, requests_per_second=PACED_PER_SECOND)
        self._add(self.singles.run(alone), ALONE, turn)
        batch_seconds = 2 * _BATCH_UNDER_WAY_SECONDS + self.seconds + paced_seconds
        self.batches.begin(self._batch(LARGEST, batch_seconds))
        self._add(self.singles.run(beside), BESIDE, turn)
        self._add(self.singles.run(paced), BESIDE_PACED, turn)
        self.batches.report()

    def _batch(self, rows: int, seconds: float) -> Job:
        return replace(self._job("snowflake", rows), seconds=seconds, warm_up_seconds=0.0)

    def _single(self) -> Job:
        return self._job("image", 1)

    def _job(self, form: Form, rows: int) -> Job:
        return Job(
            port=self.server.port,
            path=self.server.contender.paths[form],
            form=form,
            rows=rows,
            seconds=self.seconds,
            images=JPEG,
            watched_pid=self.server.process.pid,
        )

    def _add(self, report: Report, cell: Cell, turn: int) -> None:
        self.measurements.add(measurement_of(report, self.server.network.name, OURS, cell, turn))


def ms_per_row(measurements: Measurements, network: str) -> dict[int, tuple[float, float]]:
    """By batch size: wall and CPU milliseconds a row, medians."""
    found = {}
    for rows, cell in ADDED_ROWS.items():
        wall = measurements.by_round(network, OURS, cell, "p50_ms")
        cpu = measurements.by_round(network, OURS, cell, "cpu_ms_per_image")
        if wall and cpu:
            found[rows] = (median(wall) / rows, median(cpu))
    return found


def slopes_ms(measurements: Measurements, network: str) -> dict[tuple[int, int], float]:
    """What a row more costs, from each batch size to the next: medians of the rounds' slopes."""
    walls = {rows: measurements.by_round(network, OURS, cell, "p50_ms") for rows, cell in ADDED_ROWS.items()}
    found = {}
    for few, many in itertools.pairwise(BATCH_SIZES):
        rounds = walls[few].keys() & walls[many].keys()
        if rounds:
            found[few, many] = statistics.median(
                (walls[many][turn] - walls[few][turn]) / (many - few) for turn in rounds
            )
    return found


def greatest_deviation(slopes: dict[tuple[int, int], float]) -> float:
    """Of a slope from their median, as a share of it."""
    middle = statistics.median(slopes.values())
    return max(abs(slope / middle - 1) for slope in slopes.values())
