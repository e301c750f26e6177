"""Is it alive, is it ready, what does it hold."""

from typing import Any

from fastapi import APIRouter, Request
from typing_extensions import TypedDict

from app.outcome import ModelIdentity
from app.pipeline import Pipeline

router = APIRouter(tags=["service"])


class Readiness(TypedDict):
    status: str
    model: ModelIdentity


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """Answers as long as the process can answer at all."""
    return {"status": "alive"}


@router.get("/readyz", summary="Is the network loaded and proven")
async def readyz(request: Request) -> Readiness:
    """Answers only once the network is loaded, warm, and right about its golden image."""
    pipeline: Pipeline = request.app.state.pipeline
    return Readiness(status="ready", model=pipeline.model.identity)


@router.get("/model", summary="The card of the network that answers")
async def model(request: Request) -> dict[str, Any]:
    """Class names in index order, image spec, metrics, how it was trained, sha256, versions."""
    pipeline: Pipeline = request.app.state.pipeline
    engine = request.app.state.settings.engine
    return {**pipeline.model.identity, "engine": engine, **pipeline.model.card}
