"""Records each request: a log line, metrics, and its steps in a trace."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from app.errors import ServiceError
from app.names import ids_of
from app.outcome import ClassifiedRows, summarise
from app.telemetry import metrics
from app.telemetry.log import log_event
from app.telemetry.tracing import TRACING

MAX_REFUSAL_LINES_PER_SECOND = 20
_WINDOW_SECONDS = 1.0


class Sender(NamedTuple):
    """Who sent a request: what its log lines have in common."""

    query_id: str | None
    batch_id: str | None
    caller: str | None
    """The name of the API key, or what authenticates the caller otherwise; None without authentication."""


def record_answer(sender: Sender, classified: ClassifiedRows, total_seconds: float) -> None:
    outcomes, steps, statistics = classified
    failed = sum(outcome is not None and outcome["error"] is not None for outcome in outcomes)
    summary = summarise(outcomes, statistics)
    metrics.count_rows(outcomes, steps, sender.caller)
    metrics.count_images(summary)
    TRACING.add_steps(steps, len(outcomes), failed)
    log_event(
        "classified",
        query_id=sender.query_id,
        batch_id=sender.batch_id,
        caller=sender.caller,
        rows=len(outcomes),
        failed=failed,
        fetch_ms=round(steps.fetch.seconds * 1000, 1),
        decode_ms=round(steps.decode.seconds * 1000, 1),
        predict_ms=round(steps.predict.seconds * 1000, 1),
        total_ms=round(total_seconds * 1000, 1),
        summary=summary.figures(),
    )


class RefusalLog:
    """Counts and logs rejected requests.

    For each error code and caller, it logs the first requests of a second, and then their number. A client
    without authentication can send thousands of them a second, with ids of its choice.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str, str | None], int] = {}

    def add(self, error: ServiceError, headers: Mapping[str, str], caller: str | None = None) -> None:
        metrics.count_refusal(caller)
        kind = error.status, error.code, caller
        if kind not in self._counts:
            asyncio.get_running_loop().call_later(_WINDOW_SECONDS, self._end_window, kind)
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= MAX_REFUSAL_LINES_PER_SECOND:
            query_id, batch_id = ids_of(headers)
            log_event(
                "refused",
                query_id=query_id,
                batch_id=batch_id,
                status=error.status,
                code=error.code,
                caller=caller,
            )

    def close(self) -> None:
        """Log the numbers of all open windows."""
        for kind in list(self._counts):
            self._end_window(kind)

    def _end_window(self, kind: tuple[int, str, str | None]) -> None:
        unlogged = self._counts.pop(kind, 0) - MAX_REFUSAL_LINES_PER_SECOND
        if unlogged > 0:
            status, code, caller = kind
            log_event(
                "refused",
                query_id=None,
                batch_id=None,
                status=status,
                code=code,
                caller=caller,
                requests=unlogged,
            )


def record_abandoned(sender: Sender, rows: int, since_start: int) -> None:
    """The client has disconnected before the answer."""
    log_event(
        "abandoned",
        query_id=sender.query_id,
        batch_id=sender.batch_id,
        caller=sender.caller,
        rows=rows,
        abandoned_rows_since_start=since_start,
    )
