"""A Snowflake batch: read as it was sent, and classified, whether or not anyone still waits for it."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from starlette.requests import Request

from app.admission import Admission
from app.answer_store import SentBatch
from app.api.answer import MAX_ANSWER_BYTES_WITHOUT_ID
from app.api.body import arriving_within, encoding_of, inflate, length_of, read_body
from app.api.query import wants_evidence
from app.images.source import InlineText, Url
from app.pending import PendingBody
from app.pipeline import Pipeline
from app.record import record_abandoned, record_answer
from app.row import Row
from app.settings import Settings
from app.snowflake.wire import (
    BATCH_ID_HEADER,
    MAX_ANSWER_BYTES,
    format_batch,
    ids_of,
    parse_batch,
)


def refuse_early(request: Request, admission: Admission) -> None:
    """Raises Overloaded, before any of the body has been read."""
    body_bytes = length_of(request)
    admission.refuse(body_bytes, admission.expect_rows(encoding_of(request), body_bytes))


async def read_batch(request: Request, settings: Settings, pending: PendingBody) -> SentBatch:
    """The body, as it was sent and not complete before it is inflated. Raises ServiceError."""
    evidence, encoding = wants_evidence(request), encoding_of(request)
    reading = read_body(request, settings.max_body_bytes, pending)
    content = await arriving_within(settings.body_timeout_seconds, reading, pending)
    return SentBatch(
        batch_id=request.headers.get(BATCH_ID_HEADER),
        query_id=ids_of(request.headers)[0],
        content=content,
        content_encoding=encoding,
        evidence=evidence,
        pending=pending,
    )


class BatchClassifier:
    """From the body of a batch to the body of its answer."""

    def __init__(self, settings: Settings, pipeline: Pipeline, admission: Admission) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._admission = admission

    async def __call__(self, batch: SentBatch) -> bytes:
        """Raises ServiceError. Logs what became of its rows, also when it is cancelled."""
        rows = await self._parse(batch)
        self._admission.refuse_rows(len(rows))
        started = perf_counter()
        try:
            classified = await self._pipeline.classify_rows(rows)
        except asyncio.CancelledError:
            record_abandoned(batch.query_id, batch.batch_id, len(rows), self._pipeline.queue.abandoned_rows)
            raise
        record_answer(batch.query_id, batch.batch_id, classified, perf_counter() - started)
        # A batch without an id is not Snowflake's.
        max_bytes = MAX_ANSWER_BYTES_WITHOUT_ID if batch.batch_id is None else MAX_ANSWER_BYTES
        return await format_batch(rows, classified.outcomes, max_bytes)

    async def _parse(self, batch: SentBatch) -> list[Row]:
        """The body itself is let go of here; its rows hold copies of what they need."""
        encoding, max_bytes = batch.content_encoding, self._settings.max_body_bytes
        content = batch.take_content()
        sent_bytes = len(content)
        content = await inflate(content, encoding, max_bytes, batch.pending)
        settings = self._settings
        rows = await parse_batch(content, settings.max_rows, settings.image_limits, evidence=batch.evidence)
        self._admission.note_rows(encoding, sent_bytes, len(rows))
        # A body may be blanks and other keys for the most part, while its rows wait for a slow host.
        batch.pending.drop(max(0, len(content) - _held_bytes(rows)))
        return rows


def _held_bytes(rows: Sequence[Row]) -> int:
    return sum(len(row.source.text) for row in rows if isinstance(row.source, InlineText | Url))
