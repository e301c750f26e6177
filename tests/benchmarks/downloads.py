"""Compare HTTP clients over the same downloads: python -m tests.benchmarks.downloads.

Each client downloads 256 images of 20 to 40 kB over TLS, 64 at a time, from a store on this machine that
delays its responses. A turn opens the client, downloads all images over new connections, then all again over
kept-alive ones. The store runs in its own process, so CPU time is the client's alone. Rounds are interleaved,
forwards and backwards, so that other load on the machine slows all clients alike.
"""

import argparse
import asyncio
import http.client
import multiprocessing
import ssl
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import httpx2 as httpx
import numpy as np
import trustme
import urllib3
import uvloop

from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings
from tests.benchmarks.tables import write_table

AT_ONCE, AT_A_TIME = 256, 64
OURS = "ext-classify (aiohttp)"
Download = Callable[[list[str]], list[bytes]]
Fetch = Callable[[str], Awaitable[bytes]]


def made_files(count: int) -> dict[str, bytes]:
    """Bytes by path; what is in them is the same to a client."""
    random = np.random.default_rng(seed=0)
    return {f"/{i}.png": random.bytes(int(random.integers(20_000, 40_000))) for i in range(count)}


class Store(asyncio.Protocol):
    """As little of an https server as keeps a client busy."""

    def __init__(self, answers: Mapping[bytes, bytes], think_seconds: float) -> None:
        self._answers = answers
        self._think_seconds = think_seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self._received = (self._received + data).split(b"\r\n\r\n")
        for head in heads:
            path = head.split(b" ", 2)[1]
            asyncio.get_running_loop().call_later(self._think_seconds, self._answer, self._answers[path])

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


def serve(pem: bytes, files: Mapping[str, bytes], think_seconds: float, port: Connection) -> None:
    """Serve until the process is stopped; sends its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(pem).tempfile() as certificate:
        context.load_cert_chain(certificate)
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n"
    answers = {path.encode(): head.format(len(body)).encode() + body for path, body in files.items()}

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Store(answers, think_seconds), "127.0.0.1", 0, ssl=context, backlog=AT_ONCE
        )
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


@contextmanager
def running_store(files: Mapping[str, bytes], think_seconds: float) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Its port, and a context that trusts its certificate."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    pem = certificate.private_key_and_cert_chain_pem.bytes()
    process = spawn.Process(target=serve, args=(pem, files, think_seconds, there), daemon=True)
    process.start()
    try:
        yield here.recv(), context
    finally:
        process.terminate()
        process.join()


@asynccontextmanager
async def ours(port: int, context: ssl.SSLContext) -> AsyncIterator[Fetch]:
    settings = Settings(
        allowed_url_hosts=(f"localhost:{port}",),
        allow_private_addresses=True,
        max_concurrent_fetches=AT_A_TIME,
    )
    async with ImageFetcher(settings, ssl_context=context) as fetcher:
        yield lambda url: fetcher.fetch(Url(url))


@asynccontextmanager
async def bare_aiohttp(_: int, context: ssl.SSLContext) -> AsyncIterator[Fetch]:
    connector = aiohttp.TCPConnector(limit=AT_A_TIME, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def fetch(url: str) -> bytes:
            async with session.get(url) as response:
                return await response.read()

        yield fetch


@asynccontextmanager
async def bare_httpx(_: int, context: ssl.SSLContext) -> AsyncIterator[Fetch]:
    limits = httpx.Limits(max_connections=AT_A_TIME, max_keepalive_connections=AT_A_TIME)
    async with httpx.AsyncClient(verify=context, limits=limits, timeout=60) as client:

        async def fetch(url: str) -> bytes:
            return (await client.get(url)).content

        yield fetch


Open = Callable[[int, ssl.SSLContext], AbstractAsyncContextManager[Fetch]]


@contextmanager
def in_uvloop(open_client: Open, port: int, context: ssl.SSLContext) -> Iterator[Download]:
    """As the service runs."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        client: AbstractAsyncContextManager[Fetch]

        async def start() -> Fetch:
            nonlocal client
            client = open_client(port, context)
            return await client.__aenter__()

        async def download(urls: list[str]) -> list[bytes]:
            return await asyncio.gather(*map(fetch, urls))

        async def stop() -> None:
            await client.__aexit__(None, None, None)

        fetch = runner.run(start())
        yield lambda urls: runner.run(download(urls))
        runner.run(stop())


@contextmanager
def urllib3_in_threads(_: int, context: ssl.SSLContext) -> Iterator[Download]:
    with (
        urllib3.PoolManager(1, maxsize=AT_A_TIME, block=True, ssl_context=context) as pool,
        ThreadPoolExecutor(AT_A_TIME) as threads,
    ):
        yield lambda urls: list(threads.map(lambda url: pool.request("GET", url, retries=False).data, urls))


@contextmanager
def http_client_in_threads(port: int, context: ssl.SSLContext) -> Iterator[Download]:
    local = threading.local()
    opened: list[http.client.HTTPSConnection] = []

    def fetch(url: str) -> bytes:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPSConnection("localhost", port, context=context)
            opened.append(local.connection)
        local.connection.request("GET", urlsplit(url).path)
        content: bytes = local.connection.getresponse().read()
        return content

    with ThreadPoolExecutor(AT_A_TIME) as threads:
        yield lambda urls: list(threads.map(fetch, urls))
    for connection in opened:
        connection.close()


CLIENTS: dict[str, Callable[[int, ssl.SSLContext], AbstractContextManager[Download]]] = {
    OURS: partial(in_uvloop, ours),
    "aiohttp": partial(in_uvloop, bare_aiohttp),
    "httpx2": partial(in_uvloop, bare_httpx),
    "urllib3, 64 threads": urllib3_in_threads,
    "http.client, 64 threads": http_client_in_threads,
}


class Turn(NamedTuple):
    new_rate: float
    kept_rate: float
    kept_cpu_ms: float


def take_turn(name: str, port: int, context: ssl.SSLContext, files: Mapping[str, bytes]) -> Turn:
    paths = [list(files)[i % len(files)] for i in range(AT_ONCE)]
    expected = [files[path] for path in paths]
    urls = [f"https://localhost:{port}{path}" for path in paths]
    with CLIENTS[name](port, context) as download:
        new_seconds, _ = timed(download, urls, expected)
        kept = [timed(download, urls, expected) for _ in range(3)]
    kept_seconds, cpu_seconds = (sum(spent) / len(kept) for spent in zip(*kept, strict=True))
    return Turn(AT_ONCE / new_seconds, AT_ONCE / kept_seconds, 1000 * cpu_seconds / AT_ONCE)


def timed(download: Download, urls: list[str], expected: list[bytes]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's CPU."""
    started, cpu_started = time.perf_counter(), time.process_time()
    contents = download(urls)
    spent = time.perf_counter() - started, time.process_time() - cpu_started
    if contents != expected:
        raise ValueError("A client must bring what the store holds.")
    return spent


def summary(turns: list[Turn], baseline: list[Turn], column: int) -> list[str]:
    """Median with its ratio to the baseline's of the same round, and the range."""
    digits = 2 if Turn._fields[column].endswith("_ms") else 0
    found = [turn[column] for turn in turns]
    ratio = statistics.median(a[column] / b[column] for a, b in zip(turns, baseline, strict=True))
    return [
        f"{statistics.median(found):.{digits}f} ({ratio:.2f}x)",
        f"{min(found):.{digits}f} to {max(found):.{digits}f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--think-ms", type=float, default=30.0, help="what the store takes to answer")
    options = parser.parse_args()
    files = made_files(16)
    turns: dict[str, list[Turn]] = {name: [] for name in CLIENTS}
    with running_store(files, options.think_ms / 1000) as (port, context):
        for name in CLIENTS:
            take_turn(name, port, context, files)
        for turn in range(options.rounds):
            for name in list(CLIENTS) if turn % 2 == 0 else reversed(CLIENTS):
                turns[name].append(take_turn(name, port, context, files))
    rows = [
        [name, *(cell for column in range(3) for cell in summary(found, turns[OURS], column))]
        for name, found in turns.items()
    ]
    header = ["client", "images/s, new connections", "range", "images/s, kept connections", "range"]
    write_table("downloads", [*header, "CPU-ms an image, kept connections", "range"], rows)


if __name__ == "__main__":
    main()
