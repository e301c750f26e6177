"""POST /classify: three forms of request, chosen by Content-Type, one way through."""

from collections.abc import Sequence
from time import perf_counter

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.api.body import capped_stream, inflate, is_compressed, read_body, refuse_encoded
from app.api.caller import while_caller_waits
from app.api.multipart import parse_files
from app.api.openapi import CLASSIFY_DOCUMENTATION
from app.errors import InvalidBatch, UnsupportedMediaType
from app.log import log_event
from app.outcome import Outcome, StepSeconds
from app.pipeline import Pipeline
from app.row import Row
from app.settings import Settings
from app.snowflake.wire import BATCH_ID_HEADER, QUERY_ID_HEADER, format_batch, parse_batch

router = APIRouter()


@router.post("/classify", **CLASSIFY_DOCUMENTATION)
async def classify(request: Request) -> Response:
    """Classify images: a Snowflake batch, the bytes of one image, or uploaded files."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        return await _classify_batch(request)
    if media_type == "multipart/form-data":
        return await _classify_files(request)
    if media_type == "application/octet-stream" or media_type.startswith("image/"):
        return await _classify_image(request)
    raise UnsupportedMediaType(
        "A request's Content-Type must be application/json, multipart/form-data, image/* or "
        f"application/octet-stream. Received: {media_type[:80]!r}."
    )


async def _classify_batch(request: Request) -> Response:
    settings: Settings = request.app.state.settings
    evidence = _wants_evidence(request)
    rows = await _read_rows(request, settings, evidence=evidence)
    outcomes = await _classify_rows(request, rows)
    return _json(await format_batch(rows, outcomes))


async def _read_rows(request: Request, settings: Settings, *, evidence: bool) -> list[Row]:
    """The body itself is let go of here; its rows hold copies of what they need."""
    body = await read_body(request, settings.max_body_bytes)
    if is_compressed(body, request):
        body = await run_in_threadpool(inflate, body, request, settings.max_body_bytes)
    return await parse_batch(body, settings.max_rows, evidence=evidence)


async def _classify_image(request: Request) -> Response:
    refuse_encoded(request)
    settings: Settings = request.app.state.settings
    evidence = _wants_evidence(request)
    body = await read_body(request, settings.max_body_bytes)
    [outcome] = await _classify_rows(request, [Row(0, body, evidence)])
    return _json(to_json(outcome))


async def _classify_files(request: Request) -> Response:
    refuse_encoded(request)
    settings: Settings = request.app.state.settings
    evidence = _wants_evidence(request)
    files = await parse_files(
        request.headers["content-type"],
        capped_stream(request, settings.max_body_bytes),
        settings.max_rows,
    )
    outcomes = await _classify_rows(
        request, [Row(number, content, evidence) for number, (_, content) in enumerate(files)]
    )
    results = [
        {"filename": filename, **outcome}
        for (filename, _), outcome in zip(files, outcomes, strict=True)
        if outcome is not None  # only SQL has NULL
    ]
    return _json(to_json({"results": results}))


def _wants_evidence(request: Request) -> bool:
    """The query parameter `evidence`, for every image of the request. Raises InvalidBatch."""
    given = request.query_params.get("evidence", "false")
    if given not in ("true", "false"):
        raise InvalidBatch(f"The query parameter evidence must be true or false. Received: {given[:40]!r}.")
    return given == "true"


async def _classify_rows(request: Request, rows: Sequence[Row]) -> list[Outcome | None]:
    pipeline: Pipeline = request.app.state.pipeline
    started = perf_counter()
    try:
        outcomes, seconds = await while_caller_waits(request, pipeline.classify_rows(rows))
    except ClientDisconnect:
        _log(request, "abandoned", rows=len(rows), abandoned_rows_since_start=pipeline.queue.abandoned_rows)
        raise
    _log_batch(request, outcomes, seconds, perf_counter() - started)
    return outcomes


def _log_batch(
    request: Request, outcomes: Sequence[Outcome | None], seconds: StepSeconds, total: float
) -> None:
    """One line a batch."""
    _log(
        request,
        "classified",
        rows=len(outcomes),
        failed=sum(outcome is not None and outcome["error"] is not None for outcome in outcomes),
        fetch_ms=round(seconds.fetch * 1000, 1),
        decode_ms=round(seconds.decode * 1000, 1),
        predict_ms=round(seconds.predict * 1000, 1),
        total_ms=round(total * 1000, 1),
    )


def _log(request: Request, event: str, **fields: object) -> None:
    query_id, batch_id = (request.headers.get(name) for name in (QUERY_ID_HEADER, BATCH_ID_HEADER))
    log_event(event, query_id=query_id, batch_id=batch_id, **fields)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
