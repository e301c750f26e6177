"""POST /classify without the framework's way to it."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.api.classify import classify
from app.api.refusal import FORESEEN, refusal_of


class DirectFastAPI(FastAPI):
    """FastAPI, with its middleware and routing spared to the request that comes by the thousand.

    They take a third of what a single image costs beside its decoding and prediction. Whatever is added to
    the app as middleware or dependency does not hold for that request.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", "/classify"):
            scope["app"] = self
            await _classify(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _classify(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await classify(Request(scope, receive))
    except Exception as error:
        await refusal_of(error)(scope, receive, send)
        if not isinstance(error, FORESEEN):
            raise  # for the server to log
    else:
        await response(scope, receive, send)
