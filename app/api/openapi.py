"""The OpenAPI description of /classify, which reads and formats bodies itself, without FastAPI."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import Field
from typing_extensions import TypedDict

from app.names import BATCH_ID_HEADER
from app.outcome import ErrorDetail, Outcome

# An 8 x 8 grey PNG, so that "Try it out" works unchanged.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="
)


class BatchAnswer(TypedDict):
    """One [row_number, outcome] for each row, with the same numbers in the same order; null for null."""

    data: list[tuple[int, Outcome | None]]


class FileOutcome(Outcome):
    """The outcome of one uploaded file."""

    filename: str


class FilesAnswer(TypedDict):
    """One outcome for each file, in the order of upload."""

    results: list[FileOutcome]


class Running(TypedDict):
    """The response is deferred; poll for it by GET."""

    status: Literal["running"]


class ErrorAnswer(TypedDict):
    """The whole request failed."""

    error: ErrorDetail


Answer = Annotated[
    BatchAnswer | FilesAnswer | Outcome,
    Field(description="A batch for JSON, results for multipart, one outcome for a raw image."),
]

# An invalid source or option is an error of its row in a 200 response, so the schema restricts no type.
_ROW = {
    "type": "array",
    "description": "[row_number, source] or [row_number, source, options]",
    "minItems": 2,
    "maxItems": 3,
    "prefixItems": [
        {"type": "integer", "format": "int64", "description": "row number, echoed"},
        {
            "description": "string: URL or stage path of an image, or its bytes as base64, a data: URL or "
            "hex; null returns null",
        },
        {
            "description": "object or null: evidence (boolean), whether to show where in the image the "
            "network saw the label, as a box and a heatmap",
        },
    ],
}

_BATCH = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "array", "items": _ROW}},
}

_FILES = {
    "type": "object",
    "description": "One or more image files, under any field name; text fields are rejected.",
    "minProperties": 1,
    "properties": {"file": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
    "additionalProperties": False,
}

_IMAGE = {"schema": {"type": "string", "format": "binary", "minLength": 1, "description": "an image file"}}

_REQUEST_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": _BATCH,
            "example": {"data": [[0, _EXAMPLE_IMAGE], [1, None]]},
        },
        "multipart/form-data": {"schema": _FILES},
        "application/octet-stream": _IMAGE,
        "image/*": _IMAGE,
    },
}

_OUTCOME = {
    "label": "Scratches",
    "confidence": 0.999872,
    "probabilities": {"Inclusion": 0.000128, "Scratches": 0.999872},
    "abstained": False,
    "reason": None,
    "nearest_label": None,
    "nearest_confidence": None,
    "evidence": None,
    "model": {"name": "steel_defects", "version": "0123456789ab"},
    "error": None,
}

_ANSWERS = {
    "batch": {"summary": "to a batch", "value": {"data": [[0, _OUTCOME], [1, None]]}},
    "image": {"summary": "to the bytes of one image", "value": _OUTCOME},
    "files": {"summary": "to uploaded files", "value": {"results": [{"filename": "a.png", **_OUTCOME}]}},
}

_PARAMETERS = [
    {
        "name": "evidence",
        "in": "query",
        "required": False,
        "description": "Evidence for every image of the request; a row's own option takes precedence.",
        "schema": {"type": "boolean", "default": False},
    },
]


def _refusal(description: str) -> dict[str, Any]:
    return {"model": ErrorAnswer, "description": description}


_CLASSIFY: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Classify images",
    "description": (
        "The Content-Type selects the form. **application/json**: a batch in the format of Snowflake's "
        "external functions, in which each row names or holds an image; it may be compressed "
        "(Content-Encoding: gzip or deflate). **image/\\*** or "
        "**application/octet-stream**: the bytes of one image. **multipart/form-data**: image files.\n\n"
        "The network abstains on an image unlike its training images: `label` and `confidence` are null, "
        "`reason` says why, and `nearest_label` with `nearest_confidence` is what it would have answered. "
        "`model.missing` lists what the outcomes of an imported network lack: without `calibration`, "
        "`confidence` is the network's own softmax. An image that cannot be classified has an `error` in its "
        "outcome. The status is 200 in both cases."
    ),
    "openapi_extra": {"requestBody": _REQUEST_BODY, "parameters": _PARAMETERS},
    "responses": {
        200: {"model": Answer, "description": "One outcome for each image."},
        400: _refusal("The body contradicts its headers."),
        413: _refusal("The body, its rows or files, or the response exceeds a limit."),
        415: _refusal("The Content-Type or Content-Encoding is not supported."),
        202: {
            "model": Running,
            "description": "The batch takes longer than a gateway waits: poll for it by GET, with its id.",
        },
        408: _refusal("The body did not arrive in time."),
        422: _refusal("The JSON is not a batch of rows, the form holds no files, or the query is invalid."),
        429: _refusal("The service is overloaded: retry after the seconds in Retry-After."),
    },
}

_POLL: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Poll for the response to a batch that was deferred (202)",
    "description": "With the batch's id, any number of times while the response is cached.",
    "openapi_extra": {
        "parameters": [
            {
                "name": BATCH_ID_HEADER,
                "in": "header",
                "required": True,
                "description": "The batch id, as sent.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    },
    "responses": {
        200: {"model": BatchAnswer, "description": "One outcome for each row."},
        202: {"model": Running, "description": "The batch is still running."},
        404: _refusal("No batch with this id is running or cached."),
        413: _refusal("The request or the response exceeds a limit."),
        422: _refusal("The header with the batch id is missing or invalid."),
    },
}


def document_classify(app: FastAPI) -> None:
    """Describe /classify in the app's OpenAPI document, although the service answers it without FastAPI."""
    described = APIRouter()
    described.add_api_route("/classify", _not_routed, methods=["POST"], name="classify", **_CLASSIFY)
    described.add_api_route("/classify", _not_routed, methods=["GET"], name="poll", **_POLL)

    def openapi() -> dict[str, Any]:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=[*described.routes, *app.routes],
            servers=app.servers,
        )
        # FastAPI drops every null of the examples that it is given.
        response = document["paths"]["/classify"]["post"]["responses"]["200"]
        response["content"]["application/json"]["examples"] = _ANSWERS
        return document

    # FastAPI documents this as the way to extend its document.
    app.openapi = openapi  # type: ignore[method-assign]


async def _not_routed() -> Response:
    raise RuntimeError("app.api.asgi answers /classify; FastAPI only documents it.")
