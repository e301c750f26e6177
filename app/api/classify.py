"""POST /classify: three forms of request, chosen by Content-Type, one way through. GET asks for a batch."""

import asyncio
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from app.admission import Admission, PendingBody
from app.api.answers import MAX_ANSWER_BYTES_WITHOUT_ID, json_answer
from app.api.batch import BatchClassifier, read_batch, refuse_early
from app.api.body import (
    arriving_within,
    capped_stream,
    length_of,
    parse_files,
    read_body,
    refuse_encoded,
    wants_evidence,
)
from app.api.openapi import CLASSIFY_DOCUMENTATION, POLL_DOCUMENTATION
from app.batches.batches import Batches, check_batch_id
from app.errors import InvalidBatch, UnsupportedMediaType
from app.names import BATCH_ID_HEADER, ids_of
from app.outcome import Outcome
from app.pipeline import Pipeline
from app.row import ROW_BYTES, Row
from app.settings import Settings
from app.snowflake.wire import format_array
from app.telemetry.record import record_abandoned, record_answer

T = TypeVar("T")


async def while_caller_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Cancels it, and raises ClientDisconnect, when the caller leaves before.

    The request's body must have been read to its end.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())  # after the body comes nothing but the disconnect
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if leaving.done() and not leaving.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()


router = APIRouter()

_MULTIPART = "multipart/form-data"


@router.post("/classify", **CLASSIFY_DOCUMENTATION)
async def classify(request: Request) -> Response:
    """Classify images: a Snowflake batch, the bytes of one image, or uploaded files."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await _classify_batch(request)
    if media_type == _MULTIPART:
        return await _classify_files(request)
    if media_type == "application/octet-stream" or media_type.startswith("image/"):
        return await _classify_image(request)
    raise UnsupportedMediaType(
        "A request's Content-Type must be application/json, multipart/form-data, image/* or "
        f"application/octet-stream. Received: {media_type[:80]!r}."
    )


@router.get("/classify", **POLL_DOCUMENTATION)
async def poll(request: Request) -> Response:
    """The answer to a batch that was answered 202."""
    batches: Batches = request.app.state.batches
    batch_id = request.headers.get(BATCH_ID_HEADER)
    if batch_id is None:
        raise InvalidBatch(f"A GET must name its batch in the header {BATCH_ID_HEADER}. Received: none.")
    admission: Admission = request.app.state.admission
    with admission.reserve() as pending:
        return _answer_or_later(await batches.poll(check_batch_id(batch_id), pending), pending)


async def _classify_batch(request: Request) -> Response:
    state = request.app.state
    admission: Admission = state.admission
    batches: Batches = state.batches
    classify_batch: BatchClassifier = state.classify_batch
    batch_id = request.headers.get(BATCH_ID_HEADER)
    if batch_id is None or not batches.knows(check_batch_id(batch_id)):
        refuse_early(request, admission)
    with admission.reserve(length_of(request)) as pending:
        batch = await read_batch(request, state.settings, pending)
        if batch_id is None:
            return json_answer(await while_caller_waits(request, classify_batch(batch)), pending)
        answer = await while_caller_waits(request, batches.answer(batch_id, batch))
        return _answer_or_later(answer, pending)


async def _classify_image(request: Request) -> Response:
    refuse_encoded(request)
    settings: Settings = request.app.state.settings
    admission: Admission = request.app.state.admission
    evidence = wants_evidence(request)
    length = length_of(request)
    admission.refuse(length, rows=1)
    with admission.reserve(length) as pending:
        reading = read_body(request, settings.max_body_bytes, pending)
        body = await arriving_within(settings.body_timeout_seconds, reading, pending)
        pending.complete()
        [outcome] = await _classify_rows(request, [Row(0, body, evidence)])
        return json_answer(to_json(outcome), pending)


async def _classify_files(request: Request) -> Response:
    refuse_encoded(request)
    settings: Settings = request.app.state.settings
    admission: Admission = request.app.state.admission
    evidence, length = wants_evidence(request), length_of(request)
    admission.refuse(length, admission.expect_rows(_MULTIPART, length))
    with admission.reserve(length) as pending:
        chunks = capped_stream(request, settings.max_body_bytes, pending)
        reading = parse_files(request.headers["content-type"], chunks, settings.max_rows)
        files = await arriving_within(settings.body_timeout_seconds, reading, pending)
        pending.complete()
        admission.note_rows(_MULTIPART, pending.held_bytes, len(files))
        pending.take(ROW_BYTES * len(files))
        admission.refuse_rows(len(files))
        names = [filename for filename, _ in files]
        rows = [Row(number, content, evidence) for number, (_, content) in enumerate(files)]
        del files
        outcomes = await _classify_rows(request, rows, pending)
        pipeline: Pipeline = request.app.state.pipeline
        async with pipeline.bulk_turn.of_rows(len(names)):
            results = list(zip(names, outcomes, strict=True))
            answer = await format_array("results", results, _format_results, MAX_ANSWER_BYTES_WITHOUT_ID)
        return json_answer(answer, pending)


def _format_results(results: Sequence[tuple[str, Outcome | None]]) -> bytes:
    return to_json(
        [
            {"filename": filename, **outcome}
            for filename, outcome in results
            if outcome is not None  # only SQL has NULL
        ]
    )


async def _classify_rows(
    request: Request, rows: Sequence[Row], pending: PendingBody | None = None
) -> list[Outcome | None]:
    pipeline: Pipeline = request.app.state.pipeline
    query_id, batch_id = ids_of(request.headers)
    started = perf_counter()
    try:
        classified = await while_caller_waits(request, pipeline.classify_rows(rows, pending))
    except ClientDisconnect:
        record_abandoned(query_id, batch_id, len(rows), pipeline.queue.abandoned_rows)
        raise
    record_answer(query_id, batch_id, classified, perf_counter() - started)
    return classified.outcomes


def _answer_or_later(answer: bytes | None, pending: PendingBody) -> Response:
    if answer is None:
        return Response(to_json({"status": "running"}), status_code=202, media_type="application/json")
    return json_answer(answer, pending)
