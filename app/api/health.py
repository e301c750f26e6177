"""Is it alive, is it ready, what does it hold."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from app.answer_store import AnswerStore
from app.outcome import ModelIdentity
from app.pipeline import Pipeline
from app.stopping import Stopping

router = APIRouter(tags=["service"])


class Readiness(TypedDict):
    """`answers` says where they are remembered: here, in Redis, or here while Redis does not answer."""

    status: Literal["ready", "stopping"]
    model: ModelIdentity
    answers: Literal["memory", "redis", "redis_unavailable"]


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """Answers as long as the process can answer at all."""
    return {"status": "alive"}


@router.get("/readyz", summary="Is the network loaded and proven", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Answers only once the network is loaded, warm, and right about its golden image; 503 at its end."""
    pipeline: Pipeline = request.app.state.pipeline
    stopping: Stopping = request.app.state.stopping
    store: AnswerStore = request.app.state.batches.store
    await store.look()
    if stopping.has_begun:
        response.status_code = 503
    return Readiness(
        status="stopping" if stopping.has_begun else "ready",
        model=pipeline.model.identity,
        answers=_where_answers_are(store),
    )


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
