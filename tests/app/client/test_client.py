"""Both clients, against the real service, and against one that answers as it should not."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.client import Client, ClientError, Image, conversation
from app.client.asynchronous import AsyncClient
from app.outcome import Outcome
from tests.app.snowflake.local.remote_service import DROP, Received, RemoteService, Reply, answer
from tests.conftest import SAMPLES
from tests.running import free_port, running_service

OUTCOME = {"label": "Pitted"}
_Result = TypeVar("_Result")


class Blocking:
    """Client, as it is."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._client = Client(url, **settings)

    def classify(self, image: Image, *, evidence: bool = False) -> Outcome:
        return self._client.classify(image, evidence=evidence)

    def classify_all(self, images: Any, **how: Any) -> list[Outcome]:
        return list(self._client.classify_all(images, **how))

    def model_version(self) -> str | None:
        return self._client.model_version()


class Asynchronous:
    """AsyncClient, an event loop a call."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._url, self._settings = url, settings

    def classify(self, image: Image, *, evidence: bool = False) -> Outcome:
        return self._run(lambda client: client.classify(image, evidence=evidence))

    def classify_all(self, images: Any, **how: Any) -> list[Outcome]:
        async def collect(client: AsyncClient) -> list[Outcome]:
            return [outcome async for outcome in client.classify_all(images, **how)]

        return self._run(collect)

    def model_version(self) -> str | None:
        return self._run(lambda client: client.model_version())

    def _run(self, ask: Callable[[AsyncClient], Awaitable[_Result]]) -> _Result:
        async def asking() -> _Result:
            async with AsyncClient(self._url, **self._settings) as client:
                return await ask(client)

        return asyncio.run(asking())


AnyClient = type[Blocking] | type[Asynchronous]
each_client = pytest.mark.parametrize("client", [Blocking, Asynchronous])


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
    monkeypatch.setattr(conversation, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(conversation, "LONGEST_PAUSE_SECONDS", 0.01)


@each_client
def test_an_image_is_bytes_a_file_or_what_names_it(client: AnyClient, url: str) -> None:
    path = SAMPLES / "pitted.png"
    content = path.read_bytes()
    for image in (path, content, base64.b64encode(content).decode()):
        assert client(url).classify(image)["label"] == "Pitted"


@each_client
def test_evidence_comes_where_it_is_asked_for(client: AnyClient, url: str) -> None:
    path = SAMPLES / "pitted.png"
    assert client(url).classify(path)["evidence"] is None
    evidence = client(url).classify(path, evidence=True)["evidence"]
    assert evidence is not None
    assert len(evidence["box"]) == 4


@each_client
def test_outcomes_are_in_the_order_of_the_images(client: AnyClient, url: str) -> None:
    paths = sorted(SAMPLES.glob("*.png")) * 20
    outcomes = client(url).classify_all(iter(paths), batch_rows=7)
    assert [str(outcome["label"]).lower() for outcome in outcomes] == [path.stem for path in paths]


@each_client
def test_bad_image_costs_no_other(client: AnyClient, url: str) -> None:
    good = SAMPLES / "pitted.png"
    first, bad, last = client(url).classify_all([good, b"no image", good])
    assert first["label"] == last["label"] == "Pitted"
    assert bad["error"] is not None
    assert bad["error"]["code"] == "unsupported_format"


@each_client
def test_no_image_is_asked_for_nothing(client: AnyClient, service: RemoteService) -> None:
    assert client(service.origin).classify_all([]) == []
    assert service.received == []


@each_client
def test_version_is_that_of_the_network(client: AnyClient, url: str) -> None:
    outcome = client(url).classify(SAMPLES / "pitted.png")
    assert client(url).model_version() == outcome["model"]["version"]


@each_client
@pytest.mark.parametrize("status", [403, 404])
def test_version_is_unknown_where_a_gateway_lets_nobody_ask(
    client: AnyClient, service: RemoteService, status: int
) -> None:
    service.respond = lambda _: Reply(status)
    assert client(service.origin).model_version() is None


@each_client
@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": null}', b"<html>"])
def test_what_is_no_service_of_ours_is_found_out(
    client: AnyClient, service: RemoteService, body: bytes
) -> None:
    service.respond = lambda _: Reply(body=body)
    with pytest.raises(ClientError, match="is no ext-classify service"):
        client(service.origin).model_version()


@each_client
@pytest.mark.usefixtures("quick")
def test_client_is_patient_and_keeps_its_batch_id(client: AnyClient, service: RemoteService) -> None:
    replies = iter(
        [
            Reply(503),
            DROP,
            Reply(429, b"{}", {"Retry-After": "0"}),
            Reply(202, b"{}"),
            Reply(202, b"{}"),
            Reply(404, b"{}"),  # whoever has promised it is gone
            Reply(202, b"{}"),
            answer([OUTCOME]),
        ]
    )
    service.respond = lambda _: next(replies)
    assert client(service.origin, api_key="k").classify("a") == OUTCOME
    asked = [received.method for received in service.received]
    assert asked == ["POST"] * 4 + ["GET"] * 2 + ["POST", "GET"]
    assert len({received.batch_id for received in service.received}) == 1
    assert {received.headers["X-API-Key"] for received in service.received} == {"k"}


@each_client
@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"data": [[0, {}]]}', b'{"data": [null, null]}', b"null"])
def test_answer_of_something_else_is_no_answer(
    client: AnyClient, service: RemoteService, body: bytes
) -> None:
    service.respond = lambda _: Reply(body=body)
    with pytest.raises(ClientError, match="something other than 2 outcomes"):
        client(service.origin).classify_all(["a", "b"])


@each_client
def test_what_would_be_refused_again_is_not_repeated(client: AnyClient, service: RemoteService) -> None:
    refusal = {"error": {"code": "unauthorized", "message": "No key.", "retryable": False}}
    service.respond = lambda _: Reply(401, json.dumps(refusal).encode())
    with pytest.raises(ClientError, match=r"answered 401: unauthorized: No key\.") as refused:
        client(service.origin).classify("a")
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert len(service.received) == 1


@each_client
def test_key_follows_no_redirect(client: AnyClient, service: RemoteService) -> None:
    with RemoteService() as elsewhere:
        service.respond = lambda _: Reply(302, b"", {"Location": elsewhere.origin})
        for ask in (lambda c: c.classify("a"), lambda c: c.model_version()):
            with pytest.raises(ClientError, match="answered 302"):
                ask(client(service.origin, api_key="secret"))
        assert elsewhere.received == []


@each_client
@pytest.mark.usefixtures("quick")
def test_patience_has_an_end(client: AnyClient, service: RemoteService) -> None:
    service.respond = lambda _: Reply(503)
    began = time.monotonic()
    with pytest.raises(ClientError, match="answered 503"):
        client(service.origin, patience_seconds=0.3).classify("a")
    assert time.monotonic() - began < 10
    assert len(service.received) > 1


@each_client
def test_service_that_is_not_there_is_said_to_be_so(client: AnyClient) -> None:
    with pytest.raises(ClientError, match=r"does not answer .* start it with: ext-classify serve"):
        client(f"http://127.0.0.1:{free_port()}", patience_seconds=0).classify("a")


@each_client
def test_service_that_says_nothing_is_not_waited_for_without_end(client: AnyClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ClientError, match="does not answer"):
            client(f"http://127.0.0.1:{port}", timeout_seconds=0.2, patience_seconds=0).classify("a")


@each_client
def test_what_is_too_large_goes_in_halves(client: AnyClient, service: RemoteService) -> None:
    def respond(received: Received) -> Reply:
        return Reply(413) if len(received.rows) > 2 else answer([row[1] for row in received.rows])

    service.respond = respond
    sources = [str(number) for number in range(9)]
    assert client(service.origin).classify_all(sources) == sources
    service.respond = lambda _: Reply(413)
    with pytest.raises(ClientError, match="answered 413"):
        client(service.origin).classify("a")


@each_client
def test_bytes_of_a_request_are_bounded(
    client: AnyClient, service: RemoteService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "BATCH_BYTES", 100)
    service.respond = lambda received: answer([len(row[1]) for row in received.rows])
    assert client(service.origin).classify_all(["a" * size for size in (60, 40, 1, 300, 1)]) == [
        60,
        40,
        1,
        300,
        1,
    ]
    assert sorted(len(received.rows) for received in service.received) == [1, 1, 1, 2]


@each_client
def test_file_that_cannot_be_read_is_named(client: AnyClient, service: RemoteService, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        client(service.origin).classify(tmp_path / "gone.png")


@each_client
@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "127.0.0.1:8000", "ftp://a", "http://", "http://[::1", "http://a b", "http://a:x"],
)
def test_url_is_one_of_http(client: AnyClient, url: str) -> None:
    with pytest.raises(ClientError, match="must begin with http:// or https://"):
        client(url).classify("a")


def test_batches_travel_side_by_side(service: RemoteService) -> None:
    """Three wait for each other at the service, which one after another would do for ever."""
    meeting = threading.Barrier(3, timeout=30)

    def respond(received: Received) -> Reply:
        meeting.wait()
        return answer([row[1] for row in received.rows])

    service.respond = respond
    sources = list("abcdef")
    for client in (Blocking, Asynchronous):
        asked = client(service.origin).classify_all(sources, batch_rows=2, concurrent_batches=3)
        assert asked == sources


def test_closed_client_leaves_off(service: RemoteService) -> None:
    client = Client(service.origin)
    client.close()
    service.respond = lambda _: Reply(503)
    with pytest.raises(ClientError, match="was given up: it answered 503"):
        client.classify("a")
    assert len(service.received) == 1


def test_whoever_leaves_early_leaves_nothing_running(service: RemoteService) -> None:
    service.respond = lambda received: answer([row[1] for row in received.rows])
    outcomes = Client(service.origin).classify_all(map(str, range(1000)), batch_rows=1)
    assert next(outcomes) == "0"
    outcomes.close()  # type: ignore[attr-defined]
    assert threading.active_count() < 20
    assert len(service.received) < 100
