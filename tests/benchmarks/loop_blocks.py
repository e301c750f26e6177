"""How long a request body blocks the event loop: python -m tests.benchmarks.loop_blocks [--only NAME].

Each round sends each body of hostile_bodies to `ext-classify serve` twice. During the first, a separate
process requests /healthz over one connection, back to back; its longest response time is about the time that
the event loop was blocked. During the second, nothing else is requested, and the CPU time of all processes of
the service is measured.

The first row, "idle", is the longest response time while no body is sent: the effect of other load on the
machine.
"""

import argparse
import multiprocessing
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.contenders import NETWORKS, ext_classify
from tests.benchmarks.footprint import cpu_seconds, server_processes
from tests.benchmarks.hostile_bodies import HOSTILE_BODIES, HostileBody
from tests.benchmarks.images import load_images
from tests.benchmarks.servers import Server, answering
from tests.benchmarks.tables import machine, write_table

TIMEOUT_SECONDS = 300.0
IDLE_SECONDS = 2.0
# What a request leaves to the event loop, such as freeing its body, counts as its own.
MARGIN_SECONDS = 0.2
_PROBE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_RECEIVED_BYTES = 65536


class Block(NamedTuple):
    """What was measured for one body."""

    status: str
    seconds: float
    """Until its answer, without concurrent probes."""
    longest_seconds: float
    """Until a probe was answered."""
    cpu_seconds: float


class Prober:
    """A process that asks /healthz back to back between begin() and end()."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders

    def begin(self) -> None:
        self._orders.send("begin")
        self._orders.recv()

    def end(self) -> float:
        """Seconds that the slowest answer took since begin()."""
        self._orders.send("end")
        longest: float | None = self._orders.recv()
        if longest is None:
            raise ConnectionError("The service closed the prober's connection.")
        return longest


@contextmanager
def running_prober(port: int) -> Iterator[Prober]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_probe_on_order, args=(port, theirs), daemon=True)
    process.start()
    try:
        yield Prober(ours)
    finally:
        process.kill()
        process.join()


def _probe_on_order(port: int, orders: Connection) -> None:
    while orders.recv() == "begin":
        with closing(socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)) as connection:
            longest: float | None = _probe(connection)
            orders.send("begun")
            while longest is not None and not orders.poll():
                found = _probe(connection)
                longest = None if found is None else max(longest, found)
        orders.recv()
        orders.send(longest)


def _probe(connection: socket.socket) -> float | None:
    """Seconds until /healthz is answered; None when the connection is closed instead."""
    began = time.perf_counter()
    connection.sendall(_PROBE)
    answer = HTTPResponse(connection)
    try:
        answer.begin()
        answer.read()
    except (OSError, HTTPException):
        return None
    finally:
        answer.close()
    return time.perf_counter() - began


def exchange(port: int, message: bytes) -> str:
    """The status of the answer to a request, or how it went without one."""
    with closing(socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)) as connection:
        with suppress(OSError):  # a service that refuses a body does not read all of it
            connection.sendall(message)
        answer = HTTPResponse(connection, method="POST")
        try:
            answer.begin()
            while answer.read(_RECEIVED_BYTES):
                pass
        except TimeoutError:
            return "timeout"
        except (OSError, HTTPException):
            return "closed"
        return str(answer.status)


def block_of(server: Server, prober: Prober, message: bytes) -> Block:
    prober.begin()
    exchange(server.port, message)
    time.sleep(MARGIN_SECONDS)
    longest = prober.end()
    cpu_before, began = _cpu_seconds(server), time.perf_counter()
    status = exchange(server.port, message)
    seconds = time.perf_counter() - began
    time.sleep(MARGIN_SECONDS)
    return Block(status, seconds, longest, _cpu_seconds(server) - cpu_before)


def idle_block(prober: Prober) -> float:
    prober.begin()
    time.sleep(IDLE_SECONDS)
    return prober.end()


def _cpu_seconds(server: Server) -> float:
    return cpu_seconds(server_processes(server.process.pid))


def table_row(name: str, sent_bytes: int, blocks: Sequence[Block]) -> list[str]:
    return [
        name,
        f"{sent_bytes / 1e6:.2f}",
        ", ".join(dict.fromkeys(block.status for block in blocks)),
        f"{statistics.median(block.seconds for block in blocks):.2f}",
        *_milliseconds([block.longest_seconds for block in blocks]),
        f"{statistics.median(block.cpu_seconds for block in blocks):.2f}",
    ]


def _milliseconds(seconds: Sequence[float]) -> list[str]:
    """The median, and the most."""
    return [f"{1000 * statistics.median(seconds):.1f}", f"{1000 * max(seconds):.1f}"]


def measure(server: Server, bodies: Sequence[HostileBody], rounds: int) -> Iterator[list[str]]:
    with running_prober(server.port) as prober:
        idle = [idle_block(prober) for _ in range(rounds)]
        yield ["idle", "–", "–", "–", *_milliseconds(idle), "–"]
        for body in bodies:
            message = body.request().message(server.contender.paths["snowflake"])
            blocks = [block_of(server, prober, message) for _ in range(rounds)]
            row = table_row(body.name, len(message), blocks)
            print(" | ".join(row), flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="send bodies only whose names contain this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", default="steel_defects", choices=[network.name for network in NETWORKS])
    parser.add_argument("--output", type=Path, help="folder for the table; by default it is only printed")
    options = parser.parse_args()
    bodies = [body for body in HOSTILE_BODIES if not options.only or options.only in body.name]
    if not bodies:
        raise SystemExit(
            f"No body's name contains {options.only!r}. There are:\n"
            + "\n".join(body.name for body in HOSTILE_BODIES)
        )
    [network] = [network for network in NETWORKS if network.name == options.network]
    with answering(ext_classify(), network, load_images().files[0]) as (server, _):
        rows = list(measure(server, bodies, options.rounds))
    write_table(
        "loop_blocks",
        ["body", "MB sent", "status", "s to answer", "loop blocked, ms, median", "most", "CPU s"],
        rows,
        command="python -m tests.benchmarks.loop_blocks",
        about=f"{options.rounds} rounds; {network.name}; {machine()}",
        folder=options.output,
    )


if __name__ == "__main__":
    main()
