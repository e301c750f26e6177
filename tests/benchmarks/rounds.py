"""A round of a group of cells: every server in every cell, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from tests.benchmarks.cells import (
    DECODING,
    ENGINE_ONE_BY_ONE,
    ENGINE_PAUSED,
    ENGINE_PROCESSES,
    ENGINE_THREADS,
    NULL_SERVER,
    NULL_SERVER_CONNECTIONS,
    SINGLE,
    Cell,
    Group,
    is_measured,
)
from tests.benchmarks.engine_limit import EngineLimit, EngineReport
from tests.benchmarks.load import Job
from tests.benchmarks.load_process import LoadProcess
from tests.benchmarks.measurements import Measurement, Measurements, measurement_of
from tests.benchmarks.servers import Server, suspended

# An open loop needs enough requests for a p99, within the time limit.
OPEN_LOOP_REQUESTS, OPEN_LOOP_MOST_SECONDS = 100, 4.0
ENGINE_ROWS = 64


@dataclass(frozen=True)
class Rounds:
    network: str
    servers: Sequence[Server]
    restless: Sequence[Server]
    """Those among them that are suspended while others are measured."""
    engine: EngineLimit
    null_server: tuple[int, int]
    """Its port and its process's number."""
    load: LoadProcess
    measurements: Measurements
    seconds: float
    images: str
    """Their kind."""

    def take(self, group: Group, turn: int) -> None:
        for cell in group.cells:
            measures = list(self._measures(group, cell, turn))
            for server, measure in measures if turn % 2 == 0 else reversed(measures):
                with suspended(other for other in self.restless if other is not server):
                    measure()

    def _measures(
        self, group: Group, cell: Cell, turn: int
    ) -> Iterator[tuple[Server | None, Callable[[], None]]]:
        """What is measured, by the server that must be awake for it."""
        if cell.connections:
            yield from ((None, measure) for measure in self._engine_measures(cell, turn))
        for server in self.servers:
            if is_measured(server.contender.name, cell) and self._serves(server, cell):
                yield server, partial(self._measure_server, server, group, cell, turn)
        if cell.connections == NULL_SERVER_CONNECTIONS:
            yield None, partial(self._measure_null_server, cell, turn)

    def _serves(self, server: Server, cell: Cell) -> bool:
        """A cell that it has failed is not tried again."""
        return server.form(cell.form) is not None and not any(
            (m.network, m.contender, m.form, m.rows, m.load)
            == (self.network, server.contender.name, cell.form, cell.rows, cell.load)
            and m.images_per_second == 0
            for m in self.measurements.measured
        )

    def _measure_server(self, server: Server, group: Group, cell: Cell, turn: int) -> None:
        form = server.form(cell.form)
        assert form is not None
        rate = self._greatest_rate(server, group, turn) * cell.share if cell.share else None
        if rate == 0.0:
            return
        job = Job(
            port=server.port,
            path=server.contender.paths[form],
            form=form,
            rows=cell.rows,
            seconds=self.seconds if rate is None else self._open_loop_seconds(rate),
            connections=cell.connections,
            requests_per_second=rate,
            images=self.images,
            watched_pid=server.process.pid,
        )
        self._run(job, server.contender.name, cell, turn)

    def _measure_null_server(self, cell: Cell, turn: int) -> None:
        port, pid = self.null_server
        job = Job(
            port=port,
            path=f"/{cell.form}/{cell.rows}",
            form=cell.form,
            rows=cell.rows,
            seconds=self.seconds,
            connections=cell.connections,
            images=self.images,
            watched_pid=pid,
        )
        self._run(job, NULL_SERVER, cell, turn)

    def _run(self, job: Job, contender: str, cell: Cell, turn: int) -> None:
        measurement = measurement_of(self.load.run(job), self.network, contender, cell, turn)
        self.measurements.add(measurement)
        print(_line(measurement), flush=True)

    def _greatest_rate(self, server: Server, group: Group, turn: int) -> float:
        """Requests a second, of this round's closed loops."""
        rates = [
            self.measurements.by_round(self.network, server.contender.name, cell).get(turn, 0.0)
            for cell in group.closed
        ]
        return max(rates) / group.rows

    def _open_loop_seconds(self, rate: float) -> float:
        return max(self.seconds, min(OPEN_LOOP_REQUESTS / rate, OPEN_LOOP_MOST_SECONDS))

    def _engine_measures(self, cell: Cell, turn: int) -> Iterator[Callable[[], None]]:
        engine, seconds = self.engine, self.seconds
        if cell.rows == ENGINE_ROWS:
            yield lambda: self._add_engine(
                engine.processes("decode and predict some", seconds), ENGINE_PROCESSES, cell, turn
            )
            yield lambda: self._add_engine(
                engine.threads("decode and predict some", seconds), ENGINE_THREADS, cell, turn
            )
        if cell.rows == ENGINE_ROWS and cell.connections == NULL_SERVER_CONNECTIONS:
            yield lambda: self._add_engine(engine.processes("decode", seconds), DECODING, cell, turn)
        if cell == SINGLE:
            yield lambda: self._add_engine(engine.one_at_a_time(seconds), ENGINE_ONE_BY_ONE, cell, turn)
            yield lambda: self._add_engine(
                engine.one_at_a_time(seconds, paused=True), ENGINE_PAUSED, cell, turn
            )

    def _add_engine(self, report: EngineReport, name: str, cell: Cell, turn: int) -> None:
        measurement = Measurement(
            network=self.network,
            contender=name,
            form=cell.form,
            rows=cell.rows,
            load=cell.load,
            round=turn,
            images_per_second=report.images_per_second,
            p50_ms=report.p50_ms,
            p99_ms=report.p99_ms,
            cpu_ms_per_image=report.cpu_ms_per_image,
        )
        self.measurements.add(measurement)
        print(_line(measurement), flush=True)


def _line(m: Measurement) -> str:
    latency = "" if m.p50_ms is None or m.p99_ms is None else f"p50 {m.p50_ms:.1f} ms, p99 {m.p99_ms:.1f} ms"
    failures = f", {m.refusals} refused, {m.errors} failed: {m.first_error}" if m.first_error else ""
    where = f"{m.network} round {m.round + 1}, {m.form} of {m.rows}, {m.load}"
    return f"{where}: {m.contender} {m.images_per_second:.1f} images/s, {latency}{failures}"
