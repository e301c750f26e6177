import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from app.errors import InvalidBatch, MalformedBody, PayloadTooLarge, ServiceError
from app.images.source import Base64Text, Row
from app.outcome import EvidenceDetail, ModelIdentity, Outcome, blank_outcome, outcome_of_error
from app.snowflake import strict_json, wire
from model.errors import CorruptImage, ImageTooLarge, InputError
from model.image_limits import ImageLimits
from tests.app.snowflake.watched import WatchedBytes
from tests.app.turns import turns_during

NUMBERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
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


@pytest.mark.slow
@given(st.lists(st.tuples(NUMBERS, JSON_VALUES) | st.tuples(NUMBERS, JSON_VALUES, JSON_VALUES), max_size=30))
def test_rows_keep_their_order_and_numbers(rows: list[tuple[int, object]]) -> None:
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
def test_answer_is_strict_json_for_any_message(text: str) -> None:
    rows = parse_batch(b'{"data": [[0, "a"]]}', max_rows=1)
    answer = json.loads(format_batch(rows, [outcome_of_error(CorruptImage(text), MODEL)]))
    assert answer["data"][0][1]["error"]["message"] == text


ROWS = st.lists(st.tuples(NUMBERS, JSON_VALUES) | st.tuples(NUMBERS, JSON_VALUES, JSON_VALUES), min_size=1)


def outcome_of(body: bytes, piece_bytes: int, max_rows: int = 1000) -> str:
    """The result, as text, of parsing a body in pieces of `piece_bytes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PIECE_BYTES", piece_bytes)
        patch.setattr(wire, "PIECE_ROWS", 3)
        try:
            return repr(parse_batch(body, max_rows))
        except MalformedBody as error:  # the parsers' messages differ
            return error.code
        except ServiceError as error:
            return repr(error)


@pytest.mark.slow
@given(
    rows=ROWS,
    separators=st.sampled_from([(",", ":"), (", ", ": "), ("\n,\t", " : ")]),
    piece_bytes=st.integers(min_value=1, max_value=40),
)
def test_large_body_in_pieces_is_the_same_batch(
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
def test_invalid_body_in_pieces_gives_the_same_error(text: str, rows: list[str], piece_bytes: int) -> None:
    for body in (f'{{"data": [{",".join(rows)}{text}]}}', f'{{"data":[{",".join(rows)}]{text}}}'):
        assert outcome_of(body.encode(), piece_bytes) == outcome_of(body.encode(), len(body))


@pytest.mark.slow
@given(
    first=ROWS.map(json.dumps) | st.sampled_from(["null", "1", "{}", "[1]", "[[0]]", "[]"]),
    second=ROWS.map(json.dumps) | st.sampled_from(["null", "1", "{}", "[1]", "[[0]]", "[]"]),
    piece_bytes=st.integers(min_value=1, max_value=40),
)
def test_last_member_named_data_wins(first: str, second: str, piece_bytes: int) -> None:
    body = f'{{"data":{first},"more":[{first}],"data" : {second} }}'.encode()
    assert outcome_of(body, piece_bytes) == outcome_of(body, len(body))
    assert outcome_of(body, piece_bytes) == outcome_of(b'{"data":%b}' % second.encode(), 1000)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_rows_of_a_large_body_are_parsed_in_groups(
    separators: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"data": [[n, "a" * 1000] for n in range(2000)]}, separators=separators).encode()
    parsed: list[int] = []

    def parse_json(text: bytes) -> object:
        parsed.append(len(text))
        return strict_json_parse(text)

    strict_json_parse = strict_json.parse_json
    monkeypatch.setattr(strict_json, "parse_json", parse_json)
    assert [row.number for row in parse_batch(body, 2000)] == list(range(2000))
    assert len(parsed) < 2 * len(body) / wire.PIECE_BYTES + 10
    assert max(parsed) <= wire.PIECE_BYTES + 4


@pytest.mark.parametrize(
    "row",
    [
        b'[0,""] ,',
        b'["],","],',
        b'[0,[[]],""],',
        b'[0,"%b"],' % (b"A" * 10_000),
        b'[0,"%b"]\n,\n' % (b"\\u0041" * 99),
    ],
)
@pytest.mark.parametrize("rows", [200, 2000])
def test_unsplittable_rows_are_scanned_once(row: bytes, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PIECE_BYTES", 4096)
    body = WatchedBytes(b'{"data":[%b[0,""]]}' % (row * rows))
    with suppress(ServiceError):
        parse_batch(body, 2001)
    assert body.seen <= 8 * len(body)


@pytest.mark.parametrize("deep", range(195, 202))
def test_maximum_depth_is_the_same_for_large_and_small_bodies(deep: int) -> None:
    options = b"[" * deep + b"1" + b"]" * deep
    body = b'{"data":[[0,"a",%b],[1,"a"]]}' % options
    assert outcome_of(body, len(body) - 2) == outcome_of(body, 40) == outcome_of(body, len(body))


def test_image_in_a_row_may_be_larger_than_a_step() -> None:
    text = "QUJD" * 500_000
    rows = parse_batch(json.dumps({"data": [[0, "QUJD"], [1, text], [2, "QUJD"]]}).encode(), 3)
    assert [row.source for row in rows] == [
        Base64Text(b"QUJD"),
        Base64Text(text.encode()),
        Base64Text(b"QUJD"),
    ]


def test_too_large_image_does_not_affect_other_rows() -> None:
    body = json.dumps({"data": [[0, "QUJD"], [1, "QUJD" * 500_000], [2, "QUJD"]]}).encode()
    limits = ImageLimits(max_image_bytes=1_000_000)
    first, refused, last = asyncio.run(wire.parse_batch(body, 3, limits))
    assert first.source == last.source == Base64Text(b"QUJD")
    assert isinstance(refused.source, ImageTooLarge)
    assert refused.source.message.startswith("An image must have at most 1000000 bytes ")


@pytest.mark.parametrize("filling", ["A" * 300_000, "[]"])
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**4000])
def test_row_number_beyond_64_bits_is_rejected(number: int, filling: str) -> None:
    body = b'{"data": [[0, "%b"], [%d, "a"]]}' % (filling.encode(), number)
    with pytest.raises(InvalidBatch, match=rf"index 1: an integer of {number.bit_length()} bits\."):
        parse_batch(body, 2)
    for number_in_range in (2**63 - 1, -(2**63)):
        [row] = parse_batch(b'{"data": [[%d, "a"]]}' % number_in_range, 1)
        assert row.number == number_in_range


@pytest.mark.parametrize("padding", [0, 300_000])
def test_too_many_rows_are_rejected(padding: int) -> None:
    body = b'{"data": [%b]%b}' % (b",".join([b"[0, null]"] * 101), b" " * padding)
    with pytest.raises(PayloadTooLarge, match=r"at most 100 rows\. Received: 101\."):
        parse_batch(body, 100)


def test_event_loop_is_not_blocked_by_a_large_batch() -> None:
    body = json.dumps({"data": [[n, "a" * 1000] for n in range(2000)]}).encode()
    rows = parse_batch(body, 2000)
    assert asyncio.run(turns_during(wire.parse_batch(body, 2000))) >= 7
    assert asyncio.run(turns_during(wire.format_batch(rows, [None] * 2000))) >= 5


def test_answer_with_heatmaps_is_formatted_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = blank_outcome(MODEL)
    outcome["evidence"] = EvidenceDetail(box=(0, 0, 1, 1), heatmap_png="A" * 100_000)
    rows = [Row(number, None) for number in range(40)]
    outcomes = [outcome if number % 2 else None for number in range(40)]
    pieces: list[bytes] = []

    def note(data: Any) -> bytes:
        pieces.append(to_json(data))
        return pieces[-1]

    monkeypatch.setattr(wire, "to_json", note)
    answer = json.loads(format_batch(rows, outcomes))
    assert json.loads(json.dumps(answer["data"])) == json.loads(
        json.dumps([[number, outcomes[number]] for number in range(40)])
    )
    assert max(map(len, pieces)) < wire.PIECE_BYTES + 110_000
