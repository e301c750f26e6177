"""Snowflake's external-function form: a JSON body to rows, and outcomes back to a JSON body.

Source: Snowflake documentation, "Remote service input and output data formats".

Large bodies are parsed and formatted piece by piece: between pieces the event loop serves others, who would
wait for a whole batch of thousands otherwise.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from pydantic_core import to_json

from app.errors import AnswerTooLarge, InvalidBatch, InvalidOptions, MalformedBody, PayloadTooLarge
from app.images.source import parse_source
from app.outcome import Outcome
from app.pieces import join_pieces
from app.row import Row
from app.snowflake.strict_json import has_more_values, parse_json

QUERY_ID_HEADER = "sf-external-function-current-query-id"
BATCH_ID_HEADER = "sf-external-function-query-batch-id"

# Documentation, "Introduction to external functions": a larger answer ends the query with less to go by.
MAX_ANSWER_BYTES = 10 * 1024 * 1024

# Any of Snowflake's is shorter. They are logged, and a stranger can make them up.
MAX_ID_CHARACTERS = 512

KNOWN_OPTIONS = ("evidence",)

Item = TypeVar("Item")


# Each is a millisecond's work or less.
PIECE_BYTES = 256 * 1024
PIECE_ROWS = 256

# No row needs more values than a few.
_MOST_VALUES_A_ROW = 16

# A body as every client writes it, but for other keys beside "data".
_BLANK = rb"[ \t\r\n]*"
_BEGINNING = re.compile(rb'%b\{%b"data"%b:%b\[' % (_BLANK, _BLANK, _BLANK, _BLANK))
_END = re.compile(rb"\]%b\}%b\Z" % (_BLANK, _BLANK))
# It begins with a byte, which is found twenty times as fast as what a lookbehind precedes.
_BETWEEN_ROWS = re.compile(rb"\](%b,%b)(?=\[)" % (_BLANK, _BLANK))


async def parse_batch(body: bytes, max_rows: int, *, evidence: bool = False) -> list[Row]:
    """Parse `{"data": [[row_number, source], [row_number, source, options], …]}`.

    Raises MalformedBody for what is not JSON, InvalidBatch for another shape, PayloadTooLarge for more
    than `max_rows` rows. Unknown keys beside "data" are ignored, as Snowflake asks. `evidence` is what a
    row without that option asks for.
    """
    if rows := await _parse_piecewise(body, max_rows, evidence=evidence):
        return rows
    await _refuse_crowded(body, max_rows)
    data = _rows_of(_parse_document(body))
    _refuse_rows(len(data), max_rows)
    async for piece in _pieces(data):
        rows += parse_rows(piece, len(rows), evidence=evidence)
    return rows


def ids_of(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The query's and the batch's, as they may be logged."""
    query_id, batch_id = (headers.get(name) for name in (QUERY_ID_HEADER, BATCH_ID_HEADER))
    return query_id and query_id[:MAX_ID_CHARACTERS], batch_id and batch_id[:MAX_ID_CHARACTERS]


def parse_rows(data: Sequence[object], start: int = 0, *, evidence: bool = False) -> list[Row]:
    """Rows of `[row_number, source]` or `[row_number, source, options]`. Raises InvalidBatch.

    `start` is the index of the first in its batch.
    """
    return [_parse_row(index, row, evidence=evidence) for index, row in enumerate(data, start)]


async def format_batch(
    rows: Sequence[Row], outcomes: Sequence[Outcome | None], max_bytes: int = MAX_ANSWER_BYTES
) -> bytes:
    """`{"data": [[row_number, outcome], …]}`, same numbers, same order; NULL for NULL.

    Raises AnswerTooLarge.
    """
    return await format_array("data", list(zip(rows, outcomes, strict=True)), format_rows, max_bytes)


async def format_array(
    name: str, items: Sequence[Item], format_items: Callable[[Sequence[Item]], bytes], max_bytes: int
) -> bytes:
    """`{name: […]}` of the JSON arrays that items are formatted to, piece by piece.

    Raises AnswerTooLarge before it has formatted many more than `max_bytes`.
    """
    formatted = [b'{"%b":[' % name.encode()]
    formatted_bytes = len(formatted[0]) + len(b"]}")
    async for piece in _pieces(items):
        formatted += [b"," if len(formatted) > 1 else b"", format_items(piece)[1:-1]]
        formatted_bytes += len(formatted[-2]) + len(formatted[-1])
        if formatted_bytes > max_bytes:
            raise AnswerTooLarge(
                f"An answer must have at most {max_bytes} bytes. Received: {len(items)} rows, whose answer "
                "has more: lower the SQL function's MAX_BATCH_ROWS, or ask for evidence of fewer rows."
            )
    return await join_pieces([*formatted, b"]}"], formatted_bytes)


def format_rows(rows: Iterable[tuple[Row, Outcome | None]]) -> bytes:
    """`[[row_number, outcome], …]`."""
    return to_json([[row.number, outcome] for row, outcome in rows])


async def _pieces(items: Sequence[Item]) -> AsyncIterator[Sequence[Item]]:
    for start in range(0, len(items), PIECE_ROWS):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + PIECE_ROWS]


async def _parse_piecewise(body: bytes, max_rows: int, *, evidence: bool) -> list[Row]:
    """The rows of a large body as it is usually written; none of any other, nor of one with a fault.

    Of what a piece holds, only what makes a row stays. Raises PayloadTooLarge before its end.
    """
    rows: list[Row] = []
    try:
        for piece in _cut(body):
            await _refuse_crowded(piece, max_rows)
            # What is no whole rows, cut inside a string or a nested array, is no JSON either.
            data = parse_json(b"[%b]" % piece)
            _refuse_rows(len(rows) + len(data), max_rows, known="at least ")
            rows += parse_rows(data, len(rows), evidence=evidence)
            await asyncio.sleep(0)
    except (ValueError, InvalidBatch):
        return []
    return rows


async def _refuse_crowded(text: bytes, max_rows: int) -> None:
    """Wherever in it they are."""
    if await has_more_values(text, _MOST_VALUES_A_ROW * max_rows):
        raise PayloadTooLarge(
            f"A batch must have at most {max_rows} rows, and no more values than they need. Received: more."
        )


def _refuse_rows(rows: int, max_rows: int, known: str = "") -> None:
    if rows > max_rows:
        raise PayloadTooLarge(f"A batch must have at most {max_rows} rows. Received: {known}{rows}.")


def _cut(body: bytes) -> Iterator[bytes]:
    """The inside of "data" in pieces of whole rows; nothing of a small body, or of one written otherwise."""
    beginning = _BEGINNING.match(body)
    end = _END.search(body, max(0, len(body) - 100))
    if len(body) <= PIECE_BYTES or not beginning or not end:
        return
    start = beginning.end()
    while between := _BETWEEN_ROWS.search(body, start + PIECE_BYTES, end.start()):
        yield body[start : between.start(1)]
        start = between.end()
    yield body[start : end.start()]


def _parse_document(body: bytes) -> object:
    try:
        return parse_json(body)
    except ValueError as error:
        raise MalformedBody(f"A JSON body must be valid JSON (RFC 8259): {error}.") from None


def _rows_of(document: object) -> list[object]:
    if not isinstance(document, dict) or not isinstance(document.get("data"), list):
        raise InvalidBatch('A JSON body must be {"data": [[row_number, source], …]}.')
    data: list[object] = document["data"]
    return data


def _parse_row(index: int, row: object, *, evidence: bool) -> Row:
    if not isinstance(row, list) or len(row) not in (2, 3):
        raise InvalidBatch(
            f"A row must be [row_number, source] or [row_number, source, options]. "
            f"Received at index {index}: {_shape(row)}."
        )
    number, value, *options = row
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidBatch(f"A row number must be an integer. Received at index {index}: another type.")
    try:
        wished = _parse_options(options)
    except InvalidOptions as error:
        return Row(number, error.anew())
    return Row(number, parse_source(value), evidence=wished.get("evidence", evidence))


def _parse_options(options: list[object]) -> dict[str, bool]:
    """A row's third column. Raises InvalidOptions."""
    if not options or options[0] is None:
        return {}
    if not isinstance(options[0], dict):
        raise InvalidOptions("Options must be an object.")
    for name, value in options[0].items():
        if name not in KNOWN_OPTIONS:
            known = ", ".join(KNOWN_OPTIONS)
            raise InvalidOptions(f"Options must be among: {known}. Received: {name[:40]!r}.")
        if not isinstance(value, bool):
            raise InvalidOptions(f"The option {name} must be true or false.")
    return options[0]


def _shape(row: object) -> str:
    return f"an array of {len(row)}" if isinstance(row, list) else "no array"
