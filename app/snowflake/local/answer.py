"""The table that a statement answers with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """`types` are Arrow's, of the columns that are no text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    types: dict[str, Any] = field(default_factory=dict)


def status(text: str) -> Answer:
    return Answer(["status"], [[text]])
