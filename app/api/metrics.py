"""GET /metrics, and how full this worker is."""

import asyncio

from fastapi import APIRouter, Request, Response
from starlette.datastructures import State

from app import metrics
from app.outcome import ModelIdentity

router = APIRouter(tags=["service"])

_NOTE_SECONDS = 1.0


@router.get("/metrics", summary="What the service counts, for Prometheus", response_class=Response)
async def expose(request: Request) -> Response:
    """Requests, rows by outcome, images by label, seconds by step, and how full the service is.

    Over all its workers.
    """
    request.app.state.gauges.note()
    return Response(metrics.expose(), media_type=metrics.CONTENT_TYPE)


class Gauges:
    """How full this worker is. Whichever worker is asked answers for all, so each notes it all the time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._model: ModelIdentity | None = None
        self._abandoned_rows = 0

    async def keep_noting(self) -> None:
        while True:
            self.note()
            await asyncio.sleep(_NOTE_SECONDS)

    def note(self) -> None:
        queue, batches = self._state.pipeline.queue, self._state.batches
        metrics.UNANSWERED_ROWS.set(queue.unanswered_rows)
        metrics.PENDING_BYTES.set(self._state.admission.pending_bytes)
        metrics.ROW_SECONDS.set(queue.capacity.row_seconds)
        metrics.RUNNING_BATCHES.set(len(batches))
        metrics.REMEMBERED_BYTES.set(batches.store.held_bytes)
        metrics.CLASSIFIERS.set(self._state.classifiers.pool.size)
        metrics.SHARED_STORE_UP.set(batches.store.is_available)
        metrics.ABANDONED_ROWS.inc(queue.abandoned_rows - self._abandoned_rows)
        self._abandoned_rows = queue.abandoned_rows
        self._note_model(self._state.pipeline.model.identity)

    def _note_model(self, identity: ModelIdentity) -> None:
        if self._model not in (None, identity):
            metrics.MODEL.labels(**self._model).set(0)
        self._model = identity
        metrics.MODEL.labels(**identity).set(1)
