"""One row of a batch, whichever form of request it came in."""

from dataclasses import dataclass
from typing import TypeAlias

from app.images.source import InlineText, Source
from app.outcome import Outcome
from model.errors import InputError

# An outcome that is already known, and NULL, keep their place through every step. Errors become outcomes
# where they are caught: an exception that is kept keeps the frames it passed, and their pixels, alive.
Fetched: TypeAlias = bytes | InlineText | Outcome | None


@dataclass(frozen=True, slots=True)
class Row:
    """`source` is None for SQL's NULL, and an InputError when the row names no image at all."""

    number: int
    source: Source | InputError | None
    evidence: bool = False
    """Whether the outcome is to show where in the image the label was seen."""
