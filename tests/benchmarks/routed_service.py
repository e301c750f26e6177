"""`ext-classify serve` where FastAPI routes POST /classify: python -m tests.benchmarks.routed_service serve.

What app.api.asgi saves by answering it itself is the difference to `ext-classify serve`.
"""

import sys

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

import app.main
from app.api.asgi import Service
from app.cli.main import main
from app.settings import Settings
from app.workers.starting import ClassifierProcesses

_create_app = app.main.create_app


class RoutedService(Service):
    """Passes POST /classify to FastAPI, whose route does what Service does for it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/classify"):
            await self.pages(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: Settings, processes: ClassifierProcesses | None = None) -> Service:
    """The service with its POST /classify as a route of FastAPI."""
    service = _create_app(settings, processes)
    routed = RoutedService(service.state, service._endpoint, service.pages)  # noqa: SLF001

    async def classify(request: Request) -> Response:
        return await routed._classify(request)  # noqa: SLF001

    # Before the documentation's route of the same path, which never answers.
    service.pages.router.add_api_route("/classify", classify, methods=["POST"])
    service.pages.router.routes.insert(0, service.pages.router.routes.pop())
    return routed


if __name__ == "__main__":
    app.main.create_app = create_app
    sys.exit(main())
