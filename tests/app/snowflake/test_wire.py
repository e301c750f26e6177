import asyncio
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ServiceError
from app.outcome import ModelIdentity, Outcome, outcome_of_error
from app.row import Row
from app.snowflake import wire
from model.errors import CorruptImage, InputError

NUMBERS = st.integers(min_value=-(2**70), max_value=2**70)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MODEL = ModelIdentity(name="m", version="v")


def parse_batch(body: bytes, max_rows: int) -> list[Row]:
    return asyncio.run(wire.parse_batch(body, max_rows))


def format_batch(rows: Sequence[Row], outcomes: Sequence[Outcome | None]) -> bytes:
    return asyncio.run(wire.format_batch(rows, outcomes))


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


ROWS = st.lists(st.tuples(NUMBERS, JSON_VALUES) | st.tuples(NUMBERS, JSON_VALUES, JSON_VALUES), min_size=1)


def outcome_of(body: bytes, piece_bytes: int, max_rows: int = 1000) -> str:
    """What comes of a body that is cut into such pieces; rows hold errors, which compare by their text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PIECE_BYTES", piece_bytes)
        patch.setattr(wire, "PIECE_ROWS", 3)
        try:
            return repr(parse_batch(body, max_rows))
        except ServiceError as error:
            return repr(error)


@given(
    rows=ROWS,
    separators=st.sampled_from([(",", ":"), (", ", ": "), ("\n,\t", " : ")]),
    piece_bytes=st.integers(min_value=1, max_value=40),
)
def test_large_body_cut_into_pieces_is_the_same_batch(
    rows: list[tuple[int, object]], separators: tuple[str, str], piece_bytes: int
) -> None:
    for escape in (True, False):
        body = json.dumps({"data": rows}, separators=separators, ensure_ascii=escape).encode()
        assert outcome_of(body, piece_bytes) == outcome_of(body, len(body))


@given(
    text=st.text(alphabet='[]{},:"\\0 datax\n'),
    rows=st.lists(st.sampled_from(['[0,"],["]', '[1, "a"]', "[[2], [3]]", "[4,{}]", "5", ""]), max_size=8),
    piece_bytes=st.integers(min_value=1, max_value=20),
)
def test_broken_body_cut_into_pieces_is_refused_alike(text: str, rows: list[str], piece_bytes: int) -> None:
    for body in (f'{{"data": [{",".join(rows)}{text}]}}', f'{{"data":[{",".join(rows)}]{text}}}'):
        assert outcome_of(body.encode(), piece_bytes) == outcome_of(body.encode(), len(body))


def test_large_body_is_really_cut() -> None:
    body = json.dumps({"data": [[n, "a" * 1000] for n in range(2000)]}).encode()
    pieces = list(wire._cut(body))  # noqa: SLF001
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 2 * wire.PIECE_BYTES


def test_rows_are_told_apart_by_a_byte_to_look_for() -> None:
    """A large image is one row, in which every byte would be tried otherwise."""
    assert wire._BETWEEN_ROWS.pattern.startswith(rb"\]")  # noqa: SLF001
    body = b'{"data":[[0,"%b"],[1,"b"]]}' % (b"a" * 8_000_000)
    assert [len(piece) for piece in wire._cut(body)] == [8_000_006, 7]  # noqa: SLF001


def test_body_of_too_many_rows_is_not_parsed_to_its_end() -> None:
    body = b'{"data": [' + b",".join([b"[0, null]"] * 200_000) + b"]}"
    with pytest.raises(ServiceError, match=r"at most 100 rows\. Received: at least \d{5}\."):
        parse_batch(body, 100)


async def turns_beside(work: Coroutine[Any, Any, object]) -> int:
    """How often somebody else had a turn while the work was done."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await work
    counting.cancel()
    return turns


def test_others_have_their_turn_while_a_large_batch_is_parsed_and_formatted() -> None:
    body = json.dumps({"data": [[n, "a" * 1000] for n in range(2000)]}).encode()
    rows = parse_batch(body, 2000)
    assert asyncio.run(turns_beside(wire.parse_batch(body, 2000))) >= 7
    assert asyncio.run(turns_beside(wire.format_batch(rows, [None] * 2000))) >= 5
