"""Helpers that watch how a JsonReader reads a text in steps."""

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any, SupportsIndex

from app.images.source import LongText
from app.snowflake.strict_json import JsonReader, Steps


class WatchedBytes(bytes):
    """Bytes that count how many of them are copied or searched."""

    seen = 0

    def __getitem__(self, key: SupportsIndex | slice) -> bytes:  # type: ignore[override]
        part = super().__getitem__(key)
        assert isinstance(part, bytes)
        self.seen += len(part)
        return part

    def find(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        place = super().find(wanted, start, end)
        self.seen += (place if place >= 0 else min(end, len(self))) - start
        return place

    def rfind(self, wanted: Any, start: Any = 0, end: Any = None) -> int:
        place = super().rfind(wanted, start, end)
        self.seen += min(end, len(self)) - max(place, start)
        return place


def read_all(reader: JsonReader) -> Steps[object]:
    value = yield from reader.value()
    yield from reader.end()
    return value


def read(text: bytes, step_bytes: int, max_kept_bytes: int = 1 << 30) -> Any:
    """The value that JsonReader reads from a text. Raises ValueError."""
    steps = read_all(JsonReader(text, max_kept_bytes, step_bytes))
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            return ended.value


def seen_in_steps(text: bytes, step_bytes: int) -> list[int]:
    """The bytes that the reader copies, searches or skips in each step, up to the end or an error."""
    watched = WatchedBytes(text)
    reader = JsonReader(watched, 3 * step_bytes, step_bytes)
    seen = [0]
    with suppress(ValueError):
        seen.extend(watched.seen + reader.at for _ in read_all(reader))
    return [after - before for before, after in pairwise([*seen, watched.seen + reader.at])]


def shortened(value: object) -> object:
    """The value with each LongText replaced by a string."""
    if isinstance(value, LongText):
        assert value.characters == len(value.text.decode())
        return value.text.decode()
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, dict):
        return {name: shortened(member) for name, member in value.items()}
    return value


def outcome(text: bytes, parse: Callable[[bytes], object]) -> str:
    try:
        return repr(parse(text))
    except ValueError:
        return "not JSON"


# Templates and the content to repeat in them: FORMS[0] % FILLINGS[0].
FORMS = (
    b'["%b"]',
    b'{"%b":1}',
    b"[%b1]",
    b"[1]%b",
    b'{"a":"%b","data":[]}',
    b'["%b',
    b'{"data":[[0,"a"],%b[1,"a"]]}',
)
FILLINGS = (
    b'\\":',
    b'":',
    b" ",
    b"A",
    b"1",
    b"\\\\",
    b'\\"',
    b"\\u0041",
    b"\\ud83d\\ude00",
    "é€😀".encode(),
    b"],[",
    b"]],",
)
