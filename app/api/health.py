"""Is it alive, is it ready, what does it hold."""

import asyncio
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from starlette.datastructures import State
from typing_extensions import TypedDict

from app.api.shutdown import Stopping
from app.batches.store import AnswerStore
from app.outcome import ModelIdentity
from app.pipeline import Pipeline
from app.telemetry import metrics
from app.workers.pool import LiveClassifiers

router = APIRouter(tags=["service"])

# Probes wait a second or a few for their answer.
_LOOK_SECONDS = 1.0


class Readiness(TypedDict):
    """`answers` says where they are remembered: here, in Redis, or here while Redis does not answer."""

    status: Literal["ready", "stopping", "no_classifier"]
    model: ModelIdentity
    answers: Literal["memory", "redis", "redis_unavailable"]


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """Answers as long as the process can answer at all."""
    return {"status": "alive"}


@router.get("/readyz", summary="Is the network loaded and proven", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Answers only once the network is loaded, warm, and right about its golden image.

    503 while the service stops, and while no classifier process is ready.
    """
    pipeline: Pipeline = request.app.state.pipeline
    store: AnswerStore = request.app.state.batches.store
    with suppress(TimeoutError):  # what was known of the store before is what is said of it
        async with asyncio.timeout(_LOOK_SECONDS):
            await store.look()
    status = _status_of(request)
    if status != "ready":
        response.status_code = 503
    return Readiness(status=status, model=pipeline.model.identity, answers=_where_answers_are(store))


def _status_of(request: Request) -> Literal["ready", "stopping", "no_classifier"]:
    stopping: Stopping = request.app.state.stopping
    classifiers: LiveClassifiers = request.app.state.classifiers
    if stopping.has_begun:
        return "stopping"
    return "ready" if classifiers.pool.is_available else "no_classifier"


@router.get("/model", summary="The card of the network that answers")
async def model(request: Request) -> dict[str, Any]:
    """Class names in index order, image spec, metrics, how it was trained, sha256, versions."""
    pipeline: Pipeline = request.app.state.pipeline
    engine = request.app.state.settings.engine
    return {**pipeline.model.identity, "engine": engine, **pipeline.model.card}


def _where_answers_are(store: AnswerStore) -> Literal["memory", "redis", "redis_unavailable"]:
    if not store.is_shared:
        return "memory"
    return "redis" if store.is_available else "redis_unavailable"


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
