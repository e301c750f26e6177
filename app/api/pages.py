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
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import iter_route_contexts
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app import __version__
from app.api.asgi import error_response
from app.api.auth import SAMPLES_FOLDER
from app.api.health import Gauges, create_router
from app.api.openapi import document_classify
from app.api.state import ServiceState
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
