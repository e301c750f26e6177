"""What is kept of each request: a line in the log, and its share of the figures."""

from collections.abc import Sequence

from app import metrics
from app.log import log_event
from app.outcome import Outcome, StepSeconds


def record_answer(
    query_id: str | None,
    batch_id: str | None,
    outcomes: Sequence[Outcome | None],
    seconds: StepSeconds,
    total_seconds: float,
) -> None:
    metrics.count_rows(outcomes, seconds)
    log_event(
        "classified",
        query_id=query_id,
        batch_id=batch_id,
        rows=len(outcomes),
        failed=sum(outcome is not None and outcome["error"] is not None for outcome in outcomes),
        fetch_ms=round(seconds.fetch * 1000, 1),
        decode_ms=round(seconds.decode * 1000, 1),
        predict_ms=round(seconds.predict * 1000, 1),
        total_ms=round(total_seconds * 1000, 1),
    )


def record_abandoned(query_id: str | None, batch_id: str | None, rows: int, since_start: int) -> None:
    """Whoever asked has left before the answer."""
    log_event(
        "abandoned",
        query_id=query_id,
        batch_id=batch_id,
        rows=rows,
        abandoned_rows_since_start=since_start,
    )
