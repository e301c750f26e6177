"""An HTTP service on loopback that answers as the test configures it, and records the requests."""

import base64
import gzip
import json
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Received:
    """One request; `body` is still compressed."""

    method: str
    headers: Message
    body: bytes

    @property
    def document(self) -> Any:
        decompress = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}
        return json.loads(decompress[self.headers["Content-Encoding"]](self.body))

    @property
    def rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = self.document["data"]
        return rows

    @property
    def batch_id(self) -> str:
        return str(self.headers["sf-external-function-query-batch-id"])

    def exact(self, name: str) -> str:
        """The decoded value of the header's base64 variant."""
        return base64.b64decode(self.headers[f"{name}-base64"]).decode()


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


DROP = Reply(0)  # close the connection without a response
Respond = Callable[[Received], Reply]


def answer(values: list[Any]) -> Reply:
    return Reply(body=json.dumps({"data": list(map(list, enumerate(values)))}).encode())


def echo(received: Received) -> Reply:
    """Answer each row with its arguments, or with its only argument."""
    return answer([row[1] if len(row) == 2 else row[1:] for row in received.rows])


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # batches come in bursts


class RemoteService:
    """Serves while the context is open. Tests may replace `respond` and clear `received`."""

    def __init__(self) -> None:
        self.respond: Respond = echo
        self.received: list[Received] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/classify"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                received = Received(self.command, self.headers, body)
                with service._lock:
                    service.received.append(received)
                reply = service.respond(received)
                self.close_connection = True
                if reply is not DROP:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.wfile.write(reply.body)

        return Handler
