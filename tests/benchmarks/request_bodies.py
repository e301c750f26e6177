"""Requests as bytes, built before the measurement: bodies in every form, and heads with new batch ids."""

import base64
import itertools
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.benchmarks.contenders import Form

_BOUNDARY = "ext-classify-benchmark"
_MEDIA_TYPES: dict[Form, str] = {
    "snowflake": "application/json",
    "image": "application/octet-stream",
    "multipart": f"multipart/form-data; boundary={_BOUNDARY}",
    "v2": "application/json",
}
# Large batches come in few different bodies, or they would not fit into memory.
_MOST_BYTES_OF_BODIES = 64 * 1024 * 1024
_SIGNATURE, _RETURN_TYPE, _NAME = "(IMAGE VARCHAR)", "VARIANT", "EXT_CLASSIFY"


class Request(NamedTuple):
    """Head and body, sent separately so that the body is not copied."""

    head: bytes
    body: bytes


class Requests:
    """Requests of one form and number of rows; images come in the same order for every server."""

    def __init__(self, form: Form, path: str, bodies: Sequence[bytes]) -> None:
        self._bodies = bodies
        self._fixed = _fixed_head(form, path)
        self._run = uuid.uuid4().hex
        self._has_batch_id = form == "snowflake"

    def __iter__(self) -> Iterator[Request]:
        for number, body in enumerate(itertools.cycle(self._bodies)):
            yield Request(self._head(number, len(body)), body)

    def _head(self, number: int, length: int) -> bytes:
        batch_id = (
            f"sf-external-function-query-batch-id: {self._run}:{number}\r\n" if self._has_batch_id else ""
        )
        return b"%bContent-Length: %d\r\n%b\r\n" % (self._fixed, length, batch_id.encode())


def make_bodies(form: Form, rows: int, files: Sequence[bytes]) -> list[bytes]:
    """Bodies that together go through all images, or through as many as memory allows."""
    if form in ("image", "multipart") and rows != 1:
        raise ValueError(f"A request of the form {form} holds one image. Received: {rows} rows.")
    bodies: list[bytes] = []
    for turn in range(len(files)):
        picked = [files[(turn * rows + i) % len(files)] for i in range(rows)]
        bodies.append(_make_body(form, picked))
        rows_made = rows * len(bodies)
        if rows_made % len(files) == 0 or sum(map(len, bodies)) > _MOST_BYTES_OF_BODIES:
            break
    return bodies


def _make_body(form: Form, files: Sequence[bytes]) -> bytes:
    match form:
        case "image":
            return files[0]
        case "multipart":
            return _multipart(files[0])
        case "snowflake":
            texts = [base64.b64encode(file).decode() for file in files]
            return json.dumps({"data": list(enumerate(texts))}).encode()
        case "v2":
            texts = [base64.b64encode(file).decode() for file in files]
            tensor = {"name": "image", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
            return json.dumps({"inputs": [tensor]}).encode()


def _multipart(file: bytes) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    )
    return head.encode() + file + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _fixed_head(form: Form, path: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {_MEDIA_TYPES[form]}",
        *(_snowflake_headers() if form == "snowflake" else ()),
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _snowflake_headers() -> Iterator[str]:
    yield "User-Agent: snowflake/1.0"
    yield "sf-external-function-format: json"
    yield "sf-external-function-format-version: 1.0"
    yield f"sf-external-function-current-query-id: {uuid.uuid4()}"
    for key, value in (("name", _NAME), ("signature", _SIGNATURE), ("return-type", _RETURN_TYPE)):
        yield f"sf-external-function-{key}: {value}"
        yield f"sf-external-function-{key}-base64: {base64.b64encode(value.encode()).decode()}"
