"""A door in front of Snowflake: it writes down who asks for what, and can answer in Snowflake's stead."""

import contextlib
import gzip
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from app.emulator import ACCOUNT

LOGIN = "/session/v1/login-request"
QUERY = "/queries/v1/query-request"

# What a login answers.
SESSION: dict[str, Any] = {
    "token": "session",
    "masterToken": "master",
    "validityInSeconds": 3600,
    "masterValidityInSeconds": 14_400,
    "sessionId": 1,
    "serverVersion": "9",
    "parameters": [],
    "sessionInfo": {},
    "displayUserName": "CLASSIFIER",
    "firstLogin": False,
    "healthCheckInterval": 45,
}


@dataclass(frozen=True)
class Asked:
    """One request. `path` is without its query; `body` is the JSON's."""

    path: str
    query: dict[str, list[str]]
    body: Any

    @property
    def sql(self) -> str:
        return str(self.body["sqlText"])


# Status and JSON. None: the request is forwarded to the real server, or succeeds if there is none.
Answer: TypeAlias = tuple[int, dict[str, Any]] | None


def failure(number: int, message: str = "Statement failed.", *, status: int = 200) -> Answer:
    """An error response in Snowflake's format."""
    return status, {
        "data": {"errorCode": f"{number:06d}", "sqlState": "02000"},
        "code": f"{number:06d}",
        "message": message,
        "success": False,
    }


def success(**data: Any) -> Answer:
    return 200, {"data": data, "code": None, "message": None, "success": True}


def table(*rows: list[str], width: int = 1, names: Sequence[str] = ()) -> Answer:
    """A result set of text, `width` columns wide if it is empty."""
    columns = [
        {"name": name, "type": "text", "nullable": True, "length": 1000, "byteLength": 4000,
         "precision": None, "scale": None}
        for name in names or [f"C{place}" for place in range(len(rows[0]) if rows else width)]
    ]  # fmt: skip
    return success(
        rowtype=columns, rowset=list(rows), total=len(rows), returned=len(rows), parameters=[],
        queryId="01b", queryResultFormat="json", statementTypeId=4096,
    )  # fmt: skip


@dataclass
class Front:
    """`answer` may look at each request, and block on `closing` to hang until the test is over."""

    port: int
    upstream: int | None
    answer: Callable[[Asked], Answer] = lambda _: None
    drip_seconds: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def logins(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == LOGIN]

    @property
    def statements(self) -> list[str]:
        return [asked.sql for asked in self.asked if asked.path == QUERY]

    @property
    def environment(self) -> dict[str, str]:
        """For a service that is to come through this door."""
        settings = {
            "ACCOUNT": ACCOUNT,
            "USER": "CLASSIFIER",
            "TOKEN": "any",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "PROTOCOL": "http",
        }
        return {f"EXT_CLASSIFY_SNOWFLAKE_{name}": value for name, value in settings.items()}

    def hang(self) -> Answer:
        self.closing.wait()
        return failure(1)


@contextmanager
def front(upstream: int | None = None) -> Iterator[Front]:
    """A door to the server at this port; without one, to a Snowflake that agrees to everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.front = Front(server.server_address[1], upstream)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.front  # type: ignore[attr-defined]
        finally:
            server.front.closing.set()  # type: ignore[attr-defined]
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        door: Front = self.server.front  # type: ignore[attr-defined]
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        plain = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
        url = urlsplit(self.path)
        asked = Asked(url.path, parse_qs(url.query), json.loads(plain or b"null"))
        door.asked.append(asked)
        answer = door.answer(asked)
        if answer is None and door.upstream is not None:
            self._send(*self._pass_on(door.upstream, raw))
        else:
            status, body = answer or _default(asked)
            self._send(status, json.dumps(body).encode())

    def _pass_on(self, port: int, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            connection.request("POST", self.path, body, dict(self.headers))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have disconnected
            self._write(body)

    def _write(self, body: bytes) -> None:
        """All at once, or a byte at a time."""
        door: Front = self.server.front  # type: ignore[attr-defined]
        while door.drip_seconds and body and not door.closing.wait(door.drip_seconds):
            self.wfile.write(body[:1])
            body = body[1:]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _default(asked: Asked) -> tuple[int, dict[str, Any]]:
    if asked.path == LOGIN:
        return success(**SESSION)  # type: ignore[return-value]
    return table(["1"]) if asked.path == QUERY else success()  # type: ignore[return-value]
