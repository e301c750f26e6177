"""Snowflake's external-function form: a JSON body to rows, and outcomes back to a JSON body.

Source: Snowflake documentation, "Remote service input and output data formats".
"""

from collections.abc import Sequence

from pydantic_core import from_json, to_json

from app.errors import InvalidBatch, InvalidOptions, MalformedBody, PayloadTooLarge
from app.images.source import parse_source
from app.outcome import Outcome
from app.row import Row

QUERY_ID_HEADER = "sf-external-function-current-query-id"
BATCH_ID_HEADER = "sf-external-function-query-batch-id"

KNOWN_OPTIONS = ("evidence",)


def parse_batch(body: bytes, max_rows: int, *, evidence: bool = False) -> list[Row]:
    """Parse `{"data": [[row_number, source], [row_number, source, options], …]}`.

    Raises MalformedBody for what is not JSON, InvalidBatch for another shape, PayloadTooLarge for more
    than `max_rows` rows. Unknown keys beside "data" are ignored, as Snowflake asks. `evidence` is what a
    row without that option asks for.
    """
    data = _rows_of(_parse_json(body))
    if len(data) > max_rows:
        raise PayloadTooLarge(f"A batch must have at most {max_rows} rows. Received: {len(data)}.")
    return parse_rows(data, evidence=evidence)


def parse_rows(data: Sequence[object], *, evidence: bool = False) -> list[Row]:
    """Rows of `[row_number, source]` or `[row_number, source, options]`. Raises InvalidBatch."""
    return [_parse_row(index, row, evidence=evidence) for index, row in enumerate(data)]


def format_batch(rows: Sequence[Row], outcomes: Sequence[Outcome | None]) -> bytes:
    """`{"data": [[row_number, outcome], …]}`, same numbers, same order; NULL for NULL."""
    data = [[row.number, outcome] for row, outcome in zip(rows, outcomes, strict=True)]
    return to_json({"data": data})


def _parse_json(body: bytes) -> object:
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="none")
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
        return Row(number, error)
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
