"""Parses JSON (RFC 8259) in steps of bounded work.

`parse_json` takes a text at once. `JsonReader` accepts the same texts and walks them in steps, so that the
event loop serves other requests between two steps, for any content.
"""

import asyncio
import re
from codecs import BOM_UTF8
from collections.abc import Generator
from io import BytesIO
from typing import Any, TypeAlias, TypeVar

from pydantic_core import from_json

from app.images.source import LongText

T = TypeVar("T")
# A computation that yields after each step, so that other requests can run, and returns a T.
Steps: TypeAlias = Generator[None, None, T]

# A millisecond's work or less.
STEP_BYTES = 256 * 1024
# The depth limit of from_json, so that both parsers accept the same texts.
MAX_DEPTH = 200
# A text that is parsed in one step cannot contain a longer number.
_MAX_SCALAR_BYTES = STEP_BYTES
# The cost of a token, in bytes of a string.
_TOKEN_BYTES = 1024
# A short string costs little, and the windows of a long one grow.
_FIRST_WINDOW_BYTES = 64
# A window loses its incomplete end, and must not become empty.
_MIN_WINDOW_BYTES = 32
_HEAD_BYTES = 16 * 1024

UNCOUNTED_BYTES = STEP_BYTES
_MARKS = (b",", b"[", b"{")
# Searching for each is faster than counting up to about this number in a piece.
_FEW_MARKS = 1024
_COUNTED_BYTES = 1024 * 1024

_BLANKS = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
# What may be incomplete at the end of a window: an escape, a pair of surrogates, a UTF-8 character.
_CUT_OFF = re.compile(
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?\\[^\\]{0,11}\Z|[\xc0-\xff][\x80-\xbf]{0,2}\Z", re.DOTALL
)
_CUT_OFF_BYTES = 18


async def has_more_values(text: bytes, most: int) -> bool:
    """Whether a text may hold more than `most` values, each of which takes memory once it is parsed.

    A text of at most UNCOUNTED_BYTES is not counted: it cannot hold enough of them to matter.
    """
    if len(text) <= UNCOUNTED_BYTES:
        return False
    marks = 0
    for start in range(0, len(text), _COUNTED_BYTES):
        marks += _count_marks(text, start, start + _COUNTED_BYTES)
        if marks > most:
            return True
        await asyncio.sleep(0)
    return False


def _count_marks(text: bytes, start: int, end: int) -> int:
    """Count the marks that come before each value but the first; few of them at a fraction of the cost."""
    marks = 0
    for mark in _MARKS:
        at = text.find(mark, start, end)
        while at >= 0:
            marks += 1
            if marks > _FEW_MARKS:
                return min(end, len(text)) - start - len(text[start:end].translate(None, b"".join(_MARKS)))
            at = text.find(mark, at + 1, end)
    return marks


def parse_json(text: bytes) -> Any:
    """The value of a text; the last of equal keys wins. Rejects (ValueError) also NaN and lone surrogates.

    Ignores a byte order mark, as RFC 8259, section 8.1, permits: Windows programs write one.
    """
    return from_json(text.removeprefix(BOM_UTF8), allow_inf_nan=False, cache_strings="none")


class JsonReader:
    """A cursor in a JSON text. All reading methods raise ValueError if the text is not valid JSON."""

    def __init__(self, text: bytes, max_kept_bytes: int, step_bytes: int = STEP_BYTES) -> None:
        self.at = len(BOM_UTF8) if text.startswith(BOM_UTF8) else 0
        """The next byte to read."""
        self._text = text
        self._max_kept_bytes = max_kept_bytes
        self._step_bytes = step_bytes
        self._step_start = 0
        self._step_tokens = 0
        self._depth = 0
        self._no_items_before = 0

    def peek(self) -> Steps[bytes]:
        """The next byte after blanks; empty at the end."""
        self._step_tokens += 1
        if self._is_step_over():
            yield
        while (blanks := _BLANKS.match(self._text, self.at, self.at + self._step_bytes)) and blanks.group():
            self.at = blanks.end()
            if self._is_step_over():
                yield
        return self._text[self.at : self.at + 1]

    def value(self) -> Steps[Any]:
        """The next value, with a LongText in place of each string that is longer than a step."""
        first = yield from self.peek()
        if first == b'"':
            return (yield from self._string())
        if first == b"[":
            items: list[Any] = []
            more = yield from self.enter(b"]")
            while more:
                items.append((yield from self.value()))
                more = yield from self.another(b"]")
            return items
        if first == b"{":
            members: dict[str, Any] = {}
            more = yield from self.enter(b"}")
            while more:
                name = yield from self.name()
                members[name] = yield from self.value()
                more = yield from self.another(b"}")
            return members
        return self._scalar()

    def enter(self, close: bytes) -> Steps[bool]:
        """Enter the array or object that begins here. Returns whether it has elements."""
        self.at += 1
        self._depth += 1
        if (yield from self.peek()) == close:
            self._leave()
            return False
        if self._depth > MAX_DEPTH:
            raise self._error(f"arrays and objects must be nested at most {MAX_DEPTH} deep")
        return True

    def another(self, close: bytes) -> Steps[bool]:
        """Whether the array or object has another element after the one that was read."""
        mark = yield from self.peek()
        if mark == b",":
            self.at += 1
            return True
        if mark != close:
            raise self._error(f"expected `,` or `{close.decode()}`")
        self._leave()
        return False

    def name(self) -> Steps[str]:
        """The name of an object's next member; only the beginning of a very long name."""
        if (yield from self.peek()) != b'"':
            raise self._error("expected a string")
        name = yield from self._string()
        if (yield from self.peek()) != b":":
            raise self._error("expected `:`")
        self.at += 1
        return name if isinstance(name, str) else name.text[:_HEAD_BYTES].decode(errors="ignore")

    def items(self) -> list[Any] | None:
        """The next elements of an array of arrays, as many as one step allows, parsed in one call.

        None if that is not possible; then the caller reads the next element with `value`.
        """
        if self.at < self._no_items_before:
            return None
        end = self._text.rfind(b"],", self.at, self.at + self._step_bytes) + 1
        self._no_items_before = end or self.at + self._step_bytes
        if not end:
            return None
        try:
            # Two brackets give the same depth as in the text. A cut inside a string or an array is not valid
            # JSON, and a piece that ends the array and begins another is not one array.
            [items] = parse_json(b"[[%b]]" % self._text[self.at : end])
        except ValueError:
            return None
        self.at = end
        return items  # type: ignore[no-any-return]

    def end(self) -> Steps[None]:
        if (yield from self.peek()) != b"":
            raise self._error("expected the end of the text")

    def _leave(self) -> None:
        self.at += 1
        self._depth -= 1

    def _scalar(self) -> Any:
        """A number, true, false or null."""
        match = _SCALAR.match(self._text, self.at, self.at + _MAX_SCALAR_BYTES + 1)
        scalar = b"" if match is None else match.group()
        if len(scalar) > _MAX_SCALAR_BYTES:
            raise self._error(f"a number must have at most {_MAX_SCALAR_BYTES} characters")
        try:
            value = parse_json(scalar)
        except ValueError:
            raise self._error("expected a value") from None
        self.at += len(scalar)
        return value

    def _string(self) -> Steps[str | LongText]:
        start = self.at + 1
        end = self._text.find(b'"', start, start + self._step_bytes)
        if end < 0 or self._text.find(b"\\", start, end) >= 0:
            return (yield from self._string_in_windows())
        text = self._decode(self._text[start:end])
        self.at = end + 1
        return text

    def _string_in_windows(self) -> Steps[str | LongText]:
        start = self.at
        self.at += 1
        kept, is_kept, characters = BytesIO(), True, 0
        window_bytes, is_closed = _FIRST_WINDOW_BYTES, False
        while not is_closed:
            window_bytes = max(_MIN_WINDOW_BYTES, min(window_bytes, self._step_bytes))
            window, is_closed = self._window(window_bytes)
            text = self._decode(window)
            characters += len(text)
            if is_kept:
                kept.write(text.encode())
            if is_kept and kept.tell() > self._max_kept_bytes + _HEAD_BYTES:
                is_kept = False
                kept.truncate(_HEAD_BYTES)
            self.at += len(window)
            window_bytes *= 4
            if self._is_step_over():
                yield
        self.at += 1
        if self.at - start <= self._step_bytes:
            return kept.getvalue().decode()
        return LongText(kept.getvalue(), characters)

    def _window(self, window_bytes: int) -> tuple[bytes, bool]:
        """The next part of a string that is valid by itself, and whether it is the last."""
        window = self._text[self.at : self.at + window_bytes]
        unescaped = window.replace(rb"\\", b"__").replace(rb"\"", b"__")
        if (end := unescaped.find(b'"')) >= 0:
            return window[:end], True
        if self.at + len(window) == len(self._text):
            raise self._error("a string must end")
        cut_off = _CUT_OFF.search(unescaped, len(unescaped) - _CUT_OFF_BYTES)
        return window[: cut_off.start()] if cut_off else window, False

    def _decode(self, content: bytes) -> str:
        try:
            return parse_json(b'"%b"' % content)  # type: ignore[no-any-return]
        except ValueError as error:
            raise self._error(f"invalid string ({str(error).partition(' at line')[0]})") from None

    def _is_step_over(self) -> bool:
        is_over = self.at - self._step_start + self._step_tokens * _TOKEN_BYTES >= self._step_bytes
        if is_over:
            self._step_start = self.at
            self._step_tokens = 0
        return is_over

    def _error(self, rule: str) -> ValueError:
        return ValueError(f"{rule} at byte {self.at}")
