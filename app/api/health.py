"""Is it alive, is it ready, what does it hold."""

from typing import Any

from fastapi import APIRouter, Request
from typing_extensions import TypedDict

from app.outcome import ModelIdentity
from app.pipeline import Pipeline

router = APIRouter(tags=["service"])

# Nothing to read, and large.
_ARRAYS: Any = {"class_weights": True, "novelty": {"whitening", "class_means", "prototypes"}}


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
    return Readiness(status="ready", model=pipeline.images.model)


@router.get("/model", summary="The card of the network that answers")
async def model(request: Request) -> dict[str, Any]:
    """Class names in index order, image spec, metrics, how it was trained, sha256, versions."""
    pipeline: Pipeline = request.app.state.pipeline
    engine = request.app.state.settings.engine
    card = pipeline.images.artifact.card.model_dump(mode="json", exclude=_ARRAYS)
    return {**pipeline.images.model, "engine": engine, **card}
