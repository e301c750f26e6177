"""Images by URL: a service fetches them from an HTTPS server on loopback."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import trustme

from tests.conftest import SAMPLES
from tests.running import running_service

pytestmark = pytest.mark.slow


class Store(BaseHTTPRequestHandler):
    """Serves the samples under signed URLs, and one URL for each kind of failure."""

    requests: list[str] = []  # noqa: RUF012 - one store a module

    def do_GET(self) -> None:
        self.requests.append(self.path)
        name, _, signature = self.path.removeprefix("/").partition("?")
        if name == "moved":
            self._answer(302, b"", Location="/scratches.png?sig=a%2Fb")
        elif name == "inward":
            self._answer(302, b"", Location="https://127.0.0.1:1/secret")
        elif name == "large":
            self._answer(200, bytes(3_000_000))
        elif name == "page":
            self._answer(200, b"<html>sign in</html>")
        elif signature != "sig=a%2Fb":
            self._answer(403, b"denied")
        elif (SAMPLES / name).is_file():
            self._answer(200, (SAMPLES / name).read_bytes())
        else:
            self._answer(404, b"missing")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server's host and port, and the path of its CA certificate."""
    authority = trustme.CA()
    certificate = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"localhost:{server.server_address[1]}", certificate
        server.shutdown()


def classify(sources: list[str], **environment: str) -> list[Any]:
    rows = [[number, source] for number, source in enumerate(sources)]
    with running_service(**environment) as url:
        data = httpx.post(f"{url}/classify", json={"data": rows}, timeout=180).json()["data"]
    assert [number for number, _ in data] == list(range(len(sources)))
    return [outcome for _, outcome in data]


def test_each_url_has_its_outcome(store: tuple[str, Path]) -> None:
    host, certificate = store
    expected = {
        f"https://{host}/scratches.png?sig=a%2Fb": "Scratches",
        f"https://{host}/pitted.png?sig=a%2Fb": "Pitted",
        f"https://{host}/moved": "Scratches",
        f"https://{host}/scratches.png?sig=a/b": "access_denied",
        f"https://{host}/missing.png?sig=a%2Fb": "file_missing",
        f"https://{host}/page": "unsupported_format",
        f"https://{host}/large": "image_too_large",
        f"https://{host}/inward": "url_not_allowed",
        f"http://{host}/scratches.png?sig=a%2Fb": "url_not_allowed",
        "https://example.com/scratches.png": "url_not_allowed",
    }
    outcomes = classify(
        list(expected),
        EXT_CLASSIFY_ALLOWED_URL_HOSTS=host,
        EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES="true",
        EXT_CLASSIFY_MAX_IMAGE_BYTES="2000000",
        SSL_CERT_FILE=str(certificate),
    )
    answered = [outcome["label"] or outcome["error"]["code"] for outcome in outcomes]
    assert answered == list(expected.values())
    assert "sig=" not in str(outcomes)


@pytest.mark.parametrize("environment", [{}, {"EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES": "true"}])
def test_nothing_is_fetched_from_a_host_that_is_not_allowed(
    store: tuple[str, Path], environment: dict[str, str]
) -> None:
    host, certificate = store
    Store.requests.clear()
    [outcome] = classify([f"https://{host}/page"], SSL_CERT_FILE=str(certificate), **environment)
    assert outcome["error"]["code"] == "url_not_allowed"
    assert Store.requests == []


def test_nothing_is_fetched_from_a_private_address_by_default(store: tuple[str, Path]) -> None:
    host, certificate = store
    Store.requests.clear()
    environment = {"EXT_CLASSIFY_ALLOWED_URL_HOSTS": host, "SSL_CERT_FILE": str(certificate)}
    [outcome] = classify([f"https://{host}/page"], **environment)
    assert outcome["error"]["code"] == "url_not_allowed"
    assert "public" in outcome["error"]["message"]
    assert Store.requests == []
