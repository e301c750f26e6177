"""POST /classify: a Snowflake batch, the bytes of one image, or uploaded files. GET polls for a batch.

The Content-Type selects the form. All forms become rows, which the pipeline classifies.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from time import monotonic, perf_counter
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.admission import Admission, PendingBody
from app.api.body import (
    CappedStream,
    arriving_within,
    check_not_encoded,
    encoding_of,
    evidence_of,
    inflate,
    length_of,
    parse_files,
    read_body,
)
from app.batches.batches import Batches, SentBatch, check_batch_id, key_of
from app.errors import InvalidBatch, InvalidSource, Overloaded, UnsupportedMediaType
from app.images.source import ROW_BYTES, Row, Url
from app.names import BATCH_ID_HEADER, ids_of
from app.outcome import Outcome
from app.pipeline import Pipeline
from app.settings import Settings
from app.snowflake.wire import MAX_ANSWER_BYTES, format_array, format_batch, parse_batch
from app.telemetry.record import Sender, record_abandoned, record_answer

T = TypeVar("T")

_MULTIPART = "multipart/form-data"
# For clients other than Snowflake, which send no batch id: every row of a full batch with evidence.
MAX_ANSWER_BYTES_WITHOUT_ID = 64 * 1024 * 1024
# A connection buffers this much before it pauses the sender: a smaller response is sent at once.
PIECE_BYTES = 64 * 1024
# A client that disconnects sooner is noticed then: to watch for it costs as much as to send the answer.
WATCHED_AFTER_SECONDS = 0.05
# The key in a request's state of the caller for whom it was admitted by its head.
ADMITTED = "admitted_for"


class ClassifyEndpoint:
    """Returns a response, or raises ServiceError or ClientDisconnect."""

    def __init__(
        self, settings: Settings, admission: Admission, classifier: "RowClassifier", batches: Batches
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._classifier = classifier
        self._batches = batches

    async def classify(self, request: Request, caller: str | None) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            return await self._classify_batch(request, caller)
        if media_type == _MULTIPART:
            return await self._classify_files(request, caller)
        if media_type == "application/octet-stream" or media_type.startswith("image/"):
            return await self._classify_image(request, caller)
        raise UnsupportedMediaType(
            "A request's Content-Type must be application/json, multipart/form-data, image/* or "
            f"application/octet-stream. Received: {media_type[:80]!r}."
        )

    async def poll(self, request: Request, caller: str | None) -> Response:
        """The response to a batch that was deferred (202)."""
        batch_id = request.headers.get(BATCH_ID_HEADER)
        if batch_id is None:
            raise InvalidBatch(f"A GET must name its batch in the header {BATCH_ID_HEADER}. Received: none.")
        key = key_of(check_batch_id(batch_id), caller)
        with self._admission.reserve(caller=caller) as pending:
            return _batch_response(await self._batches.poll(key, pending), pending)

    async def _classify_batch(self, request: Request, caller: str | None) -> Response:
        evidence, encoding, length = evidence_of(request), encoding_of(request), length_of(request)
        query_id, _ = ids_of(request.headers)
        batch_id = request.headers.get(BATCH_ID_HEADER)
        key = None if batch_id is None else key_of(check_batch_id(batch_id), caller)
        if key is None or not self._batches.knows(key):
            is_patient = key is not None and self._admission.patience_seconds
            rows = 0 if is_patient else self._admission.expect_rows(encoding, length)
            self._admission.refuse(length, rows, caller)
        with self._admission.reserve(length, caller) as pending:
            reading = read_body(request, self._settings.max_body_bytes, pending)
            content = await arriving_within(self._settings.body_timeout_seconds, reading, pending)
            batch = SentBatch(batch_id, query_id, content, encoding, evidence, pending, caller)
            del content  # only the batch holds it, until it is parsed
            if key is None:
                body = await while_connected(request, self._classifier.classify_batch(batch))
                return json_response(body, pending)
            answer = await while_connected(request, self._batches.answer(key, batch))
            return _batch_response(answer, pending)

    async def _classify_image(self, request: Request, caller: str | None) -> Response:
        check_not_encoded(request)
        evidence, length = evidence_of(request), length_of(request)
        # Others of the same turn of the event loop may have filled the queue since, at most a few.
        state = request.scope.get("state", {})
        is_admitted = ADMITTED in state and state[ADMITTED] == caller
        self._admission.refuse(length, 0 if is_admitted else 1, caller)
        with self._admission.reserve(length, caller) as pending:
            reading = read_body(request, self._settings.max_body_bytes, pending)
            body = await arriving_within(self._settings.body_timeout_seconds, reading, pending)
            pending.complete()
            [outcome] = await self._classify_rows(request, caller, [Row(0, body, evidence)])
            return json_response(to_json(outcome), pending)

    async def _classify_files(self, request: Request, caller: str | None) -> Response:
        check_not_encoded(request)
        evidence, length = evidence_of(request), length_of(request)
        self._admission.refuse(length, self._admission.expect_rows(_MULTIPART, length), caller)
        with self._admission.reserve(length, caller) as pending:
            chunks = CappedStream(request, self._settings.max_body_bytes, pending)
            reading = parse_files(request.headers["content-type"], chunks, self._settings.max_rows)
            files = await arriving_within(self._settings.body_timeout_seconds, reading, pending)
            pending.complete()
            self._admission.note_rows(_MULTIPART, pending.held_bytes, len(files))
            pending.take(ROW_BYTES * len(files))
            self._admission.refuse_rows(len(files), caller=caller)
            names = [filename for filename, _ in files]
            rows = [Row(number, content, evidence) for number, (_, content) in enumerate(files)]
            del files
            outcomes = await self._classify_rows(request, caller, rows, pending)
            return json_response(await self._classifier.format_files(names, outcomes, caller), pending)

    async def _classify_rows(
        self, request: Request, caller: str | None, rows: Sequence[Row], pending: PendingBody | None = None
    ) -> list[Outcome | None]:
        sender = Sender(*ids_of(request.headers), caller)
        classifying = self._classifier.classify_rows(rows, pending, sender)
        return await while_connected(request, classifying)


PROBE = "ext-classify-probe:"
# A retry with another batch id within this time would otherwise be refused again and again.
_RETRY_SECONDS = 120.0
# Gateways and Snowflake cut a longer call.
_MAX_SYNC_SECONDS = 30.0


class Probes:
    """Rows that ask the service for a 429 or a 202, to see what Snowflake makes of them.

    A batch of one row whose source is `ext-classify-probe:429` or `ext-classify-probe:202` is answered so,
    and then with a row error whose message says what the service saw. `ext-classify doctor --snowflake`
    sends them.
    """

    def __init__(self, sync_deadline_seconds: float | None) -> None:
        """`sync_deadline_seconds` is that of deferred responses, None if the service defers none."""
        self._sync_deadline_seconds = sync_deadline_seconds
        self._refused: dict[str, float] = {}

    async def answer(self, batch_id: str | None, rows: Sequence[Row]) -> None:
        """Replace the source of a probe by an InvalidSource with the result. Raises Overloaded."""
        if len(rows) != 1 or batch_id is None or not isinstance(rows[0].source, Url):
            return
        if rows[0].source.text == f"{PROBE}429":
            rows[0].source = InvalidSource(self._refuse_once(batch_id))
        elif rows[0].source.text == f"{PROBE}202":
            rows[0].source = InvalidSource(await self._outlast_deadline())

    def _refuse_once(self, batch_id: str) -> str:
        now = monotonic()
        self._refused = {one: at for one, at in self._refused.items() if now - at < _RETRY_SECONDS}
        if not self._refused:
            self._refused[batch_id] = now
            raise Overloaded("A probe must be sent again after this 429.", retry_after_seconds=1)
        same = "the same batch id" if batch_id in self._refused else "another batch id"
        seconds = now - self._refused.pop(batch_id, min(self._refused.values()))
        return f"Probe 429: sent again after {seconds:.1f} s with {same}."

    async def _outlast_deadline(self) -> str:
        deadline = self._sync_deadline_seconds
        if deadline is None or deadline >= _MAX_SYNC_SECONDS:
            return "Probe 202: the service defers no response of a call that Snowflake waits for."
        await asyncio.sleep(deadline + 1)
        return f"Probe 202: answered 202 after {deadline:g} s, then polled."


class RowClassifier:
    """Classifies the rows of a request and records the result, whether or not a client still waits."""

    def __init__(self, settings: Settings, pipeline: Pipeline, admission: Admission, probes: Probes) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._admission = admission
        self._probes = probes

    async def classify_batch(self, batch: SentBatch) -> bytes:
        """The body of the response. Raises ServiceError."""
        rows = await self._parse(batch)
        await self._probes.answer(batch.batch_id, rows)
        remote_rows = sum(row.is_remote for row in rows)
        if batch.batch_id is None:
            self._admission.refuse_rows(len(rows), remote_rows, batch.caller)
        else:
            await self._admission.admit(len(rows), remote_rows, batch.caller)
        sender = Sender(batch.query_id, batch.batch_id, batch.caller)
        outcomes = await self.classify_rows(rows, batch.pending, sender)
        # A batch without an id is not Snowflake's.
        max_bytes = MAX_ANSWER_BYTES_WITHOUT_ID if batch.batch_id is None else MAX_ANSWER_BYTES
        async with self._pipeline.bulk_turn.of_rows(len(rows), batch.caller):
            return await format_batch(rows, outcomes, max_bytes)

    async def classify_rows(
        self, rows: Sequence[Row], pending: PendingBody | None, sender: Sender
    ) -> list[Outcome | None]:
        """One outcome a row, in order. Logs the rows as abandoned if it is cancelled."""
        started = perf_counter()
        try:
            classified = await self._pipeline.classify_rows(rows, pending, sender.caller)
        except asyncio.CancelledError:
            record_abandoned(sender, len(rows), self._pipeline.queue.abandoned_rows)
            raise
        total_seconds = perf_counter() - started
        async with self._pipeline.bulk_turn.of_rows(len(rows), sender.caller):
            record_answer(sender, classified, total_seconds)
        return classified.outcomes

    async def format_files(
        self, names: Sequence[str], outcomes: Sequence[Outcome | None], caller: str | None
    ) -> bytes:
        """Raises AnswerTooLarge."""
        async with self._pipeline.bulk_turn.of_rows(len(names), caller):
            results = list(zip(names, outcomes, strict=True))
            return await format_array("results", results, _format_results, MAX_ANSWER_BYTES_WITHOUT_ID)

    async def _parse(self, batch: SentBatch) -> list[Row]:
        """The batch gives up its body: the rows hold copies of what they need."""
        settings, encoding = self._settings, batch.content_encoding
        content = batch.take_content()
        sent_bytes = len(content)
        async with self._pipeline.bulk_turn.of_body(content, encoding, batch.caller):
            content = await inflate(content, encoding, settings.max_body_bytes, batch.pending)
            rows = await parse_batch(
                content, settings.max_rows, settings.image_limits, evidence=batch.evidence
            )
            _hold_rows(rows, len(content), batch.pending)
        self._admission.note_rows(encoding, sent_bytes, len(rows))
        return rows


def _hold_rows(rows: Sequence[Row], content_bytes: int, pending: PendingBody) -> None:
    """Count the rows instead of the body. Raises Overloaded.

    A body may consist mostly of whitespace and unknown keys, or of a few bytes for each row.
    """
    rows_bytes = sum(ROW_BYTES + row.source_bytes for row in rows)
    if rows_bytes > content_bytes:
        pending.take(rows_bytes - content_bytes)
    else:
        pending.drop(content_bytes - rows_bytes)


def _format_results(results: Sequence[tuple[str, Outcome | None]]) -> bytes:
    return to_json(
        [
            {"filename": filename, **outcome}
            for filename, outcome in results
            if outcome is not None  # only SQL has NULL
        ]
    )


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """What `work` returns. If the client disconnects first, cancels it and raises ClientDisconnect.

    The request's body must have been read to its end.
    """
    loop = asyncio.get_running_loop()
    task = cast("asyncio.Task[Any]", asyncio.current_task(loop))  # a coroutine always runs in a task
    watching: asyncio.Task[None] | None = None
    is_disconnected = False

    async def cancel_when_disconnected() -> None:
        nonlocal is_disconnected
        await request.receive()  # the only message after the body
        is_disconnected = True
        task.cancel()

    def watch() -> None:
        nonlocal watching
        watching = loop.create_task(cancel_when_disconnected())

    timer = loop.call_later(WATCHED_AFTER_SECONDS, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_disconnected:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        if watching is not None:
            watching.cancel()


def _batch_response(answer: bytes | None, pending: PendingBody) -> Response:
    if answer is None:
        return Response(to_json({"status": "running"}), status_code=202, media_type="application/json")
    return json_response(answer, pending)


def json_response(content: bytes, pending: PendingBody) -> Response:
    """If large, it replaces the request's body in `pending` until it is sent. Raises Overloaded."""
    if len(content) <= PIECE_BYTES:
        return Response(content, media_type="application/json")
    pending.drop()
    pending.take(len(content))
    return LargeResponse(content, pending)


class LargeResponse(Response):
    """Sends its body in pieces as the client reads. A slow client loses it when others need the memory."""

    def __init__(self, content: bytes, pending: PendingBody) -> None:
        super().__init__(content, media_type="application/json")
        pending.hold()
        self._pending = pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as sending:
                with self._pending.evictable(lambda: sending.reschedule(loop.time()), is_in_transit=True):
                    await self._send(send)
        except (TimeoutError, Overloaded):
            return  # the server closes the connection after an incomplete response
        finally:
            self.body = b""
            self._pending.let_go()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE_BYTES):
            piece = self.body[start : start + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._pending.note_progress(len(piece))
            # A fast client would otherwise be sent everything in one step of the event loop.
            await asyncio.sleep(0)
        # Sent once the client has read all but a little of the rest.
        await send({"type": "http.response.body", "body": b"", "more_body": False})
