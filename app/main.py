"""The one place where the parts meet."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from starlette.datastructures import State

from app import __version__
from app.admission import Admission
from app.api import classify, health
from app.api.answers import FORESEEN, methods_at, refusal_of
from app.api.asgi import DirectFastAPI, record_if_refused
from app.api.auth import open_guards
from app.api.batch import BatchClassifier
from app.api.health import Gauges
from app.api.openapi import add_answer_examples
from app.api.pages import add_docs, add_playground
from app.api.shutdown import Stopping
from app.batches.batches import Batches
from app.batches.store import AnswerStore, MemoryStore
from app.event_loop import within
from app.images.fetcher import open_fetcher
from app.pipeline import Pipeline, max_fetched_rows
from app.settings import Settings, unknown_variables
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import StageReader
from app.telemetry.log import configure, log_event, logger, serving
from app.telemetry.record import RefusalLog
from app.telemetry.tracing import TRACING
from app.workers.capacity import Capacity
from app.workers.host import ClassifierProcesses
from app.workers.pool import LiveClassifiers
from app.workers.protocol import ServedModel
from app.workers.queue import RowQueue
from app.workers.reload import ignore_until_ready, reloaded_by_signal


def create_app(settings: Settings, processes: ClassifierProcesses | None = None) -> FastAPI:
    """The service, its network loaded, warm and proven. Raises ArtifactError when that fails.

    `processes` may have been started before, so that they and this process get ready side by side.
    """
    processes = processes or ClassifierProcesses(settings)
    ignore_until_ready()
    configure(settings.log_level)
    log_event("starting", **settings.model_dump(mode="json"))
    for variable in unknown_variables():
        logger.warning("There is no such setting. Received: %r", variable)
    if settings.traces:
        TRACING.start()
    app = DirectFastAPI(
        title="ext-classify",
        summary="A Keras image classifier as a Snowflake SQL function.",
        version=__version__,
        openapi_url=None,  # added with /docs, as bytes: FastAPI would format it for every request
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the caller's Host, and Snowflake follows none
        servers=[{"url": "."}],  # where the document lies, also behind a path prefix
        lifespan=_lifespan(settings, processes),
    )
    app.state.settings = settings
    app.state.guards = open_guards(settings)
    app.state.stopping = Stopping(settings.stop_delay_seconds, settings.stop_grace_seconds)
    app.state.refusals = RefusalLog()
    app.include_router(classify.router)
    app.include_router(health.router)
    add_answer_examples(app)
    if settings.show_playground:
        add_playground(app)
    if settings.show_docs:
        add_docs(app)
    _add_error_handlers(app)
    app.state.model = processes.wait_until_ready()
    return app


def _lifespan(
    settings: Settings, processes: ClassifierProcesses
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model: ServedModel = app.state.model
        queue = RowQueue(Capacity(settings.classifiers, settings.max_concurrent_fetches))
        async with (
            LiveClassifiers(settings, queue, processes, model) as classifiers,
            open_fetcher(settings) as fetcher,
            SnowflakeSession(settings) as session,
        ):
            stages = StageReader(settings, session, fetcher)
            pipeline = Pipeline(classifiers.pool, queue, fetcher, stages, max_fetched_rows(settings))
            _open_state(app.state, pipeline, classifiers)
            noting = asyncio.create_task(app.state.gauges.keep_noting())
            log_event("ready", **model.identity)
            with app.state.stopping.heard(), reloaded_by_signal(classifiers), serving():
                yield
                noting.cancel()
                await app.state.batches.close()
                app.state.refusals.close()
        TRACING.close()

    return lifespan


def _open_state(state: State, pipeline: Pipeline, classifiers: LiveClassifiers) -> None:
    """What requests find."""
    settings: Settings = state.settings
    state.gauges = Gauges(state)
    state.classifiers = classifiers
    state.pipeline = pipeline
    state.admission = Admission(
        pipeline.queue,
        settings.max_wait_seconds,
        settings.max_pending_bytes,
        reserve_bytes=settings.max_image_bytes,
        # Slower than this, a body of full size does not arrive in time.
        min_bytes_per_second=settings.max_body_bytes / settings.body_timeout_seconds,
    )
    state.classify_batch = BatchClassifier(settings, pipeline, state.admission)
    store = _open_store(settings, state.admission)
    # Of workers without a common memory, another one may be asked for what this one has promised.
    has_one_memory = settings.workers == 1 or settings.redis_url is not None
    deadline_seconds = settings.sync_deadline_seconds if has_one_memory else None
    classify_batch = within(settings.request_timeout_seconds, state.classify_batch)
    state.batches = Batches(classify_batch, store, deadline_seconds, settings.request_timeout_seconds)
    state.stopping.owes_answers = lambda: state.batches.owes


def _open_store(settings: Settings, admission: Admission) -> AnswerStore:
    local = MemoryStore(settings.remembered_seconds, settings.max_remembered_bytes)
    if settings.redis_url is None:
        return local
    from app.batches.redis_store import RedisStore  # noqa: PLC0415 - Redis is optional, and slow to import

    return RedisStore(settings.redis_url.get_secret_value(), local, settings.remembered_seconds, admission)


def _add_error_handlers(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        answer = refusal_of(error)
        # A route knows its own methods only, and a path may have several routes.
        if answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (
            methods := methods_at(app.routes, request.scope)
        ):
            answer.headers["allow"] = ", ".join(methods)
        record_if_refused(error, request)
        return answer

    for kind in (*FORESEEN, Exception):
        app.add_exception_handler(kind, refuse)


def __getattr__(name: str) -> FastAPI:
    """`uvicorn app.main:app`, without settings being read by whoever merely imports this module."""
    if name == "app":
        globals()["app"] = app = create_app(Settings())  # uvicorn asks twice
        return app
    raise AttributeError(name)
