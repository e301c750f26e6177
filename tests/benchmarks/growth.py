"""How cost grows with cores, rows, image bytes and the network: python -m tests.benchmarks.growth.

Our service and its two best peers run at the same time, and one process loads one of them at a time, in
rounds forwards and backwards. A server is pinned to its cores, with a worker on each; the load is not pinned.
A slope is that of the least-squares line through a round's points, weighted so that relative errors count
alike; the median of the rounds is quoted. MACs are counted from the kernels and outputs of Keras's
convolution and dense layers. Networks that `make bench-brought` has not made are left out.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from model.defaults import usable_cores
from model.networks.keras_model import count_macs, load_network
from tests.benchmarks.cells import OURS, Cell
from tests.benchmarks.contenders import BROUGHT, NETWORKS, ONE_BY_ONE, Contender, Network, contenders
from tests.benchmarks.footprint import cpu_seconds, server_processes
from tests.benchmarks.images import AS_THEY_ARE, JPEG, load_images
from tests.benchmarks.load import Job
from tests.benchmarks.load_process import LoadProcess, load_process
from tests.benchmarks.measurements import ByRound, Measurements, measurement_of, median, ratio
from tests.benchmarks.mixed import BATCH_SIZES
from tests.benchmarks.served import Mislabelled, NotServing
from tests.benchmarks.servers import Server, answering
from tests.benchmarks.serving_plots import COLOURS, GREY, MARKERS, STYLE
from tests.benchmarks.serving_tables import times
from tests.benchmarks.tables import RESULTS, machine, write_table

SERVERS = (OURS, "FastAPI + LiteRT", "FastAPI + onnxruntime (rewritten)")
DEFAULT = NETWORKS[-1]
CORES = (1, 2, 4, 8)
PHOTOGRAPHS = ("400x300", "800x600", "1600x1200", "4000x3000")
CAMERA, CAMERA_MULTIPLE = {"jpeg-1600x1200", "jpeg-4000x3000"}, 2.0
CONNECTIONS = 4
WARM_UP_SECONDS = 0.2


class Point(NamedTuple):
    x: float
    name: str
    cell: Cell
    network: Network
    cores: int
    images: str = AS_THEY_ARE


class Growth(NamedTuple):
    name: str
    """Of its plot's file."""
    title: str
    x: str
    field: str
    """The column of Measurement that grows."""
    slope: str
    """Its unit."""
    points: Sequence[Point]
    fitted_from: float = 0.0

    def values(self, measurements: Measurements, server: str, point: Point) -> ByRound:
        return measurements.by_round(point.network.name, server, point.cell, self.field)

    def lines(self, measurements: Measurements, server: str) -> dict[int, tuple[float, float]]:
        """Slope and intercept of the line through each round's points; none of fewer than two points."""
        fitted = {p.x: self.values(measurements, server, p) for p in self.points if p.x >= self.fitted_from}
        found = {}
        for turn in {turn for values in fitted.values() for turn in values}:
            xs, ys = zip(*((x, values[turn]) for x, values in fitted.items() if turn in values), strict=True)
            if len(xs) > 1:
                slope, intercept = np.polyfit(xs, ys, 1, w=1 / np.array(ys))
                found[turn] = (float(slope), float(intercept))
        return found


def by_cores(most: int) -> Growth:
    counts = [cores for cores in CORES if cores <= most]
    cells = [Cell("snowflake", 64, _cores(cores), CONNECTIONS) for cores in counts]
    points = [Point(c, _cores(c), cell, DEFAULT, c) for c, cell in zip(counts, cells, strict=True)]
    title, slope = "Images a second by cores, 64 rows", "images/s a core"
    return Growth("growth_cores", title, "cores", "images_per_second", slope, points)


def by_rows(sizes: Sequence[int], cores: int) -> Growth:
    """JPEG: 4,096 PNG files exceed the default limit of a body."""
    cells = {rows: Cell("snowflake", rows, "JPEG, 1 connection", 1) for rows in sizes}
    points = [
        Point(rows, f"{rows:,} row{'s' * (rows > 1)}", cells[rows], DEFAULT, cores, JPEG) for rows in sizes
    ]
    title, slope = "Milliseconds a request by rows, one at a time", "ms a row"
    return Growth("growth_rows", title, "rows in a request", "p50_ms", slope, points, fitted_from=16)


def by_bytes(sizes: Sequence[str], cores: int) -> Growth:
    points = []
    for size in sizes:
        kind = f"jpeg-{size}"
        megabytes = statistics.mean(map(len, load_images(kind).files)) / 1e6
        cell = Cell("image", 1, kind, CONNECTIONS)
        points.append(Point(megabytes, f"{size} JPEG, {megabytes:.2f} MB", cell, DEFAULT, cores, kind))
    title = "CPU milliseconds an image by its file's size, colour JPEG"
    return Growth("growth_bytes", title, "MB", "cpu_ms_per_image", "CPU-ms a MB", points)


def by_network(networks: Sequence[Network], cores: int) -> Growth:
    points = []
    for network in networks:
        macs = count_macs(load_network(network.h5)) / 1e8
        cell = Cell("image", 1, "as they are", CONNECTIONS)
        points.append(Point(macs, f"{network.name}, {100 * macs:,.0f} M MACs", cell, network, cores))
    title = "CPU milliseconds an image by the network's MACs"
    slope = "CPU-ms for 100 M MACs"
    return Growth("growth_macs", title, "100 M MACs", "cpu_ms_per_image", slope, sorted(points))


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


def on_cores(contender: Contender, network: Network, cores: int) -> Contender:
    """Pinned, with a worker on each core; our service finds the cores itself."""
    pinned = ",".join(map(str, _first_cores(cores)))
    settings = {network.name: {**contender.settings.get(network.name, ONE_BY_ONE), "WORKERS": str(cores)}}
    return replace(
        contender,
        template=("taskset", "-c", pinned, *contender.template),
        settings=settings if contender.settings else {},
    )


def _first_cores(count: int) -> list[int]:
    return sorted(os.sched_getaffinity(0))[:count]


def require_cores(server: Server, cores: int) -> None:
    """Raises Mislabelled unless every process of the server runs on its cores, and on no other."""
    for pid in server_processes(server.process.pid):
        found = os.sched_getaffinity(pid)
        if found != set(_first_cores(cores)):
            raise Mislabelled(f"{server.contender.name} must run on {_cores(cores)}. Received: {found}.")


class Run:
    """Rounds of all points of some growths, at servers that all run meanwhile."""

    def __init__(self, load: LoadProcess, measurements: Measurements, seconds: float) -> None:
        self._load = load
        self._measurements = measurements
        self._seconds = seconds
        self.leader_shares: dict[str, list[float]] = {}
        """By server: what its first process spends of its CPU time, in requests of 64 rows."""

    def take(self, growths: Sequence[Growth], known: Sequence[Contender], rounds: int) -> None:
        points = [point for growth in growths for point in growth.points]
        with _standing(points, known) as servers:
            measured = [
                (server, point) for point in points for server in servers[point.network.name, point.cores]
            ]
            for turn in range(rounds):
                for server, point in measured if turn % 2 == 0 else reversed(measured):
                    self._measure(server, point, turn)

    def _measure(self, server: Server, point: Point, turn: int) -> None:
        form, name = point.cell.form, server.contender.name
        job = Job(
            port=server.port,
            path=server.contender.paths[form],
            form=form,
            rows=point.cell.rows,
            seconds=self._seconds,
            connections=point.cell.connections,
            warm_up_seconds=WARM_UP_SECONDS if point.cell.rows < BATCH_SIZES[-1] else 0.0,
            images=point.images,
            watched_pid=server.process.pid,
        )
        before = _spent(server)
        report = self._load.run(job)
        after = _spent(server)
        if sum(report.errors.values()) > report.refusals or not report.images:
            raise NotServing(f"{name}, {point.name}: {report.errors}, {report.first_error}")
        if point.cell.rows == 64 and after[1] > before[1]:
            share = (after[0] - before[0]) / (after[1] - before[1])
            self.leader_shares.setdefault(name, []).append(share)
        found = measurement_of(report, point.network.name, name, point.cell, turn)
        self._measurements.add(found)
        print(f"round {turn + 1}, {point.name}: {name} {found.images_per_second:.1f} images/s", flush=True)


def _spent(server: Server) -> tuple[float, float]:
    """CPU seconds of its first process, and of all."""
    return cpu_seconds([server.process.pid]), cpu_seconds(server_processes(server.process.pid))


@contextmanager
def _standing(
    points: Sequence[Point], known: Sequence[Contender]
) -> Iterator[dict[tuple[str, int], list[Server]]]:
    """Servers by network and cores. Raises NotServing and Mislabelled."""
    [file, *_] = load_images().files
    servers: dict[tuple[str, int], list[Server]] = {}
    with ExitStack() as standing:
        for network, cores in dict.fromkeys((point.network, point.cores) for point in points):
            for contender in known:
                if contender.file(network).exists():
                    pinned = on_cores(contender, network, cores)
                    server, _ = standing.enter_context(answering(pinned, network, file))
                    require_cores(server, cores)
                    servers.setdefault((network.name, cores), []).append(server)
        yield servers


def modelled_rate(cpu_ms: float, leader_share: float, cores: int) -> float:
    """Images/s with a machine of its own: every core busy, unless the one first process is the limit."""
    return 1000 / cpu_ms * min(cores, 1 / max(leader_share, 1e-9))


def write_growth(
    growths: Sequence[Growth], measurements: Measurements, run: Run, about: str, folder: Path | None
) -> None:
    by_cores, *others = growths
    rows = [
        *_rows(by_cores, measurements),
        *_cores_rows(by_cores, measurements, run.leader_shares),
        *(row for growth in others for row in _rows(growth, measurements)),
        *_camera_rows(others[1], measurements),
    ]
    header = ["images/s; CPU-ms an image; images/s of ours to it", *SERVERS]
    command = "python -m tests.benchmarks.growth"
    write_table("growth", header, rows, command=command, about=about, folder=folder)
    if folder is not None:
        for growth in growths:
            _draw(growth, measurements, about, folder)


def _rows(growth: Growth, measurements: Measurements) -> Iterator[list[str]]:
    for point in growth.points:
        yield [point.name, *(_cell(measurements, server, point) for server in SERVERS)]
    yield [f"**{growth.slope}**", *(_slope(growth, measurements, server) for server in SERVERS)]


def _cores_rows(
    growth: Growth, measurements: Measurements, shares: dict[str, list[float]]
) -> Iterator[list[str]]:
    """The speed-up, and rates by the model for as many cores as the machine lacks."""
    first, *_, last = growth.points

    def speed_up(server: str) -> str:
        return times(
            ratio(growth.values(measurements, server, last), growth.values(measurements, server, first))
        )

    def modelled(server: str, cores: int) -> str:
        spent = measurements.by_round(last.network.name, server, last.cell, "cpu_ms_per_image")
        return f"{modelled_rate(median(spent), statistics.median(shares[server]), cores):,.0f}"

    yield [f"**speed-up, {first.name} to {last.cores}**", *map(speed_up, SERVERS)]
    for cores in (cores for cores in CORES if cores > last.cores):
        yield [f"{_cores(cores)}, modelled", *(modelled(server, cores) for server in SERVERS)]


def _camera_rows(growth: Growth, measurements: Measurements) -> Iterator[list[str]]:
    """Whether our rate at camera size meets its goal, by peer."""
    for point in (point for point in growth.points if point.images in CAMERA):
        cells = []
        for server in SERVERS[1:]:
            ours, theirs = (
                measurements.by_round(point.network.name, name, point.cell) for name in (OURS, server)
            )
            found = ratio(ours, theirs)
            cells.append(f"{times(found)}: {'yes' if found and found >= CAMERA_MULTIPLE else 'no'}")
        yield [f"**goal: {point.name}, {times(CAMERA_MULTIPLE, 0)} the images/s**", "–", *cells]


def _cell(measurements: Measurements, server: str, point: Point) -> str:
    def values(name: str, field: str = "images_per_second") -> ByRound:
        return measurements.by_round(point.network.name, name, point.cell, field)

    if not (rates := values(server)):
        return "–"
    multiple = "" if server == OURS else f"; {times(ratio(values(OURS), rates))}"
    return f"{median(rates):,.0f}; {median(values(server, 'cpu_ms_per_image')):.2f}{multiple}"


def _slope(growth: Growth, measurements: Measurements, server: str) -> str:
    """The slope, ours to it in the same rounds, and how far the points lie off the line at most."""
    if not (lines := growth.lines(measurements, server)):
        return "–"
    ours = growth.lines(measurements, OURS)
    slopes, our_slopes = ({turn: line[0] for turn, line in found.items()} for found in (lines, ours))
    off = statistics.median(
        max(
            abs(found[turn] / (slope * point.x + intercept) - 1)
            for point in growth.points
            if point.x >= growth.fitted_from and turn in (found := growth.values(measurements, server, point))
        )
        for turn, (slope, intercept) in lines.items()
    )
    multiple = "" if server == OURS else f"; {times(ratio(our_slopes, slopes))}"
    return f"{median(slopes):.3g}{multiple}; ±{off:.0%}"


def _draw(growth: Growth, measurements: Measurements, about: str, folder: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor="white")
        figure.suptitle(growth.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(about, x=0.01, ha="left", fontsize=6, color=GREY)
        axis = figure.subplots()
        for server in SERVERS:
            found = [(p.x, growth.values(measurements, server, p)) for p in growth.points]
            xs, ys = zip(*((x, median(values)) for x, values in found if values), strict=True)
            lines = growth.lines(measurements, server)
            slope = statistics.median(slope for slope, _ in lines.values())
            label = f"{server}: {slope:.3g} {growth.slope}"
            axis.plot(xs, ys, color=COLOURS[server], marker=MARKERS[server], markersize=5, label=label)
        if growth.field == "images_per_second":
            axis.set_ylim(bottom=0)
            axis.set_xticks([point.x for point in growth.points])
        else:
            axis.set_xscale("log")
            axis.set_yscale("log")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_formatter("{x:g}")
                side.set_minor_formatter("")
        axis.set_xlabel(growth.x)
        axis.set_ylabel("images/s" if growth.field == "images_per_second" else "ms")
        axis.legend(fontsize=8)
        figure.savefig(folder / f"{growth.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, few points; written to --output only"
    )
    parser.add_argument("--rounds", type=int, help="3 by default, 1 with --quick")
    parser.add_argument("--seconds", type=float, help="a window: 0.6 by default, 0.2 with --quick")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args()
    quick, cores = options.quick, usable_cores()
    rounds, seconds = options.rounds or (1 if quick else 3), options.seconds or (0.2 if quick else 0.6)
    growths = [
        by_cores(cores),
        by_rows((1, *BATCH_SIZES[: 3 if quick else None]), cores),
        by_bytes(PHOTOGRAPHS[: 3 if quick else None], cores),
        by_network([n for n in (*NETWORKS, *BROUGHT[: 0 if quick else None]) if n.h5.exists()], cores),
    ]
    known = [contender for contender in contenders() if contender.name in SERVERS]
    measurements = Measurements()
    with load_process() as load:
        run = Run(load, measurements, seconds)
        for together in (growths[:3], growths[3:]):
            run.take(together, known, rounds)
    about = f"{DEFAULT.name} unless said; {machine()}; {load_images().description}"
    about += f"; rounds: {rounds}, windows of {seconds:g} s"
    write_growth(growths, measurements, run, about, options.output or (None if quick else RESULTS))


if __name__ == "__main__":
    main()
