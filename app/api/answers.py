"""Answers to POST and GET /classify. A large one is counted among the pending bytes until it is sent."""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import Response
from fastapi.routing import iter_route_contexts
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from app.admission import PendingBody
from app.errors import Overloaded, ServiceError
from app.outcome import ErrorDetail

# Beyond Snowflake's limit, for clients that send no batch id: every row of a full batch with evidence.
MAX_ANSWER_BYTES_WITHOUT_ID = 64 * 1024 * 1024
# What a connection buffers before it pauses the sender, so that a smaller answer is gone at once.
PIECE_BYTES = 64 * 1024


def json_answer(content: bytes, pending: PendingBody) -> Response:
    """It takes the place of its request's body in `pending`. Raises Overloaded when there is no room."""
    if len(content) <= PIECE_BYTES:
        return Response(content, media_type="application/json")
    pending.drop()
    pending.take(len(content))
    return LargeAnswer(content, pending)


class LargeAnswer(Response):
    """Sent piece by piece, as the client reads. It is evicted when the client reads too slowly for others."""

    def __init__(self, content: bytes, pending: PendingBody) -> None:
        super().__init__(content, media_type="application/json")
        pending.hold()
        self._pending = pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as sending:
                with self._pending.evictable(lambda: sending.reschedule(loop.time()), is_in_transit=True):
                    await self._send(send)
        except (TimeoutError, Overloaded):
            return  # the server closes the connection over an answer that is not complete
        finally:
            self.body = b""
            self._pending.let_go()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE_BYTES):
            piece = self.body[start : start + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._pending.note_progress(len(piece))
            # A client that reads at once would otherwise be sent all of it in one step of the event loop.
            await asyncio.sleep(0)
        # It is sent once the client has read all but a little of the rest.
        await send({"type": "http.response.body", "body": b"", "more_body": False})


FORESEEN = (ServiceError, HTTPException, ClientDisconnect)


def refusal_of(error: Exception) -> Response:
    """The answer to a request that failed so."""
    match error:
        case ServiceError():
            # The connection stays open: a client that is still sending would not see the answer otherwise.
            return _refusal(
                error.status, error.code, error.message, retryable=error.retryable, headers=error.headers
            )
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            code = phrase.lower().replace(" ", "_")
            return _refusal(error.status_code, code, f"{phrase}.", headers=error.headers)
        case ClientDisconnect():
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        case _:
            return _refusal(500, "internal_error", "The service failed.", retryable=True)


def methods_at(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """What may be asked of the path (RFC 9110, section 10.2.1), as far as its routes say."""
    there = [route for route in iter_route_contexts(routes) if route.matches(scope)[0] != Match.NONE]
    return sorted({method for route in there for method in route.methods or ()})


def _refusal(
    status: int,
    code: str,
    message: str,
    *,
    retryable: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    # A message may quote half of a surrogate pair, which UTF-8 has no bytes for.
    message = message.encode("utf-8", "backslashreplace").decode()
    detail = ErrorDetail(code=code, message=message, retryable=retryable)
    return Response(to_json({"error": detail}), status, headers, media_type="application/json")
