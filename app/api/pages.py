"""The playground at /: static files that send requests only to this service."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from app.command_line import SAMPLES

FOLDER = Path(__file__).parent / "playground"
# Content Security Policy Level 3. Images are the user's files (blob:) and heatmaps from responses (data:).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Browsers revalidate cached files on every load, so that an upgrade never mixes old scripts with a new page.
_REVALIDATE = {"cache-control": "no-cache"}


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


def add_playground(app: FastAPI) -> None:
    app.mount("/playground/samples", _Files(directory=SAMPLES))
    app.mount("/playground", _Files(directory=FOLDER))

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground() -> FileResponse:
        headers = {"content-security-policy": POLICY, **_REVALIDATE}
        return FileResponse(FOLDER / "index.html", headers=headers)
