"""What a request's query says."""

from starlette.requests import Request

from app.errors import InvalidBatch


def wants_evidence(request: Request) -> bool:
    """The query parameter `evidence`, for every image of the request. Raises InvalidBatch."""
    given = request.query_params.get("evidence", "false")
    if given not in ("true", "false"):
        raise InvalidBatch(f"The query parameter evidence must be true or false. Received: {given[:40]!r}.")
    return given == "true"
