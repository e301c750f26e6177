"""One row of a batch, whichever form of request it came in."""

from dataclasses import dataclass

from app.images.source import Source
from model.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """`source` is None for SQL's NULL, and an InputError when the row names no image at all."""

    number: int
    source: Source | InputError | None
    evidence: bool = False
    """Whether the outcome is to show where in the image the label was seen."""
