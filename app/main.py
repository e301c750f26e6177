"""The one place where the parts meet."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from app import __version__
from app.api import classify, health
from app.api.direct import DirectFastAPI
from app.api.openapi import add_answer_examples
from app.api.refusal import FORESEEN, refusal_of
from app.classifiers.frames import ServedModel
from app.classifiers.host import ClassifierProcesses
from app.classifiers.pool import classifier_pool
from app.images.fetcher import open_fetcher
from app.images.stage import StageReader
from app.log import configure, log_event, logger
from app.pipeline import Pipeline, max_fetched_rows
from app.row_queue import RowQueue
from app.settings import Settings, unknown_variables
from app.snowflake.session import SnowflakeSession


def create_app(settings: Settings, processes: ClassifierProcesses | None = None) -> FastAPI:
    """The service, its network loaded, warm and proven. Raises ArtifactError when that fails.

    `processes` may have been started before, so that they and this process get ready side by side.
    """
    processes = processes or ClassifierProcesses(settings)
    configure(settings.log_level)
    log_event("starting", **settings.model_dump(mode="json"))
    for variable in unknown_variables():
        logger.warning("There is no such setting. Received: %r", variable)
    app = DirectFastAPI(
        title="ext-classify",
        summary="A Keras image classifier as a Snowflake SQL function.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the caller's Host, and Snowflake follows none
        servers=[{"url": "."}],  # where the document lies, also behind a path prefix
        lifespan=_lifespan(settings, processes),
    )
    app.state.settings = settings
    app.include_router(classify.router)
    app.include_router(health.router)
    add_answer_examples(app)
    _add_docs(app)
    _add_error_handlers(app)
    app.state.model = processes.wait_until_ready()
    return app


def _lifespan(
    settings: Settings, processes: ClassifierProcesses
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model: ServedModel = app.state.model
        queue = RowQueue(settings.classifiers)
        async with (
            classifier_pool(queue, processes, model, settings.max_image_cpu_seconds),
            open_fetcher(settings) as fetcher,
            SnowflakeSession(settings) as session,
        ):
            stages = StageReader(settings, session, fetcher)
            app.state.pipeline = Pipeline(model, queue, fetcher, stages, max_fetched_rows(settings))
            log_event("ready", **model.identity)
            yield

    return lifespan


def _add_docs(app: FastAPI) -> None:
    """Swagger UI from a package, so that /docs works where the internet does not reach."""
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="ext-classify",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )


def _add_error_handlers(app: FastAPI) -> None:
    async def refuse(_: Request, error: Exception) -> Response:
        return refusal_of(error)

    for kind in (*FORESEEN, Exception):
        app.add_exception_handler(kind, refuse)


def __getattr__(name: str) -> FastAPI:
    """`uvicorn app.main:app`, without settings being read by whoever merely imports this module."""
    if name == "app":
        globals()["app"] = app = create_app(Settings())  # uvicorn asks twice
        return app
    raise AttributeError(name)
