import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ServiceError
from app.outcome import ModelIdentity, outcome_of_error
from app.snowflake.wire import format_batch, parse_batch
from model.errors import CorruptImage, InputError

NUMBERS = st.integers(min_value=-(2**70), max_value=2**70)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MODEL = ModelIdentity(name="m", version="v")


@given(st.lists(st.tuples(NUMBERS, JSON_VALUES) | st.tuples(NUMBERS, JSON_VALUES, JSON_VALUES), max_size=30))
def test_every_row_comes_back_in_its_place(rows: list[tuple[int, object]]) -> None:
    parsed = parse_batch(json.dumps({"data": rows, "more": 1}).encode(), max_rows=30)
    outcomes = [
        outcome_of_error(row.source, MODEL) if isinstance(row.source, InputError) else None for row in parsed
    ]
    answer = json.loads(format_batch(parsed, outcomes))
    assert [number for number, _ in answer["data"]] == [row[0] for row in rows]


@given(JSON_VALUES)
def test_any_json_is_a_batch_or_refused(document: object) -> None:
    try:
        parse_batch(json.dumps(document).encode(), max_rows=10)
    except ServiceError as error:
        assert 400 <= error.status < 500


@given(st.binary(max_size=60))
def test_any_bytes_are_a_batch_or_refused(body: bytes) -> None:
    try:
        parse_batch(body, max_rows=10)
    except ServiceError as error:
        assert 400 <= error.status < 500


@pytest.mark.parametrize("text", ["</script>", '"', "\\", "\u2028", "é😀", "\x00"])
def test_answer_is_strict_json_whatever_a_message_holds(text: str) -> None:
    rows = parse_batch(b'{"data": [[0, "a"]]}', max_rows=1)
    answer = json.loads(format_batch(rows, [outcome_of_error(CorruptImage(text), MODEL)]))
    assert answer["data"][0][1]["error"]["message"] == text
