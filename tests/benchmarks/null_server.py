"""A server that answers at once without classifying: the most that the load process can measure.

`python -m tests.benchmarks.null_server --port PORT`. Paths are /FORM/ROWS.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import cast

import uvloop

from tests.benchmarks.contenders import Form
from tests.running import free_port

_END_OF_HEAD = b"\r\n\r\n"
Respond = Callable[[str], bytes]


def canned_answer(form: Form, rows: int) -> bytes:
    """The body of an answer that holds `rows` labels, of about the length that ours has."""
    classes = ("Crazing", "Inclusion", "Patches", "Pitted", "Rolled", "Scratches")
    outcome = {
        "label": "Scratches",
        "confidence": 0.999259,
        "probabilities": dict.fromkeys(classes, 0.000286),
    }
    match form:
        case "snowflake":
            return json.dumps({"data": [[number, outcome] for number in range(rows)]}).encode()
        case "multipart":
            return json.dumps({"results": [outcome]}).encode()
        case "image":
            return json.dumps(outcome).encode()
        case "v2":
            labels = {"name": "label", "datatype": "BYTES", "shape": [rows, 1], "data": ["Scratches"] * rows}
            return json.dumps({"outputs": [labels]}).encode()


def response(status: int, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} Canned\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@lru_cache
def respond(path: str) -> bytes:
    """A whole response to /FORM/ROWS."""
    match path.strip("/").split("/"):
        case ["snowflake" | "image" | "multipart" | "v2" as form, rows]:
            return response(200, canned_answer(form, int(rows)))
        case _:
            return response(200, b"{}")


class NullServer(asyncio.Protocol):
    """Reads requests to their end, and answers each after `delay_seconds`."""

    def __init__(self, respond: Respond, delay_seconds: float = 0.0) -> None:
        self._respond = respond
        self._delay_seconds = delay_seconds
        self._head = bytearray()
        self._missing = 0
        self._path = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.WriteTransport, transport
        )  # uvloop's class does not inherit from asyncio's

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            self._begin_request()
        if not self._missing and self._path:
            self._answer()

    def _begin_request(self) -> None:
        head, end, beginning = self._head.partition(_END_OF_HEAD)
        if not end:
            return
        self._head.clear()
        first, *lines = head.decode("latin-1").split("\r\n")
        self._path = first.split(" ")[1]
        lengths = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
        self._missing = int(lengths[0] if lengths else 0) - len(beginning)

    def _answer(self) -> None:
        answer, self._path = self._respond(self._path), ""
        if self._delay_seconds:
            asyncio.get_running_loop().call_later(self._delay_seconds, self._transport.write, answer)
        else:
            self._transport.write(answer)


@contextmanager
def running_null_server() -> Iterator[tuple[int, int]]:
    """Its port and its process's number."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.null_server", "--port", str(port)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            yield port, process.pid
        finally:
            process.kill()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: NullServer(respond), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
