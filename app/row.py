"""One row of a batch, whichever form of request it came in."""

import sys
from dataclasses import dataclass
from typing import TypeAlias

from app.images.source import InlineText, Source, StageFile, Url
from app.outcome import Outcome
from model.errors import InputError

# An outcome that is already known, and NULL, keep their place through every step. Errors become outcomes
# where they are caught: an exception that is kept keeps the frames it passed, and their pixels, alive.
Fetched: TypeAlias = bytes | InlineText | Outcome | None

# A row without its source, its outcome, and the outcome in JSON, as measured for rows that all fail.
ROW_BYTES = 1536


@dataclass(slots=True)
class Row:
    """`source` is None for SQL's NULL, and an InputError when the row names no image at all."""

    number: int
    source: Source | InputError | None
    evidence: bool = False
    """Whether the outcome is to show where in the image the label was seen."""

    @property
    def is_remote(self) -> bool:
        """The image is still to be fetched."""
        return isinstance(self.source, Url | StageFile)

    @property
    def is_settled(self) -> bool:
        """NULL, or an error: there is nothing to classify."""
        return self.source is None or isinstance(self.source, InputError)

    @property
    def source_bytes(self) -> int:
        """Memory that the source takes beyond ROW_BYTES, which includes the message of an error."""
        source = self.source
        if isinstance(source, InlineText | Url):
            return sys.getsizeof(source.text)  # a str takes up to four bytes for each of its characters
        if isinstance(source, bytes):
            return sys.getsizeof(source)
        if isinstance(source, StageFile):
            return sum(map(sys.getsizeof, (*source.stage, source.path)))
        return 0

    def release_source(self) -> int:
        """Drop the source of a row that is answered. Returns the bytes that it took."""
        released_bytes, self.source = self.source_bytes, None
        return released_bytes
