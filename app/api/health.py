"""Is it alive, is it ready, what does it hold."""

import asyncio
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from app.answer_store import AnswerStore
from app.classifiers.live import LiveClassifiers
from app.outcome import ModelIdentity
from app.pipeline import Pipeline
from app.stopping import Stopping

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
