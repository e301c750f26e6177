"""The measurement of a blocked event loop: its request bodies, and a server that blocks for a known time."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.benchmarks.hostile_bodies import (
    BOUNDARY,
    HOSTILE_BODIES,
    HostileBody,
    HostileRequest,
    deep_nesting,
    equal_rows,
    gzipped,
    long_file_urls,
    long_part_header,
    one_byte_chunks,
    one_row,
    small_parts,
)
from tests.benchmarks.loop_blocks import Block, exchange, idle_block, running_prober, table_row

pytestmark = pytest.mark.slow

LIMIT_BYTES = 64 * 1024 * 1024
BLOCK_SECONDS = 0.4
SERVER = f"""
import asyncio, time

async def answer(reader, writer):
    while True:
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        if head.startswith(b"POST"):
            time.sleep({BLOCK_SECONDS})
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}")

async def serve():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""
"""A POST blocks its event loop."""
CLOSING_SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    server.accept()[0].close()
"""


@contextmanager
def running_server(code: str) -> Iterator[int]:
    """Its port."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()


def test_prober_reports_how_long_the_loop_was_blocked() -> None:
    request = HostileRequest("application/json", b"").message("/classify")
    with running_server(SERVER) as port, running_prober(port) as prober:
        prober.begin()
        assert exchange(port, request) == "200"
        longest_seconds = prober.end()
        assert longest_seconds >= 0.5 * BLOCK_SECONDS
        prober.begin()
        assert prober.end() != longest_seconds, "each round reports its own longest answer"


def test_prober_that_loses_its_connection_reports_no_figure() -> None:
    with running_server(CLOSING_SERVER) as port:
        with running_prober(port) as prober, pytest.raises(ConnectionError, match="closed"):
            idle_block(prober)
        assert exchange(port, b"POST / HTTP/1.1\r\n\r\n") == "closed"


def test_row_of_the_table_holds_medians_and_the_longest_block() -> None:
    blocks = [Block("200", 1.0, seconds, 0.5) for seconds in (0.001, 0.002, 0.5)]
    assert table_row("a body", 62_000_000, blocks) == [
        "a body",
        "62.00",
        "200",
        "1.00",
        "2.0",
        "500.0",
        "0.50",
    ]


@pytest.mark.parametrize("body", HOSTILE_BODIES, ids=lambda body: body.name)
def test_body_is_near_its_size_and_within_the_limit(body: HostileBody) -> None:
    """Made small, for speed: what is too large is refused before it is parsed, and would measure nothing."""
    assert body.size_bytes <= LIMIT_BYTES
    small = 1_000_000
    request = body.make(small)
    plain = gzip.decompress(request.body) if request.is_gzipped else request.body
    if request.is_chunked:
        assert len(plain) // 6 == pytest.approx(small, rel=0.01)
    elif body.make is small_parts:
        assert small < len(plain) < 2 * small
    else:
        assert 0.9 * small < len(plain) < 1.1 * small


def test_batches_hold_the_rows_that_they_name() -> None:
    urls = json.loads(long_file_urls(b"%22.", 60_000, count=10).body)["data"]
    assert [number for number, _ in urls] == list(range(10))
    assert all(url.endswith("/api/files/" + "%22." * 1500) for _, url in urls)
    rows = json.loads(equal_rows(4, b"QUJD", 400).body)["data"]
    assert rows == [[number, "QUJD" * 25] for number in range(4)]
    [[_, quotes]] = json.loads(gzip.decompress(gzipped(partial(one_row, rb"\":"), 300).body))["data"]
    assert quotes == '":' * 100
    assert deep_nesting(6).body == b'{"data":[[[]]]}'


def test_forms_and_chunks_are_framed_as_they_must_be() -> None:
    assert small_parts(40, count=4).body.count(b"--" + BOUNDARY) == 5
    header, content = long_part_header(100).body.split(b"\r\n\r\n")
    assert header.endswith(b"a" * 50)
    assert content.startswith(b"A" * 50 + b"\r\n--" + BOUNDARY + b"--")
    message = one_byte_chunks(2).message("/classify")
    head, _, chunks = message.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    assert b"".join(chunks.split(b"\r\n")[1::2]) == b'{"data":[[0,"AA"]]}'
    assert chunks.endswith(b"\r\n0\r\n\r\n")
