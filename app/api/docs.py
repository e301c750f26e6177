"""Swagger UI from a package, so that /docs works where the internet does not reach, and what it shows."""

import base64
import functools
import hashlib
import re
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from pydantic_core import to_json
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.api.static_files import StaticFiles

_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def add_docs(app: FastAPI) -> None:
    """At /docs, and where there is nothing else at /, it leads there."""
    app.mount("/docs/assets", StaticFiles(Path(str(files("fastapi_swagger"))) / "resources"))
    html = _page()
    headers = {"content-security-policy": _policy_of(html)}

    @functools.cache
    def document() -> bytes:
        return to_json(app.openapi())

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document(), media_type="application/json")

    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
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
    """Its own scripts run and no others (Content Security Policy Level 3); nothing comes from elsewhere."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in _INLINE_SCRIPT.findall(html)
    )
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
