"""Fuzz targets: each takes the input's bytes, and raises an error if an invariant does not hold."""

import json
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import numpy as np

from app.admission import Admission, PendingBytes
from app.api.body import inflate, parse_files
from app.errors import ServiceError
from app.images.source import Row
from app.outcome import Outcome, blank_outcome
from app.snowflake import strict_json, wire
from app.snowflake.strict_json import parse_json
from app.workers.queue import Capacity, RowQueue
from model.errors import InputError
from model.image import ImageSpec, decode_sized
from model.image_limits import ImageLimits
from tests.app.snowflake.watched import outcome, read, seen_in_steps, shortened
from tests.fuzz.http_target import answer_requests

T = TypeVar("T")

MAX_BODY_BYTES = 1 << 20
MAX_ROWS = 64
STEP_BYTES = 1024
# A number is read in one step, and has a limit of its own.
LONG_SCALAR = re.compile(rb"[-+.0-9A-Za-z]{%d}" % STEP_BYTES)
SPEC = ImageSpec(height=32, width=24, channels=3)
LIMITS = ImageLimits(max_image_pixels=1 << 20)
_ENCODINGS = ("identity", "gzip", "deflate", "br")
_OUTCOME: Outcome = blank_outcome({"name": "m", "version": "v"})


def parse_body(data: bytes) -> None:
    """The first byte says in which form the others are; all are read, or refused as a caller's fault."""
    if not data:
        return
    form, body = data[0] % (len(_ENCODINGS) + 1), data[1:]
    if form == len(_ENCODINGS):
        _parse_files(body)
    else:
        _parse_batch(body, _ENCODINGS[form])


def read_json(data: bytes) -> None:
    """A text as it is, and with its middle repeated: both parsers agree, and no step of one is long.

    The first two bytes say where the middle begins and ends.
    """
    if len(data) < 2:
        return
    begin, end, text = data[0], data[1], data[2:]
    _compare_parsers(text, step_bytes=1 + begin % 64)
    if middle := text[begin:end]:
        repeated = text[:begin] + middle * (8 * STEP_BYTES // len(middle)) + text[end:]
        _compare_parsers(repeated, STEP_BYTES)
        seen = seen_in_steps(repeated, STEP_BYTES)
        assert max(seen) <= 5 * STEP_BYTES or LONG_SCALAR.search(repeated)
        # A string of one escape takes a whole first window.
        assert sum(seen) <= 40 * len(repeated)


def decode_image(data: bytes) -> None:
    """Pixels in the network's shape, or an error of the image."""
    try:
        decoded = decode_sized(data, SPEC, LIMITS)
    except InputError:
        return
    assert decoded.pixels.shape == SPEC.shape
    assert decoded.pixels.dtype == np.uint8
    assert min(decoded.source_size) >= 1


def _compare_parsers(text: bytes, step_bytes: int) -> None:
    assert outcome(text, lambda text: shortened(read(text, step_bytes))) == outcome(text, parse_json)


def _parse_batch(body: bytes, encoding: str) -> None:
    room = Admission(RowQueue(Capacity(1, 1)), 1.0, PendingBytes(8 * MAX_BODY_BYTES)).reserve()
    try:
        inflated = run(inflate(body, encoding, MAX_BODY_BYTES, room))
    except ServiceError:
        return
    at_once, by_pieces = (_rows_of(inflated, piece_bytes) for piece_bytes in (1 << 30, 8))
    # As they print, for an error in a row is equal to no other.
    assert repr(at_once) == repr(by_pieces), "a body is the same however it is cut"
    if not isinstance(at_once, str):
        _check_numbers(at_once)


def _check_numbers(rows: list[Row]) -> None:
    """Row numbers survive formatting, in an answer that any JSON parser reads."""
    outcomes = [None if row.source is None else _OUTCOME for row in rows]
    answer = json.loads(run(wire.format_batch(rows, outcomes)))
    assert [number for number, _ in answer["data"]] == [row.number for row in rows]


def _rows_of(body: bytes, piece_bytes: int) -> list[Row] | str:
    """Or the code of the refusal."""
    usual = wire.PIECE_BYTES, strict_json.UNCOUNTED_BYTES
    # No fuzzer's body is large, so values are counted in all of them.
    wire.PIECE_BYTES, strict_json.UNCOUNTED_BYTES = piece_bytes, 0
    try:
        return run(wire.parse_batch(body, MAX_ROWS))
    except ServiceError as error:
        return error.code
    finally:
        wire.PIECE_BYTES, strict_json.UNCOUNTED_BYTES = usual


def _parse_files(body: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    try:
        files = run(parse_files("multipart/form-data; boundary=b", chunks(), MAX_ROWS))
    except ServiceError:
        return
    assert 1 <= len(files) <= MAX_ROWS
    assert sum(len(content) for _, content in files) <= len(body)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run without an event loop: the coroutine only yields."""
    try:
        while True:
            work.send(None)
    except StopIteration as ended:
        value: T = ended.value
        return value


TARGETS = {"body": parse_body, "http": answer_requests, "image": decode_image, "json": read_json}
