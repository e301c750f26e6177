import asyncio
import json
import re
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import PayloadTooLarge
from app.images.source import LongText
from app.snowflake import strict_json
from app.snowflake.strict_json import MAX_DEPTH, JsonReader, has_more_values, parse_json
from app.snowflake.wire import parse_batch
from tests.app.snowflake.watched import FILLINGS, FORMS, outcome, read, seen_in_steps, shortened

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(values)
def test_json_is_parsed_to_its_value(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(
    value=values, step_bytes=st.integers(1, 80), escape=st.booleans(), indent=st.sampled_from([None, 0, 30])
)
@example(
    value="\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") * 40,
    step_bytes=32,
    escape=True,
    indent=None,
)
def test_both_parsers_return_the_same_value(
    value: object, step_bytes: int, escape: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=escape, indent=indent).encode()
    assert shortened(read(text, step_bytes)) == value


@given(
    value=values,
    step_bytes=st.integers(1, 80),
    mutations=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.integers(0, 3),
            st.binary(max_size=2)
            | st.sampled_from(
                [
                    b'"',
                    b"\\",
                    b"\\u",
                    b"\\ud83d",
                    b"\\ude00",
                    b",",
                    b":",
                    b"]",
                    b"}",
                    b"[",
                    b"{",
                    b"\xff",
                    b"\x00",
                    b"1",
                ]
            ),
        ),
        max_size=3,
    ),
    escape=st.booleans(),
)
def test_both_parsers_accept_the_same_texts(
    value: object, step_bytes: int, mutations: list[tuple[int, int, bytes]], escape: bool
) -> None:
    text = json.dumps(value, ensure_ascii=escape).encode()
    for place, removed, added in mutations:
        text = text[:place] + added + text[place + removed :]
    assert outcome(text, lambda text: shortened(read(text, step_bytes))) == outcome(text, parse_json)


STRINGS = st.lists(
    st.sampled_from(
        [b"a", b"\\\\", b'\\"', b"\\n", b"\\u00e9", b"\\ud83d\\ude00", b"\\ud83d", b"\\ude00", b"\\u12"]
        + [text.encode() for text in ("é", "\u20ac", "\U0001f600")]
        + [b"\xc3", b"\xed\xa0\x80", b"\x1f", b'"', b"\\", b"a" * 20]
    ),
    max_size=40,
).map(b"".join)


@given(content=STRINGS, step_bytes=st.integers(1, 80))
def test_string_is_never_cut_inside_a_character(content: bytes, step_bytes: int) -> None:
    text = b'["%b","x"]' % content
    assert outcome(text, lambda text: shortened(read(text, step_bytes))) == outcome(text, parse_json)


@pytest.mark.parametrize("deep", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, MAX_DEPTH + 2])
@pytest.mark.parametrize(("begin", "inner", "end"), [("[", "", "]"), ("[", "1", "]"), ('{"":', "{}", "}")])
def test_both_parsers_have_the_same_maximum_depth(begin: str, inner: str, end: str, deep: int) -> None:
    text = (begin * deep + inner + end * deep).encode()
    assert outcome(text, lambda text: read(text, 64)) == outcome(text, parse_json)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"data": 1, "data": 2}', {"data": 2}),
        ('{"data": 1, "d\\u0061ta": 2}', {"data": 2}),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', {"a": {"b": 3, "c": 2}}),
        ('{"a": "a\\":", "a": 1}', {"a": 1}),
    ],
)
def test_last_of_two_equal_keys_wins(text: str, value: object) -> None:
    assert parse_json(text.encode()) == read(text.encode(), 8) == value


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "-Infinity",
        '"\\ud800"',
        "[" * 5000,
        "1" * 5000,
        '{"a"',
        "",
        "\ufeff\ufeff1",
        "1 2",
        "[1,]",
        '{"a":1,}',
        *('"', '"\\', '"\\"', '{"a" 1}', "{1:2}", "[1 2]", "01", "tru", "nulll", "]", '"\t"', "-", "\0"),
    ],
)
@pytest.mark.parametrize("step_bytes", [1, 1000])
def test_invalid_json_is_rejected(text: str, step_bytes: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message is the parser's
        parse_json(text.encode())
    with pytest.raises(ValueError, match=r"at byte \d+"):
        read(text.encode(), step_bytes)


STEP_BYTES = 4096


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("filling", FILLINGS, ids=repr)
@pytest.mark.parametrize("steps", [8, 64])
def test_no_step_sees_more_than_a_few_windows(form: bytes, filling: bytes, steps: int) -> None:
    text = form % (filling * (steps * STEP_BYTES // len(filling)))
    seen = seen_in_steps(text, STEP_BYTES)
    assert max(seen) <= 5 * STEP_BYTES
    assert sum(seen) <= 5 * len(text)


def test_tokens_count_as_work() -> None:
    seen = seen_in_steps(b"[%b0]" % (b"1," * 5000), STEP_BYTES)
    assert len(seen) > 1000
    assert max(seen) <= STEP_BYTES


def test_string_beyond_the_limit_keeps_only_its_beginning() -> None:
    text = b'["%b"]' % (b"A" * 1_000_000)
    [kept] = read(text, STEP_BYTES, max_kept_bytes=1_000_000)
    assert kept == LongText(b"A" * 1_000_000, 1_000_000)
    [cut] = read(text, STEP_BYTES, max_kept_bytes=100_000)
    assert cut.characters == 1_000_000
    assert 8192 < len(cut.text) < 100_000


@pytest.mark.parametrize(
    "text", [b"[" + b"1" * 300_000 + b"]", b"[1." + b"1" * 300_000 + b"]", b"[" + b"a" * 300_000 + b"]"]
)
def test_length_of_a_number_is_limited(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"a number must have at most 262144 characters at byte 1"):
        read(text, STEP_BYTES)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (b"[1],[2],[3]", [[1], [2]]),
        (b"[1] ,[2],[3]", [[1], [2]]),
        (b'["],"],[2],[3]', [["],"], [2]]),
        (b'["],', None),
        (b"[1],[2]],[[3],[4]", None),
        (b'[1],[2]],"":[[3],[4]', None),
        (b"[1]] , [[2],[3]", None),
        (b"[[1],2],3", [[[1], 2]]),
        (b"[[1],2", None),
    ],
)
def test_items_are_whole_arrays_of_one_array(text: bytes, items: list[object] | None) -> None:
    reader = JsonReader(text, 100, 100)
    assert reader.items() == items
    assert (reader.at == 0) == (items is None)


@pytest.mark.parametrize("more", ["1,", "[],", "{},", "[[[[]]]],", '"",'])
def test_values_are_counted_in_every_form(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "UNCOUNTED_BYTES", 100)
    marks = more.count(",") + more.count("[") + more.count("{")
    text = b"[%b0]" % (more.encode() * (1000 // marks))
    held = len(re.findall(rb"[,\[{]", text))
    assert asyncio.run(has_more_values(text, held - 1))
    assert not asyncio.run(has_more_values(text, held))


def test_one_large_value_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "UNCOUNTED_BYTES", 100)
    assert not asyncio.run(has_more_values(b'["%b"]' % (b"A" * 100_000), 100))


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[[0,"a"]],"more":[%b0]}' % (b"[]," * 2_000_000),
        b'{"x":1,"data":[%b[]]}' % (b"[]," * 2_000_000),
        b'{"data":[[0,[%b0]]]}' % (b"{}," * 2_000_000),
        b'{"data":[[0,{"a":[%b0]}]]}' % (b"1," * 2_000_000),
        b'{"data":[%b]}' % b",".join([b'[0,"",{"a":[%b0]}]' % (b"{}," * 90_000)] * 10),
    ],
    ids=["outside the rows", "as rows", "in a row", "in its options", "in the options of many rows"],
)
def test_crowd_of_values_is_refused_before_it_is_parsed(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="no more values than they need"):
            asyncio.run(parse_batch(body, max_rows=4096))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000
