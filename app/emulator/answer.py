"""The result table of a statement."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Column names and rows; `types` maps each column that is not text to its Arrow type."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    types: dict[str, Any] = field(default_factory=dict)


def status(text: str) -> Answer:
    return Answer(["status"], [[text]])
