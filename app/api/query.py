"""What a request's query says."""

from starlette.requests import Request

from app.errors import InvalidBatch

# Starlette takes half a microsecond for a byte of it.
MAX_QUERY_BYTES = 1024


def wants_evidence(request: Request) -> bool:
    """The query parameter `evidence`, for every image of the request. Raises InvalidBatch."""
    query_bytes = len(request.scope["query_string"])
    if query_bytes > MAX_QUERY_BYTES:
        raise InvalidBatch(f"A query must have at most {MAX_QUERY_BYTES} bytes. Received: {query_bytes}.")
    given = request.query_params.get("evidence", "false")
    if given not in ("true", "false"):
        raise InvalidBatch(f"The query parameter evidence must be true or false. Received: {given[:40]!r}.")
    return given == "true"
