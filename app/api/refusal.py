"""One shape for every refusal, `{"error": {code, message, retryable}}`; no traces, no paths."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import Response
from fastapi.routing import iter_route_contexts
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from app.errors import ServiceError
from app.outcome import ErrorDetail

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
