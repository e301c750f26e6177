"""The memory for bodies and responses over the life of a request."""

import asyncio
import gzip
import json
import os
import select
import socket
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from sys import getsizeof
from threading import Barrier
from traceback import walk_tb
from typing import cast

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from app.admission import Admission, PendingBody, PendingBytes
from app.api.body import arriving_within, inflate
from app.api.classify import PIECE_BYTES, LargeResponse, Probes, RowClassifier, json_response
from app.batches.batches import SentBatch
from app.errors import AnswerTooLarge, BodyTimeout, MalformedBody, Overloaded, ServiceError
from app.event_loop import BulkTurn
from app.images.source import ROW_BYTES, Row, Url
from app.outcome import ClassifiedRows, Steps
from app.pipeline import Pipeline
from app.settings import Settings
from app.snowflake.wire import format_batch
from app.workers.queue import Capacity, RowQueue
from tests.app.forms import text_of
from tests.app.turns import turns_during
from tests.running import exchange, running_service, wait_until

MAX_BYTES = 1_000_000
QUEUE = RowQueue(Capacity(classifiers=1, max_concurrent_fetches=1))
JSON = {"Content-Type": "application/json"}


def pending_bytes() -> PendingBytes:
    """A budget in which every body in transit is slow at once."""
    now = iter(range(0, 10**9, 100))
    return PendingBytes(MAX_BYTES, min_bytes_per_second=10**9, clock=lambda: next(now))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def never_arrives(body: PendingBody, received_bytes: int) -> bytes:
    received = bytes(received_bytes)
    body.take(len(received))
    await asyncio.Event().wait()
    return received


def test_evicted_body_is_no_longer_read_and_its_bytes_are_released() -> None:
    async def check() -> None:
        pending = pending_bytes()
        slow, fast = pending.reserve(), pending.reserve()
        waiting = asyncio.ensure_future(arriving_within(3600.0, never_arrives(slow, 900_000), slow))
        await turns()
        fast.take(900_000)
        with pytest.raises(Overloaded) as refusal:
            await waiting
        assert refusal.value.headers["connection"] == "close"
        assert refusal.value.__context__ is None
        assert pending.held_bytes == 900_000

    asyncio.run(asyncio.wait_for(check(), 120))


def test_error_keeps_no_bytes_of_its_body() -> None:
    async def fail(body: PendingBody) -> None:
        received = bytes(900_000)
        body.take(len(received))
        await asyncio.sleep(0)
        raise MalformedBody("no")

    async def check() -> None:
        pending = pending_bytes()

        async def answer() -> None:
            with pending.reserve() as body:
                await fail(body)

        with pytest.raises(MalformedBody) as failure:
            await answer()
        assert pending.held_bytes == 0
        frames = [frame for frame, _ in walk_tb(failure.value.__traceback__)]
        assert not any("received" in frame.f_locals for frame in frames)

    asyncio.run(check())


def test_late_body_is_not_reported_as_evicted() -> None:
    body = pending_bytes().reserve()
    with pytest.raises(BodyTimeout):
        asyncio.run(arriving_within(0.01, never_arrives(body, 10_000), body))


@pytest.mark.parametrize("wbits", [31, 15, -15], ids=["gzip", "zlib", "raw deflate"])
def test_inflated_body_is_counted_by_its_size(wbits: int) -> None:
    content = os.urandom(300_000)
    compressed = zlib.compress(content, 1, wbits)

    async def check() -> None:
        pending = PendingBytes(MAX_BYTES)
        body = pending.reserve(len(compressed))
        body.take(len(compressed))
        encoding = "gzip" if wbits == 31 else "deflate"
        assert await inflate(compressed, encoding, MAX_BYTES, body) == content
        assert pending.held_bytes == len(content)

    asyncio.run(check())


def test_body_that_is_not_deflated_is_counted_as_sent() -> None:
    compressed = zlib.compress(os.urandom(300_000), 1)[:-1] + b"?"

    async def check() -> None:
        pending = PendingBytes(MAX_BYTES)
        body = pending.reserve(len(compressed))
        body.take(len(compressed))
        assert await inflate(compressed, "deflate", MAX_BYTES, body) == compressed
        assert pending.held_bytes == len(compressed)

    asyncio.run(check())


@pytest.mark.parametrize("bodies", [2, 8, 30])
def test_oldest_of_bodies_inflated_in_parallel_are_served(bodies: int) -> None:
    compressed = gzip.compress(bytes(900_000))

    async def check() -> None:
        pending = PendingBytes(MAX_BYTES)

        async def serve(number: int) -> bytes:
            with pending.reserve(len(compressed)) as body:
                body.take(len(compressed))
                content = await inflate(compressed, "gzip", MAX_BYTES, body)
                if number == 0:
                    await asyncio.wait(serving[1:])  # its rows wait
                return content

        serving = [asyncio.ensure_future(serve(number)) for number in range(bodies)]
        served = await asyncio.gather(*serving, return_exceptions=True)
        assert served[0] == bytes(900_000)
        assert {type(one) for one in served[1:]} == {Overloaded}
        assert pending.held_bytes == 0

    asyncio.run(check())


class WaitingPipeline:
    """Classifies nothing, and records the pending bytes meanwhile."""

    def __init__(self, admission: Admission) -> None:
        self.queue = QUEUE
        self.bulk_turn = BulkTurn()
        self.held_bytes: list[int] = []
        self._admission = admission

    async def classify_rows(self, rows: Sequence[Row], *_: object) -> ClassifiedRows:
        self.held_bytes.append(self._admission.pending_bytes)
        return ClassifiedRows([None] * len(rows), Steps(), [])


async def classify_batch(admission: Admission, content: bytes, encoding: str = "identity") -> list[int]:
    """The pending bytes while the rows of this body are classified."""
    pipeline = WaitingPipeline(admission)
    with admission.reserve(len(content)) as body:
        body.take(len(content))
        batch = SentBatch(None, None, content, encoding, evidence=False, pending=body)
        classifier = RowClassifier(Settings(), cast("Pipeline", pipeline), admission, Probes(None))
        await classifier.classify_batch(batch)
    return pipeline.held_bytes


@pytest.mark.parametrize("padding", [b" " * 500_000, b'"other": "%b", ' % (b"x" * 500_000)])
def test_waiting_rows_are_counted_by_their_size(padding: bytes) -> None:
    admission = Admission(QUEUE, 1.0, PendingBytes(MAX_BYTES))
    content = b'{%b"data": [[0, null], [1, "%b"], [2, "https://a.b/c"]]}' % (padding, b"aaaa" * 100)
    [held_bytes] = asyncio.run(classify_batch(admission, content))
    assert held_bytes == 3 * ROW_BYTES + getsizeof(b"aaaa" * 100) + getsizeof("https://a.b/c")


@pytest.mark.parametrize("value", ["null", '""', '"a:"', '"AAAA"', '"", {"x": 1}'])
def test_rows_of_a_small_body_are_counted(value: str) -> None:
    rows = 2000
    content = gzip.compress(b'{"data": [%b]}' % b",".join([b"[0, %b]" % value.encode()] * rows))
    admission = Admission(QUEUE, 1.0, PendingBytes(2 * rows * ROW_BYTES))
    [held_bytes] = asyncio.run(classify_batch(admission, content, "gzip"))
    assert held_bytes >= rows * ROW_BYTES
    with admission.reserve() as others:
        others.take(rows * ROW_BYTES + 1)
        with pytest.raises(Overloaded):
            asyncio.run(classify_batch(admission, content, "gzip"))
    assert admission.pending_bytes == 0


def test_url_of_wide_characters_is_counted_by_its_memory() -> None:
    url = "https://a.b/\N{PILE OF POO}" + "c" * 4000
    assert Row(0, Url(url)).source_bytes > 4 * len(url)


class Client:
    """Reads the first messages of a response, and then no more."""

    def __init__(self, reads: int) -> None:
        self.received: list[Message] = []
        self._reads = reads

    async def send(self, message: Message) -> None:
        if len(self.received) == self._reads:
            await asyncio.Event().wait()
        self.received.append(message)

    async def receive(self) -> Message:
        raise AssertionError("sending an answer receives nothing")

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)


def test_response_is_counted_instead_of_its_body_until_it_is_sent() -> None:
    async def check() -> None:
        pending, client = pending_bytes(), Client(reads=1000)
        with pending.reserve() as body:
            body.take(500_000)
            answer = json_response(bytes(700_000), body)
        assert pending.held_bytes == 700_000
        await answer({"type": "http"}, client.receive, client.send)
        assert client.body == bytes(700_000)
        assert max(len(message.get("body", b"")) for message in client.received) == PIECE_BYTES
        assert client.received[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        assert pending.held_bytes == 0

    asyncio.run(check())


def test_other_requests_are_served_between_the_pieces_of_a_response() -> None:
    async def check() -> int:
        client, answer = Client(reads=1000), json_response(bytes(20 * PIECE_BYTES), pending_bytes().reserve())
        return await turns_during(answer({"type": "http"}, client.receive, client.send))

    turns = asyncio.run(check())
    assert turns >= 20


def test_response_that_a_connection_buffers_is_not_counted() -> None:
    pending = pending_bytes()
    with pending.reserve() as body:
        body.take(500_000)
        assert not isinstance(json_response(bytes(PIECE_BYTES), body), LargeResponse)
    assert pending.held_bytes == 0


def test_response_that_is_not_read_is_evicted() -> None:
    async def check() -> None:
        pending, client = pending_bytes(), Client(reads=3)
        answer = json_response(bytes(700_000), pending.reserve())
        sending = asyncio.ensure_future(answer({"type": "http"}, client.receive, client.send))
        await turns()
        assert not sending.done()
        pending.reserve().take(500_000)
        await sending
        assert len(client.received) == 3
        assert answer.body == b""

    asyncio.run(asyncio.wait_for(check(), 120))


def test_response_that_is_read_steadily_is_not_evicted() -> None:
    seconds = [0.0]
    pending = PendingBytes(MAX_BYTES, min_bytes_per_second=PIECE_BYTES, clock=lambda: seconds[0])

    class SteadyClient(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            seconds[0] += 0.4
            with pytest.raises(Overloaded):
                pending.reserve().take(500_000)

    async def check() -> None:
        client = SteadyClient(reads=1000)
        answer = json_response(bytes(10 * PIECE_BYTES), pending.reserve())
        await answer({"type": "http"}, client.receive, client.send)
        assert client.body == bytes(10 * PIECE_BYTES)

    asyncio.run(check())


def test_response_to_a_disconnected_client_releases_its_bytes() -> None:
    async def check() -> None:
        pending, client = pending_bytes(), Client(reads=3)
        body = pending.reserve()
        answer = json_response(bytes(700_000), body)
        body.let_go()
        sending = asyncio.ensure_future(answer({"type": "http"}, client.receive, client.send))
        await turns()
        sending.cancel()
        await asyncio.wait({sending})
        assert pending.held_bytes == 0

    asyncio.run(check())


def test_response_without_memory_is_refused_as_retryable() -> None:
    pending = pending_bytes()
    pending.reserve().take(500_000)
    with pytest.raises(ServiceError) as refusal, pending.reserve() as body:
        json_response(bytes(700_000), body)
    assert refusal.value.retryable
    assert pending.held_bytes == 500_000


@pytest.mark.parametrize("form", ["files", "batch"])
def test_response_without_a_batch_id_has_a_limit_too(
    client: TestClient, sample: bytes, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("app.api.classify.MAX_ANSWER_BYTES_WITHOUT_ID", 1000)
    for rows, status in ((2, 200), (8, 413)):
        if form == "files":
            answer = client.post("/classify", files=[("file", (f"{n}", sample)) for n in range(rows)])
        else:
            data = [[n, text_of(sample)] for n in range(rows)]
            answer = client.post("/classify", json={"data": data})
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == "answer_too_large"


@pytest.mark.parametrize("rows", [0, 1, 257, 600])
def test_response_limit_is_exact(rows: int) -> None:
    numbered = [Row(number, None) for number in range(rows)]
    answer = asyncio.run(format_batch(numbered, [None] * rows))
    assert json.loads(answer) == {"data": [[number, None] for number in range(rows)]}
    assert asyncio.run(format_batch(numbered, [None] * rows, len(answer))) == answer
    if rows:
        with pytest.raises(AnswerTooLarge):
            asyncio.run(format_batch(numbered, [None] * rows, len(answer) - 1))


@pytest.fixture(scope="module")
def crowded() -> Iterator[int]:
    """The port of a service whose memory four bodies of the maximum size fill."""
    with running_service(
        EXT_CLASSIFY_MAX_PENDING_BYTES="4000000",
        EXT_CLASSIFY_MAX_BODY_BYTES="1000000",
        EXT_CLASSIFY_MAX_IMAGE_BYTES="100000",
    ) as url:
        yield int(url.rpartition(":")[2])


def post_image(port: int, image: bytes) -> int:
    return exchange(port, "POST", "/classify", image, {"Content-Type": "image/png"}).status


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True])
def test_stalled_bodies_block_neither_images_nor_batches(
    crowded: int, sample: bytes, *, is_chunked: bool
) -> None:
    length, beginning = b"Content-Length: 1000000", bytes(999_990)
    if is_chunked:
        length, beginning = b"Transfer-Encoding: chunked", b"f4236\r\n" + beginning
    batch = json.dumps({"data": [[n, text_of(sample)] for n in range(32)]}).encode()
    with ExitStack() as stack:
        stalled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", crowded), timeout=120))
            for _ in range(4)
        ]
        for connection in stalled:
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
            connection.sendall(length + b"\r\n\r\n" + beginning)
        assert post_image(crowded, sample) == 200
        wait_until(lambda: exchange(crowded, "POST", "/classify", batch, JSON).status == 200)
        assert post_image(crowded, sample) == 200
        evicted, _, _ = select.select(stalled, [], [], 120)
        assert {connection.recv(12) for connection in evicted} == {b"HTTP/1.1 429"}


@pytest.mark.slow
def test_some_of_the_batches_that_arrive_together_are_served(crowded: int) -> None:
    rows = [[n, os.urandom(40_000).hex()] for n in range(12)]
    batch = gzip.compress(json.dumps({"data": rows}).encode(), 1)
    together = Barrier(8)

    def send(_: int) -> int:
        together.wait()
        headers = {**JSON, "Content-Encoding": "gzip"}
        return exchange(crowded, "POST", "/classify", batch, headers).status

    with ThreadPoolExecutor(8) as clients:
        statuses = set(clients.map(send, range(8)))
    assert 200 in statuses
    assert statuses <= {200, 429}
    pending = b"\next_classify_pending_bytes 0.0\n"
    wait_until(lambda: pending in exchange(crowded, "GET", "/metrics").body)
