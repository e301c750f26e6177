"""JSON as strangers send it (RFC 8259): of bounded size in memory, and no key named twice."""

import asyncio
import json
import re
from typing import Any

from pydantic_core import from_json

# Many small values become many times the text's size in memory, so they are counted before they are parsed.
# To count takes a millisecond a megabyte; what a text of so many bytes can hold takes some tens of them.
UNCOUNTED_BYTES = 512 * 1024
_MARKS = b",[{"
_COUNTED_AT_ONCE_BYTES = 1024 * 1024

_KEY = re.compile(rb'"[ \t\r\n]*:')


class RepeatedKey(ValueError):
    """A parser keeps one of the two values, and another parser the other."""


async def has_more_values(text: bytes, most: int) -> bool:
    """Whether there are more values in a text than so many; a short one is not looked at."""
    if len(text) <= UNCOUNTED_BYTES:
        return False
    marks = 0
    for start in range(0, len(text), _COUNTED_AT_ONCE_BYTES):
        piece = text[start : start + _COUNTED_AT_ONCE_BYTES]
        marks += len(piece) - len(piece.translate(None, _MARKS))
        if marks > most:
            return True
        await asyncio.sleep(0)
    return False


def parse_json(text: bytes) -> Any:
    """Raises ValueError, also for NaN, infinities, halves of surrogate pairs and nesting without end."""
    value = from_json(text, allow_inf_nan=False, cache_strings="none")
    named = sum(1 for _ in _KEY.finditer(text))
    if named and named != _count_keys(value):
        _refuse_repeated_keys(text)
    return value


def _count_keys(value: object) -> int:
    count, remaining = 0, [value]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            count += len(value)
            remaining.extend(value.values())
        elif isinstance(value, list):
            remaining.extend(value)
    return count


def _refuse_repeated_keys(text: bytes) -> None:
    """What looked like one more key may be inside a string."""

    def refuse_repeated(pairs: list[tuple[str, object]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RepeatedKey(f"a key must not be named twice. Received: {name[:40]!r}")
            seen.add(name)

    json.loads(text, object_pairs_hook=refuse_repeated)
