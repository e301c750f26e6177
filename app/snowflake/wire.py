"""Snowflake's external-function format: parses a JSON body to rows, formats outcomes as a JSON body.

Source: Snowflake documentation, "Remote service input and output data formats".

Large bodies are parsed and formatted in pieces: between pieces the event loop serves other requests, which
would otherwise wait for a whole batch of thousands of rows.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pydantic_core import to_json

from app.errors import AnswerTooLarge, InvalidBatch, InvalidOptions, MalformedBody, PayloadTooLarge
from app.event_loop import join_pieces
from app.images.source import DEFAULT_LIMITS, Row, max_text_characters, parse_source
from app.outcome import Outcome
from app.snowflake.strict_json import STEP_BYTES, JsonReader, Steps, has_more_values, parse_json
from model.image_limits import ImageLimits

# Documentation, "Introduction to external functions": a larger response fails the query with a less specific
# error.
MAX_ANSWER_BYTES = 10 * 1024 * 1024

KNOWN_OPTIONS = ("evidence",)

# A row, or another key of an image in the response, and its outcome.
Answered = TypeVar("Answered", bound=tuple[object, Outcome | None])


# A piece takes a millisecond or less.
PIECE_BYTES = STEP_BYTES
PIECE_ROWS = 256

# A row needs only a few values.
_MOST_VALUES_A_ROW = 16

# Clients parse row numbers into 64 bits, and lose digits of a longer one.
_MIN_ROW_NUMBER, _MAX_ROW_NUMBER = -(2**63), 2**63 - 1


async def parse_batch(
    body: bytes, max_rows: int, limits: ImageLimits = DEFAULT_LIMITS, *, evidence: bool = False
) -> list[Row]:
    """Parse `{"data": [[row_number, source], [row_number, source, options], …]}`.

    Raises MalformedBody for what is not JSON, InvalidBatch for another shape, PayloadTooLarge for more
    than `max_rows` rows. Keys other than "data" are ignored, as Snowflake requires. `evidence` applies to
    rows without that option. A source larger than `limits` allow becomes its row's error.
    """
    if await has_more_values(body, _MOST_VALUES_A_ROW * max_rows):
        raise PayloadTooLarge(
            f"A batch must have at most {max_rows} rows, and no more values than they need. Received: more."
        )
    batch = _Batch(max_rows, limits, evidence=evidence)
    steps = batch.read_small(body) if len(body) <= PIECE_BYTES else batch.read_large(body)
    try:
        for _ in steps:
            await asyncio.sleep(0)
    except ValueError as error:
        raise MalformedBody(f"A JSON body must be valid JSON in UTF-8 (RFC 8259): {error}.") from None
    return batch.rows()


def parse_rows(
    data: Sequence[object], start: int = 0, limits: ImageLimits = DEFAULT_LIMITS, *, evidence: bool = False
) -> list[Row]:
    """Rows of `[row_number, source]` or `[row_number, source, options]`. Raises InvalidBatch.

    `start` is the index of the first row in its batch.
    """
    return [_parse_row(index, row, limits, evidence=evidence) for index, row in enumerate(data, start)]


async def format_batch(
    rows: Sequence[Row], outcomes: Sequence[Outcome | None], max_bytes: int = MAX_ANSWER_BYTES
) -> bytes:
    """`{"data": [[row_number, outcome], …]}`, same numbers, same order; NULL for NULL.

    Raises AnswerTooLarge.
    """
    return await format_array("data", list(zip(rows, outcomes, strict=True)), format_rows, max_bytes)


async def format_array(
    name: str, items: Sequence[Answered], format_items: Callable[[Sequence[Answered]], bytes], max_bytes: int
) -> bytes:
    """`{name: […]}` of the JSON arrays that `format_items` returns for each piece of `items`.

    Raises AnswerTooLarge before it has formatted many more than `max_bytes`.
    """
    formatted = [b'{"%b":[' % name.encode()]
    formatted_bytes = len(formatted[0]) + len(b"]}")
    for piece in _pieces(items):
        if len(formatted) > 1:
            await asyncio.sleep(0)
        formatted += [b"," if len(formatted) > 1 else b"", format_items(piece)[1:-1]]
        formatted_bytes += len(formatted[-2]) + len(formatted[-1])
        if formatted_bytes > max_bytes:
            raise AnswerTooLarge(
                f"An answer must have at most {max_bytes} bytes. Received: more, for {len(items)} rows; "
                "lower the SQL function's MAX_BATCH_ROWS, or request evidence for fewer rows."
            )
    return await join_pieces([*formatted, b"]}"], formatted_bytes)


def format_rows(rows: Iterable[tuple[Row, Outcome | None]]) -> bytes:
    """`[[row_number, outcome], …]`."""
    return to_json([[row.number, outcome] for row, outcome in rows])


def _pieces(items: Sequence[Answered]) -> Iterator[Sequence[Answered]]:
    """Split items by the size of their outcomes; a heatmap makes an outcome a hundred times as large."""
    start = answer_bytes = 0
    for place, (_, outcome) in enumerate(items):
        if answer_bytes >= PIECE_BYTES or place - start >= PIECE_ROWS:
            yield items[start:place]
            start, answer_bytes = place, 0
        evidence = outcome and outcome["evidence"]
        answer_bytes += len(evidence["heatmap_png"]) if evidence else 0
    yield items[start:]


class _Batch:
    """Reads a body into rows. The last of two members named "data" wins, as in Python and JavaScript."""

    def __init__(self, max_rows: int, limits: ImageLimits, *, evidence: bool) -> None:
        self._max_rows = max_rows
        self._limits = limits
        self._evidence = evidence
        self._begin(is_array=False)

    def rows(self) -> list[Row]:
        """The rows. Raises InvalidBatch or PayloadTooLarge for valid JSON that is not a batch."""
        if not self._is_array:
            raise InvalidBatch(
                'A JSON body must be {"data": [[row_number, source], …]}. Received: no array named data.'
            )
        if self._received_rows > self._max_rows:
            raise PayloadTooLarge(
                f"A batch must have at most {self._max_rows} rows. Received: {self._received_rows}."
            )
        if self._error is not None:
            raise InvalidBatch(self._error)
        return self._rows

    def read_small(self, body: bytes) -> Steps[None]:
        """Raises ValueError."""
        document = parse_json(body)
        data = document.get("data") if isinstance(document, dict) else None
        if isinstance(data, list):
            self._begin(is_array=True)
            yield from self._add(data)

    def read_large(self, body: bytes) -> Steps[None]:
        """Raises ValueError."""
        reader = JsonReader(body, max_text_characters(self._limits), PIECE_BYTES)
        if (yield from reader.peek()) == b"{":
            more = yield from reader.enter(b"}")
            while more:
                if (yield from reader.name()) == "data":
                    yield from self._read_data(reader)
                else:
                    yield from reader.value()
                more = yield from reader.another(b"}")
        else:
            yield from reader.value()
        yield from reader.end()

    def _read_data(self, reader: JsonReader) -> Steps[None]:
        self._begin(is_array=(yield from reader.peek()) == b"[")
        if not self._is_array:
            yield from reader.value()
            return
        more = yield from reader.enter(b"]")
        while more:
            yield from reader.peek()
            items = reader.items()
            yield from self._add([(yield from reader.value())] if items is None else items)
            more = yield from reader.another(b"]")

    def _begin(self, *, is_array: bool) -> None:
        self._is_array = is_array
        self._rows: list[Row] = []
        self._received_rows = 0
        self._error: str | None = None

    def _add(self, data: Sequence[object]) -> Steps[None]:
        """Rows beyond the limit, or after an invalid row, are only counted."""
        for start in range(0, len(data), PIECE_ROWS):
            if start:
                yield
            piece = data[start : start + PIECE_ROWS]
            index = self._received_rows
            self._received_rows += len(piece)
            if self._error is None and self._received_rows <= self._max_rows:
                try:
                    self._rows += parse_rows(piece, index, self._limits, evidence=self._evidence)
                except InvalidBatch as error:
                    self._error = error.message


def _parse_row(index: int, row: object, limits: ImageLimits, *, evidence: bool) -> Row:
    if not isinstance(row, list) or len(row) not in (2, 3):
        raise InvalidBatch(
            f"A row must be [row_number, source] or [row_number, source, options]. "
            f"Received at index {index}: {_shape(row)}."
        )
    number, value, *options = row
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidBatch(f"A row number must be an integer. Received at index {index}: another type.")
    if not _MIN_ROW_NUMBER <= number <= _MAX_ROW_NUMBER:
        raise InvalidBatch(
            f"A row number must be a signed 64-bit integer. "
            f"Received at index {index}: an integer of {number.bit_length()} bits."
        )
    try:
        parsed_options = _parse_options(options)
    except InvalidOptions as error:
        return Row(number, error.without_traceback())
    return Row(number, parse_source(value, limits), evidence=parsed_options.get("evidence", evidence))


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
