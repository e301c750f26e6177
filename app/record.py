"""What is kept of each request: a line in the log, its share of the figures, its steps in a trace."""

import asyncio

from app import metrics
from app.errors import Overloaded
from app.log import log_event
from app.pipeline import ClassifiedRows
from app.summary import summarise
from app.tracing import TRACING

_FLOOD_SECONDS = 1.0


def record_answer(
    query_id: str | None, batch_id: str | None, classified: ClassifiedRows, total_seconds: float
) -> None:
    outcomes, steps, statistics = classified
    failed = sum(outcome is not None and outcome["error"] is not None for outcome in outcomes)
    summary = summarise(outcomes, statistics)
    metrics.count_rows(outcomes, steps)
    metrics.count_images(summary)
    TRACING.add_steps(steps, len(outcomes), failed)
    log_event(
        "classified",
        query_id=query_id,
        batch_id=batch_id,
        rows=len(outcomes),
        failed=failed,
        fetch_ms=round(steps.fetch.seconds * 1000, 1),
        decode_ms=round(steps.decode.seconds * 1000, 1),
        predict_ms=round(steps.predict.seconds * 1000, 1),
        total_ms=round(total_seconds * 1000, 1),
        summary=summary.figures(),
    )


def record_refusal(query_id: str | None, batch_id: str | None, status: int, code: str) -> None:
    """A request that was answered with an error of its own, not with rows."""
    log_event("refused", query_id=query_id, batch_id=batch_id, status=status, code=code)


class Flood:
    """Of single images that were refused at once: one line a second, for a line each would feed the flood."""

    def __init__(self) -> None:
        self._requests = 0

    def note(self) -> None:
        self._requests += 1
        if self._requests == 1:
            asyncio.get_running_loop().call_later(_FLOOD_SECONDS, self._tell)

    def _tell(self) -> None:
        ids = {"query_id": None, "batch_id": None}
        log_event("refused", **ids, status=Overloaded.status, code=Overloaded.code, requests=self._requests)
        self._requests = 0


def record_abandoned(query_id: str | None, batch_id: str | None, rows: int, since_start: int) -> None:
    """Whoever asked has left before the answer."""
    log_event(
        "abandoned",
        query_id=query_id,
        batch_id=batch_id,
        rows=rows,
        abandoned_rows_since_start=since_start,
    )
