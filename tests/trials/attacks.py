"""python -m tests.trials.attacks: the service in 1 GiB of memory, attacked while a client classifies images.

Needs Linux, and root to make a control group. Each attack runs for a minute from processes of its own.
"""

import argparse
import contextlib
import multiprocessing
import os
import socket
import statistics
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.app.workers.costly_jpeg import costly_jpeg
from tests.benchmarks.hostile_bodies import HOSTILE_BODIES, gzipped, one_row
from tests.running import logging_service, wait_until

GROUPS = Path("/sys/fs/cgroup/memory")
SAMPLE = Path(__file__).parents[2] / "model" / "samples" / "scratches.png"
CONNECTIONS = 8
# The attackers' own CPU time must not delay the client.
ATTACKER_NICENESS = 15
HOST = b"Host: 127.0.0.1\r\n"
_CLASSIFY = b"POST /classify HTTP/1.1\r\n" + HOST
_JSON = _CLASSIFY + b"Content-Type: application/json\r\n"

Attack = Callable[[int], None]


def send_and_wait(port: int, *pieces: bytes, wait_seconds: float = 5.0) -> None:
    """Sends on a connection of its own, and ignores errors."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as sent:
        for piece in pieces:
            sent.sendall(piece)
        sent.settimeout(wait_seconds)
        while sent.recv(1 << 20):
            pass


def trailers(port: int) -> None:
    head = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    send_and_wait(port, head, *[b"a:b\r\n" * 200_000] * 100)


def chunk_extensions(port: int) -> None:
    head = _CLASSIFY + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    send_and_wait(port, head, *[b"1;" + b"x" * 1_000_000] * 100)


def one_byte_chunks(port: int) -> None:
    head = _CLASSIFY + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    send_and_wait(port, head, *[b"1\r\nx\r\n" * 200_000] * 50)


def unread_pipeline(port: int) -> None:
    """Requests whose answers the client does not read."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as deaf:
        for _ in range(100):
            deaf.sendall((b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 5000)


def half_open_heads(port: int) -> None:
    head = b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 60_000
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)).sendall(head)
        time.sleep(3)


def upgrades(port: int) -> None:
    inner = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    for upgrade in (b"h2c", b"websocket"):
        head = _CLASSIFY + b"Content-Type: image/png\r\nConnection: Upgrade\r\nUpgrade: " + upgrade
        length = b"\r\nContent-Length: %d\r\n\r\n" % (1000 * len(inner))
        send_and_wait(port, head + length, inner * 1000, wait_seconds=1)


def garbage(port: int) -> None:
    for _ in range(200):
        send_and_wait(port, os.urandom(2000), wait_seconds=1)
        send_and_wait(port, _JSON + b"Content-Length: 200\r\n\r\n" + os.urandom(200), wait_seconds=1)


def slow_bodies(port: int) -> None:
    """All but the last megabyte at full speed, and the rest never."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(_JSON + b"Content-Length: 67108864\r\n\r\n" + b'{"data":[[0,"')
        slow.sendall(b"A" * 66_000_000)
        for _ in range(30):
            time.sleep(1)
            slow.sendall(b"A")


def gzip_batches(port: int) -> None:
    request = gzipped(lambda size: one_row(b"QUJD", size), 60_000_000)
    send_and_wait(port, request.message("/classify"), wait_seconds=30)


def costly_images(port: int) -> None:
    text = b64encode(costly_jpeg())
    body = b'{"data":[%b]}' % b",".join(b'[%d,"%b"]' % (number, text) for number in range(64))
    send_and_wait(
        port, _JSON + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body), body, wait_seconds=60
    )


def hostile_texts(port: int) -> None:
    for hostile in HOSTILE_BODIES:
        if "gzip" in hostile.name or "form" in hostile.name:
            send_and_wait(port, hostile.request().message("/classify"), wait_seconds=30)


def hostile_urls(port: int) -> None:
    for hostile in HOSTILE_BODIES:
        if "URLs" in hostile.name:
            send_and_wait(port, hostile.request().message("/classify"), wait_seconds=30)


ATTACKS: tuple[tuple[Attack, int], ...] = (
    (trailers, CONNECTIONS),
    (chunk_extensions, CONNECTIONS),
    (one_byte_chunks, CONNECTIONS),
    (unread_pipeline, 32),
    (half_open_heads, 8),
    (upgrades, CONNECTIONS),
    (garbage, CONNECTIONS),
    (slow_bodies, 4),
    (gzip_batches, CONNECTIONS),
    (costly_images, 1),
    (hostile_texts, 2),
    (hostile_urls, 1),
)


def repeat(attack: Attack, port: int) -> None:
    os.nice(ATTACKER_NICENESS)
    while True:
        attack(port)


@contextlib.contextmanager
def attacked(attack: Attack, port: int, attackers: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=repeat, args=(attack, port)) for _ in range(attackers)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


class Told(NamedTuple):
    """The answers to a client that sends one image after the other."""

    answers: Counter[str]
    seconds: list[float]


def ask_for(port: int, seconds: float, image: bytes) -> Told:
    answers: Counter[str] = Counter()
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/classify", image, {"Content-Type": "image/png"})
            answers[str(connection.getresponse().status)] += 1
        except (OSError, HTTPException) as error:
            answers[type(error).__name__] += 1
        finally:
            connection.close()
        took.append(time.perf_counter() - began)
        time.sleep(0.02)
    return Told(answers, took)


class Group:
    """A control group with a limit on its memory (cgroup v1)."""

    def __init__(self, max_bytes: int) -> None:
        self._folder = GROUPS / f"ext-classify-{os.getpid()}"
        self._folder.mkdir()
        (self._folder / "memory.limit_in_bytes").write_text(str(max_bytes))

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    def peak_megabytes(self) -> float:
        return int((self._folder / "memory.max_usage_in_bytes").read_text()) / 1e6

    def remove(self) -> None:
        wait_until(lambda: not (self._folder / "cgroup.procs").read_text())
        self._folder.rmdir()


def try_attack(attack: Attack, attackers: int, seconds: float, max_bytes: int) -> str:
    image, group = SAMPLE.read_bytes(), Group(max_bytes)
    environment = {"EXT_CLASSIFY_LOG_LEVEL": "warning"}
    with (
        TemporaryDirectory() as folder,
        logging_service(Path(folder) / "log", **environment) as (service, port),
    ):
        group.add(service.pid)  # and so all that it starts from now on
        wait_until(lambda: ask_for(port, 0.01, image).answers["200"] > 0)
        before = ask_for(port, 5, image)
        with attacked(attack, port, attackers):
            during = ask_for(port, seconds, image)
        after = ask_for(port, 2, image)
        assert service.poll() is None, f"{attack.__name__} ended the service"
        assert after.answers["200"] > 0, f"the service answers nobody after {attack.__name__}"
        log_bytes = (Path(folder) / "log").stat().st_size
        peak = group.peak_megabytes()
    group.remove()
    return describe(attack.__name__, before, during, peak, log_bytes)


def describe(name: str, before: Told, during: Told, peak: float, log_bytes: int) -> str:
    answered = during.answers["200"] / during.answers.total()
    rest = {answer: count for answer, count in during.answers.items() if answer != "200"}
    return (
        f"| {name.replace('_', ' ')} | {answered:.1%} | {rest or '–'} | {milliseconds(before)} | "
        f"{milliseconds(during)} | {peak:.0f} | {log_bytes / 1000:.0f} |"
    )


def milliseconds(told: Told) -> str:
    cuts = statistics.quantiles(told.seconds, n=100)
    return f"{1000 * cuts[49]:.0f} / {1000 * cuts[98]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [attack.__name__ for attack, _ in ATTACKS]
    parser.add_argument("names", nargs="*", choices=[[], *names], help="(default: all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each attack (default: 60)")
    parser.add_argument("--memory", type=float, default=1.0, help="of the service, in GiB (default: 1)")
    options = parser.parse_args()
    print("| attack | client answered | else | ms before, p50 / p99 | during | MB at most | kB of log |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for attack, attackers in ATTACKS:
        if not options.names or attack.__name__ in options.names:
            max_bytes = int(options.memory * 2**30)
            print(try_attack(attack, attackers, options.seconds, max_bytes), flush=True)


if __name__ == "__main__":
    main()
