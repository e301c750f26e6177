"""The playground at /: static files that send requests only to this service."""

from pathlib import Path

from fastapi import FastAPI, Request, Response

from app.api.static_files import StaticFiles
from app.command_line import SAMPLES

FOLDER = Path(__file__).parent / "playground"
# Content Security Policy Level 3. Images are the user's files (blob:) and heatmaps from responses (data:).
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Browsers revalidate cached files on every load, so that an upgrade never mixes old scripts with a new page.
_REVALIDATE = {"cache-control": "no-cache"}


def add_playground(app: FastAPI) -> None:
    app.mount("/playground/samples", StaticFiles(SAMPLES, _REVALIDATE))
    files = StaticFiles(FOLDER, _REVALIDATE)
    app.mount("/playground", files)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground(request: Request) -> Response:
        response = files.response("index.html", request.headers)
        response.headers["content-security-policy"] = POLICY
        return response
