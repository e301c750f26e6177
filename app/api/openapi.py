"""The OpenAPI description of /classify, which reads and formats bodies itself, without FastAPI."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import Field
from typing_extensions import TypedDict

from app.names import BATCH_ID_HEADER
from app.outcome import ErrorDetail, Outcome

# An 8 x 8 grey PNG, so that "Try it out" works as it stands.
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="
)


class BatchAnswer(TypedDict):
    """One [row_number, outcome] for each row, same numbers, same order; NULL answers NULL."""

    data: list[tuple[int, Outcome | None]]


class FileOutcome(Outcome):
    """The outcome of one uploaded file."""

    filename: str


class FilesAnswer(TypedDict):
    """One outcome for each file, in the order of upload."""

    results: list[FileOutcome]


class Running(TypedDict):
    """A batch whose answer is to be asked for."""

    status: Literal["running"]


class ErrorAnswer(TypedDict):
    """A request that could not be answered at all."""

    error: ErrorDetail


Answer = Annotated[
    BatchAnswer | FilesAnswer | Outcome,
    Field(description="A batch for JSON, results for multipart, one outcome for a raw image."),
]

# What a row's source or options should not be is an error of that row, and its batch is answered 200: so they
# are described, but of any type.
_ROW = {
    "type": "array",
    "description": "[row_number, source] or [row_number, source, options]",
    "minItems": 2,
    "maxItems": 3,
    "prefixItems": [
        {"type": "integer", "format": "int64", "description": "row number, echoed"},
        {
            "description": "string: URL or stage path of an image, or its bytes as base64 or hex; "
            "null answers null",
        },
        {
            "description": "object or null: evidence (boolean), whether to show where in the image the label "
            "was seen, by a box and a heatmap",
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
    "description": "One or many image files; any other name than `file` will do too, but for no text.",
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
        "description": "Evidence for every image of the request; a row's own option goes before.",
        "schema": {"type": "boolean", "default": False},
    },
]


def _refusal(description: str) -> dict[str, Any]:
    return {"model": ErrorAnswer, "description": description}


_CLASSIFY: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Classify images",
    "description": (
        "The Content-Type chooses the form. **application/json**: a batch in the form of Snowflake's "
        "external functions, each row what names an image or holds it; it may be compressed "
        "(Content-Encoding: gzip or deflate). **image/\\*** or "
        "**application/octet-stream**: the bytes of one image. **multipart/form-data**: image files.\n\n"
        "An image that is unlike all that the network was trained on is abstained on: `label` is null, "
        "`reason` says why, `nearest_label` what it would have been. An image that cannot be classified has "
        "its `error` in its own outcome. The answer is 200 either way."
    ),
    "openapi_extra": {"requestBody": _REQUEST_BODY, "parameters": _PARAMETERS},
    "responses": {
        200: {"model": Answer, "description": "One outcome for each image."},
        400: _refusal("The body is not what its headers say."),
        413: _refusal("The body, its rows or files, or the answer to Snowflake is over a limit."),
        415: _refusal("The Content-Type or Content-Encoding is none of those documented."),
        202: {
            "model": Running,
            "description": "The batch takes longer than a gateway waits: ask for it by GET, with its id.",
        },
        408: _refusal("The body did not arrive in time."),
        422: _refusal("The JSON is no batch of rows, the form holds no files, or the query is unknown."),
        429: _refusal("Others fill the time or the memory that there is: send it again, see Retry-After."),
    },
}

_POLL: dict[str, Any] = {
    "tags": ["classification"],
    "summary": "Ask for the answer to a batch that was answered 202",
    "description": "With the batch's id, as often as asked while it is remembered.",
    "openapi_extra": {
        "parameters": [
            {
                "name": BATCH_ID_HEADER,
                "in": "header",
                "required": True,
                "description": "The id of the batch, as it was sent.",
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    },
    "responses": {
        200: {"model": BatchAnswer, "description": "One outcome for each row."},
        202: {"model": Running, "description": "It is still running."},
        404: _refusal("No such batch is running or remembered."),
        413: _refusal("The answer, or what was sent, is over a limit."),
        422: _refusal("The batch is not named."),
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
    raise NotImplementedError
