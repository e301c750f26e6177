"""Find each peer's best settings: python -m tests.benchmarks.tune_peers [--peers NAME …].

Goes through the steps of a peer's grid in order: measures the alternatives of a step, forwards and backwards,
and keeps the best for the steps that follow. The score of a setting is the geometric mean of its rates at 64
rows and at 1 row. The table goes to peers/tuning.md; contenders.py has its settings.
"""

import argparse
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.benchmarks.contenders import NETWORKS, PEERS, Contender, Network, Settings, contenders
from tests.benchmarks.images import load_images
from tests.benchmarks.load import Job
from tests.benchmarks.load_process import LoadProcess, load_process
from tests.benchmarks.served import NotServing
from tests.benchmarks.servers import Server, answering
from tests.benchmarks.tables import machine

Step: TypeAlias = Sequence[Settings]

CONNECTIONS = {64: 4, 1: 8}  # by rows
TENSORFLOW_BATCHES = tuple({"MICRO_BATCH": rows} for rows in ("1", "8", "16", "32", "64"))
ONNXRUNTIME_BATCHES = tuple({"MICRO_BATCH": rows} for rows in ("1", "8", "64"))


@dataclass(frozen=True)
class Grid:
    start: Settings
    steps: Sequence[Step]


# A worker of one thread cannot use both, and is left out.
BOTH_CORES = tuple({"WORKERS": n, "THREADS": t} for n, t in (("2", "1"), ("2", "2"), ("1", "2")))
# Two requests side by side, where a worker has a pool for that.
ONE_WORKER = {"WORKERS": "1", "THREADS": "1", "POOL": "2"}
ONE_WORKER_A_CORE = {"THREADS": "1", "MICRO_BATCH": "8"}
FASTAPI_ONNXRUNTIME = Grid(
    {**ONE_WORKER_A_CORE, "WORKERS": "2", "POOL": "1"},
    (
        ONNXRUNTIME_BATCHES,
        (*BOTH_CORES, ONE_WORKER),
        ({"POOL": "1"}, {"POOL": "2"}),
        ({}, {"DECODE_THREADS": "2"}),
        ({}, {"SPINNING": "1", "THREADS": "2"}),
    ),
)
GRIDS = {
    "FastAPI + TensorFlow": Grid(
        {**ONE_WORKER_A_CORE, "WORKERS": "2", "POOL": "1"},
        (
            TENSORFLOW_BATCHES,
            (*BOTH_CORES, ONE_WORKER),
            ({"POOL": "1"}, {"POOL": "2"}),
        ),
    ),
    **dict.fromkeys(("FastAPI + onnxruntime", "FastAPI + onnxruntime (rewritten)"), FASTAPI_ONNXRUNTIME),
    "FastAPI + OpenVINO": Grid(FASTAPI_ONNXRUNTIME.start, (ONNXRUNTIME_BATCHES, BOTH_CORES)),
    "LitServe + onnxruntime (rewritten)": Grid(
        {**ONE_WORKER_A_CORE, "WORKERS": "2"},
        (
            ONNXRUNTIME_BATCHES,
            BOTH_CORES,
            ({}, {"BATCH": "8", "WAIT_MS": "0"}, {"BATCH": "8", "WAIT_MS": "5"}),
            ({}, {"FAST_QUEUE": "1"}),
            ({}, {"API_SERVERS": "2"}),
        ),
    ),
    "BentoML + onnxruntime (rewritten)": Grid(
        {**ONE_WORKER_A_CORE, "WORKERS": "2", "POOL": "1"},
        (
            ONNXRUNTIME_BATCHES,
            (*BOTH_CORES, ONE_WORKER),
            ({"POOL": "1"}, {"POOL": "2"}),
            ({}, {"BATCH": "128"}),
        ),
    ),
    "PyTriton + onnxruntime (rewritten)": Grid(
        {**ONE_WORKER_A_CORE, "WORKERS": "2"},
        (
            ONNXRUNTIME_BATCHES,
            BOTH_CORES,
            ({}, {"WAIT_MS": "5"}),
            ({}, {"DECODE_THREADS": "2"}),
        ),
    ),
}


class Rate(NamedTuple):
    per_second: float
    """Images, as if no other work had been on the machine."""
    cpu_ms: float
    """The server's, an image."""


class Trial(NamedTuple):
    settings: Settings
    rates: Mapping[int, list[Rate]]
    """By rows, one a start; empty when the server did not serve."""

    @property
    def score(self) -> float:
        rates = [rate.per_second for passes in self.rates.values() for rate in passes]
        return math.prod(rates) ** (1 / len(rates)) if rates else 0.0

    def cells(self) -> Iterator[str]:
        for passes in self.rates.values():
            yield f"{statistics.mean(rate.per_second for rate in passes):.0f}"
            yield f"{statistics.mean(rate.cpu_ms for rate in passes):.2f}"


def tune(peer: Contender, network: Network, load: LoadProcess, seconds: float) -> Iterator[Trial]:
    """Every trial, the best one last."""
    grid, tried = GRIDS[peer.name], dict[str, Trial]()
    best = dict(grid.start)
    for step in grid.steps:
        alternatives = {shown(settings): settings for settings in ({**best, **change} for change in step)}
        untried = {key: settings for key, settings in alternatives.items() if key not in tried}
        tried |= compare(peer, untried, network, load, seconds)
        yield from (tried[key] for key in untried)
        best = dict(max((tried[key] for key in alternatives), key=lambda trial: trial.score).settings)
    yield tried[shown(best)]


def compare(
    peer: Contender, untried: Mapping[str, Settings], network: Network, load: LoadProcess, seconds: float
) -> Mapping[str, Trial]:
    """Each of them twice, A B C C B A, for the machine is not always as fast."""
    found = {key: Trial(settings, defaultdict(list)) for key, settings in untried.items()}
    for key in (*found, *reversed(found)):
        for rows, rate in rates_of(peer, found[key].settings, network, load, seconds).items():
            found[key].rates[rows].append(rate)
        print(network.name, peer.name, key, f"{found[key].score:.0f}", flush=True)
    return found


def rates_of(
    peer: Contender, settings: Settings, network: Network, load: LoadProcess, seconds: float
) -> Mapping[int, Rate]:
    """By rows; none when it does not serve. Raises Mislabelled."""
    rates: dict[int, Rate] = {}
    peer = replace(peer, settings={network.name: settings})
    with suppress(NotServing), answering(peer, network, load_images().files[0]) as (server, _):
        rates = {rows: measure(server, rows, load, seconds) for rows in CONNECTIONS}
    return rates


def measure(server: Server, rows: int, load: LoadProcess, seconds: float) -> Rate:
    [form] = {server.form("snowflake")} - {None}
    job = Job(
        server.port,
        server.contender.paths[form],
        form,
        rows,
        seconds,
        connections=CONNECTIONS[rows],
        warm_up_seconds=1.0,  # until every worker has answered
        watched_pid=server.process.pid,
    )
    load.begin(job)
    time.sleep(job.warm_up_seconds)
    busy, began = busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    share_busy = (busy_seconds() - busy) / (time.perf_counter() - began)
    report = load.report()
    ours = (report.server_cpu_seconds + report.load_cpu_seconds) / report.seconds
    cores = len(cpu_lines())
    left_to_us = cores - max(0.0, share_busy - ours)
    return Rate(
        per_second=report.images_per_second * cores / left_to_us,
        cpu_ms=1000 * report.server_cpu_seconds / max(report.images, 1),
    )


def cpu_lines() -> list[list[str]]:
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]


def busy_seconds() -> float:
    """Of all cores and all processes: user, nice, system, and interrupts."""
    return sum(int(ticks) for line in cpu_lines() for ticks in (*line[1:4], *line[6:8])) / 100


def shown(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def table_rows(network: Network, peer: Contender, trials: Sequence[Trial]) -> Iterator[str]:
    *tried, best = trials
    for trial in tried:
        settings = shown(trial.settings)
        cells = list(trial.cells()) or ["–"] * 2 * len(CONNECTIONS)
        name = f"**{settings}**" if trial is best else settings
        yield f"{beginning(network, peer)}{name} | {' | '.join(cells)} |"


def beginning(network: Network, peer: Contender) -> str:
    return f"| {network.name} | {peer.name} | "


def write_rows(path: Path, network: Network, peer: Contender, rows: Sequence[str]) -> None:
    """In place of those that the table has of this network and peer; all others stay."""
    figures = " | ".join(f"images/s, {rows} rows | CPU ms/image" for rows in CONNECTIONS)
    head = [
        f"`make tune-peers`, {machine()}, means of two starts; the chosen settings are bold.",
        "",
        f"| network | server | settings | {figures} |",
        "|---" * (3 + 2 * len(CONNECTIONS)) + "|",
    ]
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in known if line.startswith("| ") and not line.startswith(beginning(network, peer))]
    path.write_text("\n".join([*head, *kept[1:], *rows]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="*", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--networks", nargs="*", default=[network.name for network in NETWORKS])
    parser.add_argument("--seconds", type=float, default=1.0, help="a measurement")
    parser.add_argument("--output", type=Path, default=PEERS / "tuning.md")
    options = parser.parse_args()
    with load_process() as load:
        for peer in (peer for peer in contenders() if peer.name in options.peers):
            for network in (network for network in NETWORKS if network.name in options.networks):
                rows = table_rows(network, peer, list(tune(peer, network, load, options.seconds)))
                write_rows(options.output, network, peer, list(rows))


if __name__ == "__main__":
    main()
