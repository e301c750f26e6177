"""Liveness and readiness, the model card and metrics."""

import asyncio
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from app import __version__
from app.api.asgi import ServiceState
from app.batches.batches import Batches
from app.outcome import ModelIdentity
from app.snowflake.self_check import Finding
from app.telemetry import metrics

# Probes wait a few seconds at most for their response.
_PING_SECONDS = 1.0
_GAUGE_SECONDS = 1.0


class Readiness(TypedDict):
    """`answers` is where answers are cached: in memory, in Redis, or in memory while Redis is unavailable."""

    status: Literal["ready", "stopping", "no_classifier"]
    model: ModelIdentity
    answers: Literal["memory", "redis", "redis_unavailable"]


class Diagnosis(TypedDict):
    """What the running service found out about itself; `ext-classify doctor` prints it."""

    version: str
    model: ModelIdentity
    findings: list[Finding]


def create_router(state: ServiceState, gauges: "Gauges") -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Is the process alive")
    async def healthz() -> dict[str, str]:
        """Responds as long as the process can respond at all."""
        return {"status": "alive"}

    @router.get(
        "/readyz", summary="Is the network loaded and verified", responses={503: {"model": Readiness}}
    )
    async def readyz(response: Response) -> Readiness:
        """Responds only once the network is loaded, warm, and has passed its self-test.

        503 during shutdown, and while no classifier process is ready.
        """
        shared = state.batches.shared
        if shared is not None:
            with suppress(TimeoutError):  # report what was last known of the store
                async with asyncio.timeout(_PING_SECONDS):
                    await shared.ping()
        status = _status(state)
        if status != "ready":
            response.status_code = 503
        return Readiness(
            status=status, model=state.pipeline.model.identity, answers=_location_of(state.batches)
        )

    @router.get("/model", summary="The card of the network that serves")
    async def model() -> dict[str, Any]:
        """Class names in index order, image spec, metrics, training, sha256, versions."""
        served = state.pipeline.model
        return {**served.identity, "engine": state.settings.engine, **served.card}

    @router.get("/doctor", summary="Do login, stages and storage work from here")
    async def doctor() -> Diagnosis:
        """Logs in to Snowflake, and signs and fetches one file of each stage that the settings name."""
        identity, findings = state.pipeline.model.identity, await state.self_check.run()
        return Diagnosis(version=__version__, model=identity, findings=findings)

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    async def expose() -> Response:
        """Requests, rows by outcome, images by label, seconds by step, and the service's load.

        Over all workers.
        """
        gauges.update()
        return Response(metrics.expose(), media_type=metrics.CONTENT_TYPE)

    return router


def _status(state: ServiceState) -> Literal["ready", "stopping", "no_classifier"]:
    if state.shutdown.has_begun:
        return "stopping"
    return "ready" if state.classifiers.pool.is_available else "no_classifier"


def _location_of(batches: Batches) -> Literal["memory", "redis", "redis_unavailable"]:
    if batches.shared is None:
        return "memory"
    return "redis" if batches.shared.is_available else "redis_unavailable"


class Gauges:
    """The load of this worker, kept up to date because any worker may answer /metrics for all of them."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._model: ModelIdentity | None = None
        self._abandoned_rows = 0

    async def keep_updating(self) -> None:
        while True:
            self.update()
            await asyncio.sleep(_GAUGE_SECONDS)

    def update(self) -> None:
        state, queue, batches = self._state, self._state.pipeline.queue, self._state.batches
        metrics.UNANSWERED_ROWS.set(queue.unanswered_rows)
        metrics.PENDING_BYTES.set(state.admission.pending_bytes)
        metrics.ROW_SECONDS.set(queue.capacity.row_seconds)
        metrics.RUNNING_BATCHES.set(len(batches))
        metrics.CACHED_ANSWER_BYTES.set(batches.cache.held_bytes)
        metrics.CLASSIFIERS.set(state.classifiers.pool.size)
        metrics.SHARED_STORE_UP.set(batches.shared is None or batches.shared.is_available)
        metrics.ABANDONED_ROWS.inc(queue.abandoned_rows - self._abandoned_rows)
        self._abandoned_rows = queue.abandoned_rows
        self._update_model(state.pipeline.model.identity)

    def _update_model(self, identity: ModelIdentity) -> None:
        if self._model not in (None, identity):
            metrics.MODEL.labels(**self._model).set(0)
        self._model = identity
        metrics.MODEL.labels(**identity).set(1)
