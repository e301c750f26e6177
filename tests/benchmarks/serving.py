"""Compare servers on the same images and cores: python -m tests.benchmarks.serving.

All servers of a network run at the same time, and one process loads one of them at a time. Rounds are
interleaved, forwards and backwards, so that other load on the machine slows all alike, and ratios are formed
within a round. NEU_DATA_DIR names the real images; without it, drawn ones are sent; --images enlarges them to
what cameras take. A run with --quick, --only, --images, --network or few rounds prints its results, writes a
summary and all cells to --output, and does not replace the results of a whole run.
"""

import argparse
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.benchmarks.cells import CAMERA, FULL, OURS, PUBLISHED, QUICK, SLOW_NETWORKS, Group
from tests.benchmarks.contenders import BROUGHT, NETWORKS, ONNX, Contender, Network, contenders
from tests.benchmarks.engine_limit import engine_labels, engine_limit
from tests.benchmarks.footprint import Memory, memory, server_processes
from tests.benchmarks.images import AS_THEY_ARE, KINDS, ImageSet, load_images
from tests.benchmarks.load_process import load_process
from tests.benchmarks.mixed import MixedLoad
from tests.benchmarks.null_server import running_null_server
from tests.benchmarks.rounds import Rounds
from tests.benchmarks.served import NotServing
from tests.benchmarks.servers import (
    Server,
    agreement,
    answering,
    suspended,
)
from tests.benchmarks.serving_record import Footprint, LeftOut, Record, load, save
from tests.benchmarks.serving_results import write_part, write_results
from tests.benchmarks.tables import RESULTS, machine

# Decoders differ in the last bit, and an image on the edge may fall to either side.
LEAST_AGREEMENT = 0.9
CHECKED_IMAGES = 64
# An even number: as many forwards as backwards.
LEAST_ROUNDS = 4
ATTEMPTS = 3
# A server that polls takes half a core while idle, so it is suspended while others are measured.
MOST_IDLE_CORES = 0.02
KEPT = ONNX / "serving"

T = TypeVar("T")


class Plan(NamedTuple):
    groups: Sequence[Group]
    rounds: int
    seconds: float
    cold_starts: int
    mixed_rounds: int
    images: str = AS_THEY_ARE


class NetworkRun:
    """All that is measured of one network."""

    def __init__(self, network: Network, plan: Plan, images: ImageSet, record: Record) -> None:
        self._network = network
        self._plan = plan
        self._images = images
        self._record = record
        self._cold_starts: dict[str, list[float]] = defaultdict(list)

    def measure(self, competing: Sequence[Contender]) -> None:
        competing = self._time_cold_starts(competing)
        with self._standing_servers(competing) as servers:
            ready = {server.contender.name: _memory_of(server) for server in servers}
            restless = [server for server in servers if server.idle_cores() > MOST_IDLE_CORES]
            self._take_rounds(servers, restless)
            self._note_footprints(servers, ready)
            for server in servers:
                if server.contender.name == OURS and self._plan.mixed_rounds:
                    with suspended(other for other in restless if other is not server):
                        self._take_mixed_rounds(server)

    def _time_cold_starts(self, competing: Sequence[Contender]) -> list[Contender]:
        """Start each server several times and keep the last start running; returns those that started."""
        starting = list(competing)
        for turn in range(self._plan.cold_starts - 1):
            for contender in _in_turn(starting, turn):
                try:
                    seconds = self._cold_start_seconds(contender)
                except NotServing as error:
                    self._leave_out(contender, error)
                    starting.remove(contender)
                else:
                    self._cold_starts[contender.name].append(seconds)
        return starting

    def _cold_start_seconds(self, contender: Contender) -> float:
        def start() -> float:
            with answering(contender, self._served(contender), self._images.files[0]) as (_, seconds):
                return seconds

        return _attempted(start)

    @contextmanager
    def _standing_servers(self, competing: Sequence[Contender]) -> Iterator[list[Server]]:
        labels = engine_labels(self._network.h5, self._images.files[:CHECKED_IMAGES])
        with ExitStack() as standing:
            servers: list[Server] = []
            for contender in competing:
                try:
                    servers.append(_attempted(partial(self._start, contender, standing, labels)))
                except NotServing as error:
                    self._leave_out(contender, error)
            yield servers

    def _start(self, contender: Contender, standing: ExitStack, labels: Sequence[str]) -> Server:
        """Raises NotServing, also when it answers otherwise than the network does, and Mislabelled."""
        with ExitStack() as trial:
            server = self._start_and_check(contender, trial, labels)
            standing.push(trial.pop_all())
            return server

    def _start_and_check(self, contender: Contender, trial: ExitStack, labels: Sequence[str]) -> Server:
        server, seconds = trial.enter_context(
            answering(contender, self._served(contender), self._images.files[0])
        )
        self._cold_starts[contender.name].append(seconds)
        if server.network == self._network:
            share = agreement(server, self._images.files[: len(labels)], labels)
            if share < LEAST_AGREEMENT:
                raise NotServing(f"it gives {share:.0%} of the images the network's label")
        print(f"{contender.name} stands, {seconds:.1f} s from its start")
        return server

    def _served(self, contender: Contender) -> Network:
        """The published recipe's server serves the published network, whatever the others serve."""
        return NETWORKS[0] if contender.name == PUBLISHED else self._network

    def _leave_out(self, contender: Contender, error: NotServing) -> None:
        print(f"{contender.name} is left out: {error}")
        self._record.left_out.append(LeftOut(self._network.name, contender.name, str(error)))

    def _take_rounds(self, servers: Sequence[Server], restless: Sequence[Server]) -> None:
        with (
            engine_limit(self._network.h5, self._images.files) as engine,
            running_null_server() as null_server,
            load_process() as load,
        ):
            rounds = Rounds(
                self._network.name,
                servers,
                restless,
                engine,
                null_server,
                load,
                self._record.measurements,
                self._plan.seconds,
                self._plan.images,
            )
            for group in self._plan.groups:
                for turn in range(self._plan.rounds):
                    rounds.take(group, turn)

    def _note_footprints(self, servers: Sequence[Server], ready: dict[str, Memory]) -> None:
        for server in servers:
            name = server.contender.name
            self._record.footprints.append(
                Footprint(
                    self._network.name,
                    name,
                    server.contender.version,
                    tuple(self._cold_starts[name]),
                    ready[name],
                    _memory_of(server),
                )
            )

    def _take_mixed_rounds(self, server: Server) -> None:
        with load_process() as batches, load_process() as singles:
            mixed = MixedLoad(server, batches, singles, self._record.measurements, self._plan.seconds)
            for turn in range(self._plan.mixed_rounds):
                mixed.take_round(turn)
        self._record.peak_rss_mb[self._network.name] = mixed.peak_rss_mb


def _attempted(start: Callable[[], T]) -> T:
    """PyTriton's two instances do not always find each other. Raises the last NotServing."""
    for _ in range(ATTEMPTS - 1):
        with suppress(NotServing):
            return start()
    return start()


def _in_turn(competing: Sequence[Contender], turn: int) -> list[Contender]:
    return list(competing if turn % 2 == 0 else reversed(competing))


def _memory_of(server: Server) -> Memory:
    return memory(server_processes(server.process.pid))


def _chosen(names: str | None, known: Sequence[str]) -> list[str]:
    """Raises SystemExit for a name that is not known."""
    chosen = [name.strip() for name in names.split(",")] if names else list(known)
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}. There are: {', '.join(known)}.")
    return chosen


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network",
        help="names, separated by commas; by default both of this repository, others as last kept",
    )
    parser.add_argument("--only", help="servers, separated by commas; all by default")
    parser.add_argument("--images", choices=KINDS, default=AS_THEY_ARE, help="%(default)s by default")
    parser.add_argument("--rounds", type=int, help=f"{LEAST_ROUNDS} by default, 1 with --quick")
    parser.add_argument("--seconds", type=float, default=0.8, help="a window of one server in one cell")
    parser.add_argument("--quick", action="store_true", help="the first network, few cells, one round")
    parser.add_argument("--output", type=Path, help="folder for the results")
    return parser.parse_args()


def main() -> None:
    options = _parse_arguments()
    # Exit through `finally` blocks, which stop the servers: each leads its own session.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    known = contenders()
    names = _chosen(options.only, [contender.name for contender in known])
    default = NETWORKS[:1] if options.quick else NETWORKS
    networks = _chosen(
        options.network or ",".join(network.name for network in default),
        [network.name for network in (*NETWORKS, *BROUGHT)],
    )
    print(f"Load average before the run: {os.getloadavg()[0]:.1f}; others' work makes figures worthless.")
    rounds = options.rounds or (1 if options.quick else LEAST_ROUNDS)
    plan = Plan(FULL, rounds, options.seconds, cold_starts=3, mixed_rounds=rounds)
    if options.quick:
        plan = Plan(QUICK, rounds, options.seconds, cold_starts=min(rounds, 3), mixed_rounds=0)
    if options.images != AS_THEY_ARE:
        plan = plan._replace(groups=CAMERA, mixed_rounds=0, images=options.images)
    images = load_images(options.images)
    about = f"{machine()}; {images.description}"
    if not is_whole(options):
        about = f"`{_shown(options)}`; {about}"
    competing = [contender for contender in known if contender.name in names]
    measured: dict[str, Record] = {}
    for network in (*NETWORKS, *BROUGHT):
        if network.name in networks:
            record = measured[network.name] = Record(about)
            fitting = plan._replace(groups=SLOW_NETWORKS, mixed_rounds=0) if network in BROUGHT else plan
            NetworkRun(network, fitting, images, record).measure(competing)
            if is_whole(options):
                save(record, KEPT / f"{network.name}.json")
    if is_whole(options):
        measured = {network.name: record for network in NETWORKS if (record := _kept(network, about))}
    joined = Record(about)
    for record in measured.values():
        joined.add(record)
    is_complete = is_whole(options) and len(measured) == len(NETWORKS)
    if is_complete:
        write_results(joined, options.output or RESULTS)
    else:
        write_part(joined, options.output)


def _shown(options: argparse.Namespace) -> str:
    given = {name: value for name, value in vars(options).items() if value and name != "output"}
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items())


def is_whole(options: argparse.Namespace) -> bool:
    """Whether the run covers all servers and cells in enough rounds to replace the results."""
    names = set(map(str.strip, (options.network or "").split(",")))
    others = names & {network.name for network in BROUGHT}
    if others or options.quick or options.only or options.images != AS_THEY_ARE:
        return False
    return (options.rounds or LEAST_ROUNDS) >= LEAST_ROUNDS


def _kept(network: Network, about: str) -> Record | None:
    """What this run or an earlier one has kept, if it is of the same machine and images."""
    record = load(KEPT / f"{network.name}.json")
    return record if record and record.about == about else None


if __name__ == "__main__":
    main()
