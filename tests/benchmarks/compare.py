"""Compare two services: python -m tests.benchmarks.compare OLD NEW, or --routed [--rounds N] [--seconds S].

OLD and NEW are checkouts of this project: `git worktree add ../before COMMIT` makes one. With --routed, the
service of this checkout is compared with itself where FastAPI routes POST /classify (routed_service).

Each round starts both services, in alternating order, and loads one while the other is suspended. Prints, for
each figure, both medians and the ratio of the second service to the first, with the lowest and the highest
ratio of all rounds.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.contenders import NETWORKS, Contender, Form, Network, ext_classify
from tests.benchmarks.footprint import memory, server_processes
from tests.benchmarks.images import load_images
from tests.benchmarks.load import Job
from tests.benchmarks.load_process import LoadProcess, load_process
from tests.benchmarks.servers import Server, answering, suspended
from tests.benchmarks.tables import machine, write_table

ROOT = Path(__file__).parents[2]


class Load(NamedTuple):
    name: str
    form: Form
    rows: int
    connections: int


LOADS = (
    Load("64 rows", "snowflake", 64, 3),
    Load("1 row", "snowflake", 1, 8),
    Load("raw image", "image", 1, 8),
)

Figures = dict[str, list[float]]


def measure_round(
    services: Sequence[Contender], network: Network, load: LoadProcess, seconds: float, found: list[Figures]
) -> None:
    """Start and load each service once; append its figures to `found`, in the order of `services`."""
    image = load_images().files[0]
    with ExitStack() as exits:
        servers: list[Server] = []
        for service, figures in zip(services, found, strict=True):
            server, start_seconds = exits.enter_context(answering(service, network, image))
            figures["start, s"].append(start_seconds)
            servers.append(server)
        for kind in LOADS:
            for server, figures in zip(servers, found, strict=True):
                with suspended([other for other in servers if other is not server]):
                    _measure(server, load, kind, seconds, figures)
        for server, figures in zip(servers, found, strict=True):
            figures["memory, MB"].append(memory(server_processes(server.process.pid)).pss)


def _measure(server: Server, load: LoadProcess, kind: Load, seconds: float, figures: Figures) -> None:
    pid = server.process.pid
    job = Job(server.port, "/classify", kind.form, kind.rows, seconds, kind.connections, watched_pid=pid)
    report = load.run(job)
    if report.errors:
        raise SystemExit(f"{server.contender.name}: {report.errors}, {report.first_error}")
    figures[f"{kind.name}: images/s"].append(report.images_per_second)
    figures[f"{kind.name}: CPU ms/image"].append(1000 * report.server_cpu_seconds / report.images)
    figures[f"{kind.name}: p50, ms"].append(report.p50_ms or 0.0)


def _service(checkout: Path, module: str = "app.cli", name: str | None = None) -> Contender:
    command = (
        str(ROOT / ".venv/bin/python"),
        "-P",
        "-m",
        module,
        "serve",
        "--port",
        "{port}",
        "--model",
        "{h5}",
    )
    environment = {"PYTHONPATH": str(checkout)}
    return replace(
        ext_classify(), name=name or checkout.name, template=command, cwd=checkout, fixed=environment
    )


def _table(found: Sequence[Figures]) -> list[list[str]]:
    rows = []
    for name, old in found[0].items():
        new = found[1][name]
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        middle = statistics.median(ratios)
        medians = [f"{statistics.median(values):,.2f}" for values in (old, new)]
        rows.append([name, *medians, f"{middle:.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="CHECKOUT")
    parser.add_argument("--routed", action="store_true", help="compare with POST /classify routed by FastAPI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of each load (default %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.routed:
        direct = _service(ROOT, name="direct")
        services = [direct, _service(ROOT, "tests.benchmarks.routed_service", "routed by FastAPI")]
    elif len(arguments.checkouts) == 2:
        services = [_service(path.resolve()) for path in arguments.checkouts]
    else:
        parser.error("two checkouts, or --routed")
    found: list[Figures] = [defaultdict(list) for _ in services]
    with load_process() as load:
        for number in range(arguments.rounds):
            order = slice(None, None, -1 if number % 2 else 1)
            measure_round(services[order], NETWORKS[1], load, arguments.seconds, found[order])
    write_table(
        "compare",
        ["", *(service.name for service in services), "ratio", "lowest to highest"],
        _table(found),
        command="python -m tests.benchmarks.compare",
        about=f"{NETWORKS[1].name}, {arguments.rounds} rounds; {machine()}",
        folder=None,
    )


if __name__ == "__main__":
    main()
