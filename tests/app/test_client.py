"""The client, against the real service and against one that returns errors and malformed responses."""

import base64
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import client as client_module
from app.client import PATIENCE_SECONDS, Client, ClientError, is_ready
from app.emulator import LocalServer
from tests.app.emulator.remote_service import DROP, Received, RemoteService, Reply, answer
from tests.conftest import SAMPLES
from tests.running import free_port, running_service

OUTCOME = {"label": "Pitted"}


def echoed(source: str) -> dict[str, str]:
    return {"label": source}


def echo(received: Received) -> Reply:
    """Answer each row with its source, under the number that it was sent with."""
    rows = [[number, echoed(source)] for number, source in received.rows]
    return Reply(body=json.dumps({"data": rows}).encode())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


@pytest.fixture
def service() -> Iterator[RemoteService]:
    with RemoteService() as service:
        yield service


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def without_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset no_proxy, so that only the client's own exceptions from the proxy apply."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_image_is_bytes_a_path_or_a_source(url: str) -> None:
    path = SAMPLES / "pitted.png"
    content = path.read_bytes()
    for image in (path, content, base64.b64encode(content).decode()):
        assert Client(url).classify(image)["label"] == "Pitted"


def test_evidence_is_returned_on_request(url: str) -> None:
    path = SAMPLES / "pitted.png"
    assert Client(url).classify(path)["evidence"] is None
    evidence = Client(url).classify(path, evidence=True)["evidence"]
    assert evidence is not None
    assert len(evidence["box"]) == 4


def test_outcomes_are_in_the_order_of_the_images(url: str) -> None:
    paths = sorted(SAMPLES.glob("*.png")) * 20
    outcomes = Client(url).classify_all(iter(paths), batch_rows=7)
    assert [str(outcome["label"]).lower() for outcome in outcomes] == [path.stem for path in paths]


def test_bad_image_does_not_affect_the_others(url: str) -> None:
    good = SAMPLES / "pitted.png"
    first, bad, last = Client(url).classify_all([good, b"no image", good])
    assert first["label"] == last["label"] == "Pitted"
    assert bad["error"] is not None
    assert bad["error"]["code"] == "unsupported_format"


def test_empty_list_sends_no_request(service: RemoteService) -> None:
    assert list(Client(service.origin).classify_all([])) == []
    assert service.received == []


def test_model_version_equals_that_of_the_outcomes(url: str) -> None:
    outcome = Client(url).classify(SAMPLES / "pitted.png")
    assert Client(url).model_version() == outcome["model"]["version"]
    assert Client(url).model() == outcome["model"]


@pytest.mark.parametrize("status", [403, 404])
def test_model_version_is_none_if_a_gateway_blocks_the_endpoint(service: RemoteService, status: int) -> None:
    service.respond = lambda _: Reply(status)
    assert Client(service.origin).model_version() is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": null}', b"<html>"])
def test_other_service_is_detected(service: RemoteService, body: bytes) -> None:
    service.respond = lambda _: Reply(body=body)
    with pytest.raises(ClientError, match="ext-classify service"):
        Client(service.origin).model_version()


@pytest.mark.usefixtures("quick")
def test_client_retries_with_the_same_batch_id(service: RemoteService) -> None:
    replies = iter(
        [
            Reply(503),
            DROP,
            Reply(429, b"{}", {"Retry-After": "0"}),
            Reply(202, b"{}"),
            Reply(202, b"{}"),
            Reply(404, b"{}"),  # the instance that deferred it is gone
            Reply(202, b"{}"),
            answer([OUTCOME]),
        ]
    )
    service.respond = lambda _: next(replies)
    assert Client(service.origin, api_key="k").classify("a") == OUTCOME
    methods = [received.method for received in service.received]
    assert methods == ["POST"] * 4 + ["GET"] * 2 + ["POST", "GET"]
    assert len({received.batch_id for received in service.received}) == 1
    assert {received.headers["X-API-Key"] for received in service.received} == {"k"}


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"data": [[0, {}]]}',
        b'{"data": [null, null]}',
        b'{"data": [[], []]}',
        b'{"data": [[0, {}], [1, null]]}',
        b'{"data": [[7, {}], [7, {}]]}',
        b'{"data": [[0, {}], [1, {}], [2, {}]]}',
    ],
)
def test_malformed_response_is_rejected(service: RemoteService, body: bytes) -> None:
    service.respond = lambda _: Reply(body=body)
    with pytest.raises(ClientError, match="something other than 2 outcomes"):
        list(Client(service.origin).classify_all(["a", "b"]))


def test_permanent_error_is_not_retried(service: RemoteService) -> None:
    refusal = {"error": {"code": "unauthorized", "message": "No key.", "retryable": False}}
    service.respond = lambda _: Reply(401, json.dumps(refusal).encode())
    with pytest.raises(ClientError, match=r"answered 401: unauthorized: No key\.") as refused:
        Client(service.origin).classify("a")
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert len(service.received) == 1


def test_api_key_is_not_sent_to_a_redirect_target(service: RemoteService) -> None:
    with RemoteService() as elsewhere:
        service.respond = lambda _: Reply(302, b"", {"Location": elsewhere.origin})
        for ask in (lambda c: c.classify("a"), lambda c: c.model_version()):
            with pytest.raises(ClientError, match="answered 302"):
                ask(Client(service.origin, api_key="secret"))
        assert elsewhere.received == []


class Clock:
    """The client's clock: it looks, and a hundredth of a second has passed."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(client_module, "time", clock)
    return clock


@pytest.mark.usefixtures("quick")
def test_retries_stop_after_patience_seconds(service: RemoteService, clock: Clock) -> None:
    def respond(_: Received) -> Reply:
        clock.now += 10.0
        return Reply(503)

    service.respond = respond
    with pytest.raises(ClientError, match="answered 503"):
        Client(service.origin, patience_seconds=35.0).classify("a")
    assert len(service.received) == 4


@pytest.mark.usefixtures("quick")
def test_polling_for_a_deferred_response_stops(service: RemoteService, clock: Clock) -> None:
    def respond(_: Received) -> Reply:
        clock.now += 1000.0
        return Reply(202, b"{}")

    service.respond = respond
    with pytest.raises(ClientError, match="deferred"):
        Client(service.origin).classify("a")
    assert len(service.received) == 1 + math.ceil(client_module.MAX_DEFERRED_SECONDS / 1000)


def test_unreachable_service_raises_with_advice() -> None:
    with pytest.raises(
        ClientError, match=r"does not answer \(Connection refused\); start it with: ext-classify"
    ):
        Client(f"http://127.0.0.1:{free_port()}", patience_seconds=0).classify("a")


def test_silent_service_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClientError, match="does not answer"):
            Client(f"http://127.0.0.1:{port}", timeout_seconds=0.2, patience_seconds=0).classify("a")


@pytest.mark.parametrize("body", [b"", b"<!DOCTYPE html>\n<title>Lost</title>\n<h1>No\n such page</h1>"])
def test_page_of_another_server_is_shown_as_one_line(service: RemoteService, body: bytes) -> None:
    service.respond = lambda _: Reply(404, body)
    with pytest.raises(ClientError) as refused:
        Client(service.origin).classify("a")
    said = ": Lost No such page" if body else ""
    assert str(refused.value) == f"{service.origin}/classify answered 404{said}"


def test_too_large_batch_is_split_in_half(service: RemoteService) -> None:
    def respond(received: Received) -> Reply:
        return Reply(413) if len(received.rows) > 2 else echo(received)

    service.respond = respond
    sources = [str(number) for number in range(9)]
    assert list(Client(service.origin).classify_all(sources)) == list(map(echoed, sources))


def test_single_too_large_image_does_not_affect_the_others(service: RemoteService) -> None:
    refusal = {"error": {"code": "payload_too_large", "message": "Too much.", "retryable": False}}

    def respond(received: Received) -> Reply:
        is_too_large = any(row[1] == "big" for row in received.rows)
        return Reply(413, json.dumps(refusal).encode()) if is_too_large else echo(received)

    service.respond = respond
    first, big, last = Client(service.origin).classify_all(["a", "big", "b"])
    assert (first, last) == (echoed("a"), echoed("b"))
    assert big["error"] == refusal["error"]


@pytest.mark.slow
def test_response_is_read_if_the_server_rejects_the_body_early() -> None:
    """The service closes the connection while the client is still sending 30 MB."""
    with running_service(EXT_CLASSIFY_MAX_BODY_BYTES="1000000") as url:
        good, big = Client(url).classify_all([SAMPLES / "pitted.png", b"BM" + bytes(22_000_000)])
    assert good["label"] == "Pitted"
    assert big["error"] is not None
    assert big["error"]["code"] == "payload_too_large"


def test_empty_image_has_no_content(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with running_service() as url:
        for outcome in Client(url).classify_all([b"", tmp_path / "empty.png"]):
            assert outcome["error"] is not None
            assert outcome["error"]["code"] == "corrupt_image"


def test_bytes_of_a_batch_are_limited(service: RemoteService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BATCH_BYTES", 100)
    service.respond = echo
    sources = ["a" * size for size in (60, 40, 1, 300, 1)]
    assert list(Client(service.origin).classify_all(sources)) == list(map(echoed, sources))
    assert sorted(len(received.rows) for received in service.received) == [1, 1, 1, 2]


def test_unreadable_file_is_named(service: RemoteService, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        Client(service.origin).classify(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "127.0.0.1:8000", "ftp://a", "http://", "http://[::1", "http://a b", "http://a:x"],
)
def test_url_must_be_http(url: str) -> None:
    with pytest.raises(ClientError, match="must begin with http:// or https://"):
        Client(url).classify("a")


def test_batches_are_sent_concurrently(service: RemoteService) -> None:
    """The service answers only once three requests have arrived, so sequential requests would fail."""
    meeting = threading.Barrier(3, timeout=120)

    def respond(received: Received) -> Reply:
        meeting.wait()
        return echo(received)

    service.respond = respond
    sources = list("abcdef")
    outcomes = Client(service.origin).classify_all(sources, batch_rows=2, concurrent_batches=3)
    assert list(outcomes) == list(map(echoed, sources))


def test_closed_client_sends_no_request(service: RemoteService) -> None:
    client = Client(service.origin)
    client.close("the mill is shut")
    with pytest.raises(ClientError, match="the mill is shut"):
        client.classify("a")
    assert service.received == []


def test_close_stops_pending_retries(service: RemoteService) -> None:
    service.respond = lambda _: Reply(503, b"", {"Retry-After": "60"})
    with Client(service.origin) as client:
        closing = threading.Timer(0.2, client.close)
        closing.start()
        with pytest.raises(ClientError, match="the client is closed"):
            client.classify("a")


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [True, False])
def test_closing_the_iterator_early_does_not_wait(service: RemoteService, hangs: bool) -> None:
    """It waits neither for a hanging request nor for a retry, and sends no more batches."""
    silent = threading.Event()

    def respond(received: Received) -> Reply:
        if received.rows[0][1] == "0":
            return echo(received)
        if hangs:
            silent.wait(PATIENCE_SECONDS)
        return Reply(503)

    service.respond = respond
    outcomes = Client(service.origin).classify_all(map(str, range(1000)), batch_rows=1)
    assert next(outcomes) == echoed("0")
    began = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < PATIENCE_SECONDS
    silent.set()
    assert settled(lambda: len(service.received)) < 20


def settled(count: Callable[[], int]) -> int:
    """The count once it has stopped growing."""
    before = -1
    while (now := count()) != before:
        before = now
        time.sleep(1.5)
    return now


def test_api_key_must_be_one_line_of_ascii_and_is_never_shown() -> None:
    for key in ("mill-secret\nsecond", "mill-secret-ü", "mill-secret\x00"):
        with pytest.raises(ClientError, match="one line of printable ASCII") as refused:
            Client("http://127.0.0.1:1", api_key=key).classify("a")
        assert "mill-secret" not in str(refused.value)
    with pytest.raises(ClientError, match="without a user") as refused:
        Client("http://user:mill-secret@127.0.0.1:1").classify("a")
    assert "mill-secret" not in str(refused.value)


@pytest.mark.usefixtures("without_exceptions")
def test_loopback_bypasses_the_proxy(service: RemoteService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    service.respond = echo
    assert Client(service.origin).classify("a") == echoed("a")


@pytest.mark.usefixtures("without_exceptions")
def test_proxy_is_used_for_other_hosts(service: RemoteService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", service.origin)
    service.respond = echo
    assert Client("http://mill.example").classify("a") == echoed("a")


@pytest.mark.usefixtures("without_exceptions")
@pytest.mark.parametrize(
    "proxy", ["socks5://u:mill-secret@mill", "http://u:mill-secret@[bad", "http://u:mill-secret@mill:99999"]
)
def test_invalid_proxy_is_named_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ClientError, match="http_proxy must be") as refused:
        Client("http://mill.example").classify("a")
    assert "mill-secret" not in str(refused.value)
    assert not is_ready("http://mill.example")


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that runs `serve` in a thread, with its listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listening.settimeout(120)
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def http_response(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("asks", ["classify", "model_version"])
def test_connection_that_is_closed_when_reused_is_replaced(asks: str) -> None:
    response = http_response({"data": [[0, OUTCOME]], "model": {"name": "steel", "version": "1"}})

    def serve(listening: socket.socket) -> None:
        kept, _ = listening.accept()
        with kept:
            kept.recv(65536)
            kept.sendall(response)
            kept.recv(65536)
        new, _ = listening.accept()
        with new:
            new.recv(65536)
            new.sendall(response)

    with server(serve) as url, Client(url, patience_seconds=0) as client:
        assert client.model_version() == "1"
        if asks == "classify":
            assert client.classify("a") == OUTCOME
        else:
            assert client.model_version() == "1"


def test_many_concurrent_batches_log_no_warning(
    service: RemoteService, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = threading.Barrier(40, timeout=120)

    def respond(received: Received) -> Reply:
        meeting.wait()
        return echo(received)

    service.respond = respond
    sources = [str(number) for number in range(40)]
    outcomes = Client(service.origin).classify_all(sources, batch_rows=1, concurrent_batches=40)
    assert list(outcomes) == list(map(echoed, sources))
    assert caplog.messages == []


@pytest.mark.slow
def test_slow_upload_may_take_longer_than_the_timeout() -> None:
    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            head, _, body = connection.recv(1024).partition(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            remaining = int(length.split(b":")[1]) - len(body)
            while remaining > 0 and (piece := connection.recv(256 * 1024)):
                remaining -= len(piece)
                if remaining > 6_000_000:  # less may already be in the client's socket buffer
                    time.sleep(0.05)
            connection.sendall(http_response({"data": [[0, OUTCOME]]}))

    with server(serve) as url:
        client = Client(url, timeout_seconds=1.5, patience_seconds=0)
        began = time.monotonic()
        assert client.classify("a" * 16_000_000) == OUTCOME
        assert time.monotonic() - began > 1.5


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_unknown_host_and_untrusted_certificate_are_not_retried(scheme: str) -> None:
    with LocalServer() as server:
        store = server.service_environment["EXT_CLASSIFY_ALLOWED_URL_HOSTS"].partition("/")[0]
        host = "no.such.invalid" if scheme == "http" else store
        began = time.monotonic()
        with pytest.raises(ClientError, match="does not answer") as refused:
            Client(f"{scheme}://{host}").classify("a")
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert scheme == "http" or "certificate" in str(refused.value).lower()


@pytest.mark.slow
def test_client_waits_at_least_retry_after(service: RemoteService) -> None:
    replies = iter([Reply(429, b"", {"Retry-After": "1"}), answer([OUTCOME])])
    service.respond = lambda _: next(replies)
    began = time.monotonic()
    Client(service.origin).classify("a")
    assert time.monotonic() - began >= 1
