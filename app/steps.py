"""When the rows of a request were fetched, decoded and predicted, and how long that took."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class CallSeconds(NamedTuple):
    """Of the rows that a classifier process had together: all were decoded, then all predicted."""

    decode: float
    predict: float


@dataclass
class Step:
    """One step of a request's rows, which go side by side."""

    seconds: float = 0.0
    """Added up over the rows."""
    began: float = math.inf
    """The first of them, by `perf_counter`."""
    ended: float = -math.inf
    """The last of them."""

    def note(self, seconds: float, began: float, ended: float) -> None:
        """One more row, which took so much of the time between."""
        self.seconds += seconds
        self.began = min(self.began, began)
        self.ended = max(self.ended, ended)


@dataclass
class Steps:
    """A step that no row took has no time."""

    fetch: Step = field(default_factory=Step)
    decode: Step = field(default_factory=Step)
    predict: Step = field(default_factory=Step)

    def note_call(self, call: CallSeconds, rows: int, ended: float) -> None:
        """One row of a call that had so many, and was answered just then."""
        predict_began = ended - call.predict
        self.predict.note(call.predict / rows, predict_began, ended)
        self.decode.note(call.decode / rows, predict_began - call.decode, predict_began)
