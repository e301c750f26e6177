import asyncio
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidOptions, MalformedBody, PayloadTooLarge
from app.snowflake import strict_json
from app.snowflake.strict_json import RepeatedKey, has_more_values, parse_json
from app.snowflake.wire import parse_batch

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
).filter(lambda value: "Infinity" not in json.dumps(value))


@given(values)
def test_what_json_is_stays_what_it_is(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"data": 1, "data": 2}',
        '{"data": 1, "d\\u0061ta": 2}',
        '{"a":{"b":1,"c":2,"b":3}}',
        '[{"x":[{"y"\n:1,"y"\t:1}]}]',
        '{"\\"": 1, "\\"": 2}',
        '{"": 1, "": 2}',
        '{"a": "a\\":", "a": 1}',
    ],
)
def test_key_that_is_named_twice_is_refused(text: str) -> None:
    with pytest.raises(RepeatedKey, match="must not be named twice"):
        parse_json(text.encode())


@pytest.mark.parametrize(
    "text",
    ['{"a": {"b": 1}, "b": {"b": 2}}', '{"a": "\\":\\":\\"a\\":"}', '["\\" :", "\\":"]', '[{"a":1},{"a":1}]'],
)
def test_key_that_only_looks_so_is_fine(text: str) -> None:
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", '"\\ud800"', "[" * 5000, "1" * 5000, '{"a"', "", "\ufeff1"]
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
        parse_json(text.encode())


@pytest.mark.parametrize("more", ["1,", "[],", "{},", "[[[[]]]],", '"",'])
def test_values_are_counted_in_whatever_form(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "UNCOUNTED_BYTES", 100)
    marks = more.count(",") + more.count("[") + more.count("{")
    text = b"[%b0]" % (more.encode() * (1000 // marks))
    held = text.count(b",") + text.count(b"[") + text.count(b"{")
    assert asyncio.run(has_more_values(text, held - 1))
    assert not asyncio.run(has_more_values(text, held))


def test_one_large_value_is_not_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strict_json, "UNCOUNTED_BYTES", 100)
    assert not asyncio.run(has_more_values(b'["%b"]' % (b"A" * 100_000), 100))


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[[0,"a"]],"more":[%b0]}' % (b"[]," * 2_000_000),
        b'{"x":1,"data":[%b[]]}' % (b"[]," * 2_000_000),
        b'{"data":[[0,[%b0]]]}' % (b"{}," * 2_000_000),
        b'{"data":[[0,{"a":[%b0]}]]}' % (b"1," * 2_000_000),
    ],
    ids=["beside the rows", "as rows", "in a row", "in its options"],
)
def test_crowd_of_values_is_refused_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_none(text: bytes) -> object:
        assert len(text) < 1_000_000
        return parse_json(text)

    monkeypatch.setattr("app.snowflake.wire.parse_json", parse_none)
    with pytest.raises(PayloadTooLarge, match="no more values than they need"):
        asyncio.run(parse_batch(body, max_rows=4096))


def test_crowd_in_the_rows_of_a_large_batch_is_let_go_of_row_by_row() -> None:
    """Of pieces that are each small enough, nothing stays but their rows."""
    row = b'[0,"",{"a":[%b0]}]' % (b"{}," * 90_000)
    body = b'{"data":[%b]}' % b",".join([row] * 40)
    tracemalloc.start()
    try:
        rows = asyncio.run(parse_batch(body, max_rows=4096))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [type(parsed.source) for parsed in rows] == [InvalidOptions] * 40
    assert peak_bytes < 2 * len(body) + 40_000_000


def test_many_keys_are_looked_at_once() -> None:
    keys = ",".join(f'"k{number}":0' for number in range(100_000))
    started = time.process_time()
    with pytest.raises(RepeatedKey):
        parse_json(f'{{{keys},"k0":1}}'.encode())
    assert time.process_time() - started < 10, "or it looks at each as often as there are keys"


@pytest.mark.parametrize("size", [4, 400_000])
@pytest.mark.parametrize(
    "body",
    [
        '{"data": [[0, "%s"]], "data": [[1, ""]]}',
        '{"data": [[0, "%s"], [1, "", {"evidence": true, "evidence": true}]]}',
    ],
)
def test_batch_with_a_repeated_key_is_malformed(body: str, size: int) -> None:
    with pytest.raises(MalformedBody, match="must not be named twice"):
        asyncio.run(parse_batch((body % ("A" * size)).encode(), max_rows=10))
