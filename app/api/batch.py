"""A Snowflake batch: read as it was sent, and classified, whether or not anyone still waits for it."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from starlette.requests import Request

from app.admission import Admission, PendingBody
from app.api.answers import MAX_ANSWER_BYTES_WITHOUT_ID
from app.api.body import arriving_within, encoding_of, inflate, length_of, read_body, wants_evidence
from app.batches.store import SentBatch
from app.names import BATCH_ID_HEADER, ids_of
from app.pipeline import Pipeline
from app.row import ROW_BYTES, Row
from app.settings import Settings
from app.snowflake.wire import MAX_ANSWER_BYTES, format_batch, parse_batch
from app.telemetry.record import record_abandoned, record_answer


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
        self._admission.refuse_rows(len(rows), sum(row.is_remote for row in rows))
        started = perf_counter()
        try:
            classified = await self._pipeline.classify_rows(rows, batch.pending)
        except asyncio.CancelledError:
            record_abandoned(batch.query_id, batch.batch_id, len(rows), self._pipeline.queue.abandoned_rows)
            raise
        total_seconds = perf_counter() - started
        # A batch without an id is not Snowflake's.
        max_bytes = MAX_ANSWER_BYTES_WITHOUT_ID if batch.batch_id is None else MAX_ANSWER_BYTES
        async with self._pipeline.bulk_turn.of_rows(len(rows)):
            record_answer(batch.query_id, batch.batch_id, classified, total_seconds)
            return await format_batch(rows, classified.outcomes, max_bytes)

    async def _parse(self, batch: SentBatch) -> list[Row]:
        """The body itself is let go of here; its rows hold copies of what they need."""
        encoding, max_bytes = batch.content_encoding, self._settings.max_body_bytes
        content = batch.take_content()
        sent_bytes = len(content)
        settings = self._settings
        async with self._pipeline.bulk_turn.of_body(content, encoding):
            content = await inflate(content, encoding, max_bytes, batch.pending)
            rows = await parse_batch(
                content, settings.max_rows, settings.image_limits, evidence=batch.evidence
            )
            _hold_rows(rows, len(content), batch.pending)
        self._admission.note_rows(encoding, sent_bytes, len(rows))
        return rows


def _hold_rows(rows: Sequence[Row], content_bytes: int, pending: PendingBody) -> None:
    """Count the rows in place of the body. Raises Overloaded.

    A body may be blanks and other keys for the most part, or a few bytes for each row.
    """
    rows_bytes = sum(ROW_BYTES + row.source_bytes for row in rows)
    if rows_bytes > content_bytes:
        pending.take(rows_bytes - content_bytes)
    else:
        pending.drop(content_bytes - rows_bytes)
