"""Every path but /classify: probes and metrics, the playground, and the API documentation.

Static files are served from memory, so that no path reaches the file system and slow clients hold no copies.
"""

import base64
import functools
import hashlib
import mimetypes
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic import Field
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from app import __version__
from app.api.asgi import ServiceState, error_response
from app.api.auth import SAMPLES_FOLDER
from app.api.health import Gauges, create_router
from app.names import BATCH_ID_HEADER
from app.outcome import ErrorDetail, Outcome
from model.defaults import find_samples


def create_pages(
    state: ServiceState, gauges: Gauges, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    pages = FastAPI(
        title="ext-classify",
        summary="A Keras image classifier as a Snowflake SQL function.",
        version=__version__,
        openapi_url=None,  # served by _add_docs, as bytes: FastAPI would format it for every request
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's Host, and Snowflake follows none
        servers=[{"url": "."}],  # relative to the document, which may lie behind a path prefix
        lifespan=lifespan,
    )
    pages.include_router(create_router(state, gauges))
    document_classify(pages)
    if state.settings.show_playground:
        _add_samples(pages, find_samples(state.settings.model_path))
        _add_playground(pages)
    if state.settings.show_docs:
        _add_docs(pages)
    _add_error_handlers(pages)
    return pages


def _add_error_handlers(pages: FastAPI) -> None:
    async def respond(request: Request, error: Exception) -> Response:
        response = error_response(error, request.scope)
        # A route knows only its own methods, and a path may have several routes.
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (
            methods := _methods_at(pages.routes, request.scope)
        ):
            response.headers["allow"] = ", ".join(methods)
        return response

    pages.add_exception_handler(HTTPException, respond)
    pages.add_exception_handler(Exception, respond)


def _methods_at(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that a path allows (RFC 9110, section 10.2.1)."""
    matching = [route for route in iter_route_contexts(routes) if route.matches(scope)[0] != Match.NONE]
    methods = {method for route in matching for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


# Longer lists in If-None-Match are ignored.
_MAX_CONDITION_BYTES = 256


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


class StaticFiles:
    """An ASGI application that serves the files of one folder, without subfolders.

    Raises HTTPException for other methods and paths.
    """

    def __init__(self, folder: Path, headers: Mapping[str, str] | None = None) -> None:
        self._files = {path.name: _read(path) for path in sorted(folder.iterdir()) if _is_page_file(path)}
        self._headers = dict(headers or {})

    @property
    def names(self) -> list[str]:
        return list(self._files)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        if name not in self._files:
            raise HTTPException(404)
        await self.response(name, Headers(scope=scope))(scope, receive, send)

    def response(self, name: str, request_headers: Mapping[str, str]) -> Response:
        """A file, or 304 if the client's copy is current (RFC 9110, section 13.1.2)."""
        file = self._files[name]
        headers = {**self._headers, "etag": file.etag}
        condition = request_headers.get("if-none-match", "")
        if len(condition) <= _MAX_CONDITION_BYTES and file.etag in condition:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _is_page_file(path: Path) -> bool:
    return path.is_file() and path.suffix != ".py"


def _read(path: Path) -> _File:
    content = path.read_bytes()
    media_type, _ = mimetypes.guess_type(path.name)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return _File(content, media_type or "application/octet-stream", f'"{digest}"')


FOLDER = Path(__file__).parent / "playground"
# Content Security Policy Level 3. Images are the user's files (blob:) and heatmaps from responses (data:).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Browsers revalidate cached files on every load, so that an upgrade never mixes old scripts with a new page.
_REVALIDATE = {"cache-control": "no-cache"}


def _add_samples(pages: FastAPI, folder: Path | None) -> None:
    """Serve the network's sample images and the list of their names, which is empty without a folder."""
    images = StaticFiles(folder, _REVALIDATE) if folder is not None else None

    @pages.get(SAMPLES_FOLDER, include_in_schema=False)
    async def samples() -> list[str]:
        return images.names if images is not None else []

    if images is not None:
        pages.mount(SAMPLES_FOLDER, images)


def _add_playground(pages: FastAPI) -> None:
    files = StaticFiles(FOLDER, _REVALIDATE)
    pages.mount("/playground", files)

    @pages.get("/", include_in_schema=False)
    async def playground(request: Request) -> Response:
        response = files.response("index.html", request.headers)
        response.headers["content-security-policy"] = POLICY
        return response


_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def _add_docs(pages: FastAPI) -> None:
    """Without a playground, / redirects to /docs."""
    pages.mount("/docs/assets", StaticFiles(Path(str(files("fastapi_swagger"))) / "resources"))
    html = _page()
    headers = {"content-security-policy": _policy_of(html)}

    @functools.cache
    def document() -> bytes:
        return to_json(pages.openapi())

    @pages.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    @pages.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    @pages.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def _page() -> str:
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="ext-classify",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )
    return bytes(page.body).decode()


def _policy_of(html: str) -> str:
    """Allows only the page's own scripts (Content Security Policy Level 3), and nothing from other hosts."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in _INLINE_SCRIPT.findall(html)
    )
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


# An 8 x 8 grey PNG, so that "Try it out" works unchanged.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="
)


class BatchAnswer(TypedDict):
    """One [row_number, outcome] for each row, with the same numbers in the same order; null for null."""

    data: list[tuple[int, Outcome | None]]


class FileOutcome(Outcome):
    """The outcome of one uploaded file."""

    filename: str


class FilesAnswer(TypedDict):
    """One outcome for each file, in the order of upload."""

    results: list[FileOutcome]


class Running(TypedDict):
    """The response is deferred; poll for it by GET."""

    status: Literal["running"]


class ErrorAnswer(TypedDict):
    """The whole request failed."""

    error: ErrorDetail


Answer = Annotated[
    BatchAnswer | FilesAnswer | Outcome,
    Field(description="A batch for JSON, results for multipart, one outcome for a raw image."),
]

# An invalid source or option is an error of its row in a 200 response, so the schema restricts no type.
_ROW = {
    "type": "array",
    "description": "[row_number, source] or [row_number, source, options]",
    "minItems": 2,
    "maxItems": 3,
    "prefixItems": [
        {"type": "integer", "format": "int64", "description": "row number, echoed"},
        {
            "description": "string: URL or stage path of an image, or its bytes as base64, a data: URL or "
            "hex; null returns null",
        },
        {
            "description": "object or null: evidence (boolean), whether to show where in the image the "
            "network saw the label, as a box and a heatmap",
        },
    ],
}

_BATCH = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "array", "items": _ROW}},
}

_FILES = {
    "type": "object",
    "description": "One or more image files, under any field name; text fields are rejected.",
    "minProperties": 1,
    "properties": {"file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
    "additionalProperties": False,
}

_IMAGE = {"schema": {"type": "string", "format": "binary", "minLength": 1, "description": "an image file"}}

_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": _BATCH,
            "example": {"data": [[0, _EXAMPLE_IMAGE], [1, None]]},
        },
        "multipart/form-data": {"schema": _FILES},
        "application/octet-stream": _IMAGE,
        "image/*": _IMAGE,
    },
}

_OUTCOME = {
    "label": "Scratches",
    "confidence": 0.999872,
    "probabilities": {"Inclusion": 0.000128, "Scratches": 0.999872},
    "abstained": False,
    "reason": None,
    "nearest_label": None,
    "nearest_confidence": None,
    "evidence": None,
    "model": {"name": "steel_defects", "version": "0123456789ab"},
    "error": None,
}

_ANSWERS = {
    "batch": {"summary": "to a batch", "value": {"data": [[0, _OUTCOME], [1, None]]}},
    "image": {"summary": "to the bytes of one image", "value": _OUTCOME},
    "files": {"summary": "to uploaded files", "value": {"results": [{"filename": "a.png", **_OUTCOME}]}},
}

_PARAMETERS = [
    {
        "name": "evidence",
        "in": "query",
        "required": False,
        "description": "Evidence for every image of the request; a row's own option takes precedence.",
        "schema": {"type": "boolean", "default": False},
    },
]


def _refusal(description: str) -> dict[str, Any]:
    return {"model": ErrorAnswer, "description": description}


_CLASSIFY: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Classify images",
    "description": (
        "The Content-Type selects the form. **application/json**: a batch in the format of Snowflake's "
        "external functions, in which each row names or holds an image; it may be compressed "
        "(Content-Encoding: gzip or deflate). **image/\\*** or "
        "**application/octet-stream**: the bytes of one image. **multipart/form-data**: image files.\n\n"
        "The network abstains on an image unlike its training images: `label` and `confidence` are null, "
        "`reason` says why, and `nearest_label` with `nearest_confidence` is what it would have answered. "
        "`model.missing` lists what the outcomes of an imported network lack: without `calibration`, "
        "`confidence` is the network's own softmax. An image that cannot be classified has an `error` in its "
        "outcome. The status is 200 in both cases."
    ),
    "openapi_extra": {"requestBody": _REQUEST_BODY, "parameters": _PARAMETERS},
    "responses": {
        200: {"model": Answer, "description": "One outcome for each image."},
        400: _refusal("The body contradicts its headers."),
        413: _refusal("The body, its rows or files, or the response exceeds a limit."),
        415: _refusal("The Content-Type or Content-Encoding is not supported."),
        202: {
            "model": Running,
            "description": "The batch takes longer than a gateway waits: poll for it by GET, with its id.",
        },
        408: _refusal("The body did not arrive in time."),
        422: _refusal("The JSON is not a batch of rows, the form holds no files, or the query is invalid."),
        429: _refusal("The service is overloaded: retry after the seconds in Retry-After."),
    },
}

_POLL: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Poll for the response to a batch that was deferred (202)",
    "description": "With the batch's id, any number of times while the response is cached.",
    "openapi_extra": {
        "parameters": [
            {
                "name": BATCH_ID_HEADER,
                "in": "header",
                "required": True,
                "description": "The batch id, as sent.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    },
    "responses": {
        200: {"model": BatchAnswer, "description": "One outcome for each row."},
        202: {"model": Running, "description": "The batch is still running."},
        404: _refusal("No batch with this id is running or cached."),
        413: _refusal("The request or the response exceeds a limit."),
        422: _refusal("The header with the batch id is missing or invalid."),
    },
}


def document_classify(app: FastAPI) -> None:
    """Describe /classify in the app's OpenAPI document, although the service answers it without FastAPI."""
    described = APIRouter()
    described.add_api_route("/classify", _not_routed, methods=["POST"], name="classify", **_CLASSIFY)
    described.add_api_route("/classify", _not_routed, methods=["GET"], name="poll", **_POLL)

    def openapi() -> dict[str, Any]:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=[*described.routes, *app.routes],
            servers=app.servers,
        )
        # FastAPI drops every null of the examples that it is given.
        response = document["paths"]["/classify"]["post"]["responses"]["200"]
        response["content"]["application/json"]["examples"] = _ANSWERS
        return document

    # FastAPI documents this as the way to extend its document.
    app.openapi = openapi  # type: ignore[method-assign]


async def _not_routed() -> Response:
    raise RuntimeError("app.api.asgi answers /classify; FastAPI only documents it.")
