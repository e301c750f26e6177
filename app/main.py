"""Builds the service: the one place where its parts meet."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.admission import Admission, PendingBytes
from app.api.asgi import Service, ServiceState
from app.api.auth import create_guards
from app.api.classify import ClassifyEndpoint, Probes, RowClassifier
from app.api.health import Gauges
from app.api.pages import create_pages
from app.api.shutdown import Shutdown
from app.batches.batches import AnswerCache, Batches
from app.images.allowlist import Fetcher, create_fetcher
from app.pipeline import Pipeline, max_fetched_rows
from app.settings import Settings, unknown_variables
from app.snowflake.self_check import SelfCheck
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import StageReader
from app.telemetry.log import configure, log_event, logger, serving
from app.telemetry.record import RefusalLog
from app.telemetry.tracing import TRACING
from app.workers.pool import LiveClassifiers, ignore_reload_signal, log_model, reload_on_signal
from app.workers.queue import Capacity, RowQueue
from app.workers.starting import ClassifierProcesses

if TYPE_CHECKING:
    from app.batches.redis_store import RedisStore


def create_app(settings: Settings, processes: ClassifierProcesses | None = None) -> Service:
    """The ASGI application, its network loaded, warm and verified. Raises ArtifactError.

    `processes` may have been started earlier, so that they and this process start up in parallel.
    """
    processes = processes or ClassifierProcesses(settings)
    ignore_reload_signal()
    _start_telemetry(settings)
    shutdown = Shutdown(settings.stop_delay_seconds, settings.stop_grace_seconds)
    guards = create_guards(settings)
    queue = RowQueue(Capacity(settings.classifiers, settings.max_concurrent_fetches))
    pending = PendingBytes(
        settings.max_pending_bytes,
        reserve_bytes=settings.max_image_bytes,
        # At a lower rate, a body of the maximum size would not arrive before its deadline.
        min_bytes_per_second=settings.max_body_bytes / settings.body_timeout_seconds,
    )
    admission = Admission(queue, settings.max_wait_seconds, pending, settings.patience_seconds)
    fetcher, session = create_fetcher(settings), SnowflakeSession(settings)
    classifiers = LiveClassifiers(settings, queue, processes, processes.wait_until_ready())
    stages = StageReader(settings, session, fetcher)
    pipeline = Pipeline(classifiers.pool, queue, fetcher, stages, max_fetched_rows(settings))
    classifier = RowClassifier(settings, pipeline, admission, Probes(_sync_deadline_seconds(settings)))
    batches = _create_batches(settings, classifier, admission)
    shutdown.has_deferred_responses = lambda: batches.has_deferred_answers
    check = SelfCheck(settings, session, stages)
    state = ServiceState(
        settings, guards, shutdown, RefusalLog(), classifiers, pipeline, admission, batches, check
    )
    gauges = Gauges(state)
    pages = create_pages(state, gauges, _lifespan(state, gauges, fetcher, session))
    return Service(state, ClassifyEndpoint(settings, admission, classifier, batches), pages)


def _start_telemetry(settings: Settings) -> None:
    configure(settings.log_level)
    log_event("starting", **settings.model_dump(mode="json"))
    for variable in unknown_variables():
        logger.warning("There is no such setting. Received: %r", variable)
    if settings.traces:
        TRACING.start()


def _sync_deadline_seconds(settings: Settings) -> float | None:
    """None if responses cannot be deferred: a poll may reach any worker, and without Redis one has it."""
    can_defer = settings.workers == 1 or settings.redis_url is not None
    return settings.sync_deadline_seconds if can_defer else None


def _create_batches(settings: Settings, classifier: RowClassifier, admission: Admission) -> Batches:
    cache = AnswerCache(settings.answer_cache_seconds, settings.max_answer_cache_bytes)
    return Batches(
        classifier.classify_batch,
        cache,
        _sync_deadline_seconds(settings),
        settings.request_timeout_seconds,
        _create_shared_store(settings, admission, cache),
    )


def _create_shared_store(settings: Settings, admission: Admission, cache: AnswerCache) -> "RedisStore | None":
    if settings.redis_url is None:
        return None
    from app.batches.redis_store import RedisStore  # noqa: PLC0415 - Redis is optional, and slow to import

    url = settings.redis_url.get_secret_value()
    return RedisStore(url, settings.answer_cache_seconds, admission, cache.decompress)


def _lifespan(
    state: ServiceState,
    gauges: Gauges,
    fetcher: AbstractAsyncContextManager[Fetcher],
    session: SnowflakeSession,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with state.classifiers, fetcher, session:
            updating = asyncio.create_task(gauges.keep_updating())
            log_model("ready", state.pipeline.model)
            with state.shutdown.handling_signals(), reload_on_signal(state.classifiers), serving():
                yield
                updating.cancel()
                await state.batches.close()
                state.refusals.close()
        TRACING.close()

    return lifespan


def __getattr__(name: str) -> Service:
    """For `uvicorn app.main:app`: reads the settings on first access, not when this module is imported."""
    if name == "app":
        globals()["app"] = app = create_app(Settings())  # uvicorn accesses it twice
        return app
    raise AttributeError(name)
