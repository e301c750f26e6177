"""What a request's images were taken for, and what they are like: for the log and the figures.

No image is wrong by itself here; a line, a light or a camera that changes shows in many of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from typing_extensions import TypedDict

from model.errors import InputError


class ErrorDetail(TypedDict):
    code: str
    message: str
    retryable: bool


class ModelIdentity(TypedDict):
    name: str
    version: str


class EvidenceDetail(TypedDict):
    """Where in the image the network saw the label, or the nearest label."""

    box: tuple[int, int, int, int]
    heatmap_png: str


class Outcome(TypedDict):
    """Every key is always present, null where unused."""

    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    abstained: bool
    reason: str | None
    nearest_label: str | None
    evidence: EvidenceDetail | None
    model: ModelIdentity
    error: ErrorDetail | None


def outcome_of_error(error: InputError, model: ModelIdentity) -> Outcome:
    """The outcome of an image that could not be classified."""
    outcome = blank_outcome(model)
    outcome["error"] = ErrorDetail(code=error.code, message=error.message, retryable=error.retryable)
    return outcome


def blank_outcome(model: ModelIdentity) -> Outcome:
    """Every key, in the order that callers see."""
    return Outcome(
        label=None,
        confidence=None,
        probabilities=None,
        abstained=False,
        reason=None,
        nearest_label=None,
        evidence=None,
        model=model,
        error=None,
    )


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


_DECIMALS = 4
# A sharpness is small.
_SHARPNESS_DECIMALS = 6


class ImageStatistics(NamedTuple):
    """Of one image in grey of 0 to 1, at the size that the network saw."""

    brightness: float
    """Its mean."""
    sharpness: float
    """The variance of its Laplacian."""


@dataclass(frozen=True)
class Summary:
    labels: dict[str, int]
    """Images by label; one that was abstained on, or failed, has none."""
    abstained: int
    confidences: Sequence[float]
    """Of the images that have a label."""
    statistics: Sequence[ImageStatistics]
    """Of all that were decoded, if they were measured."""

    def figures(self) -> dict[str, object]:
        """Nothing of what was sent; a mean of nothing is null."""
        return {
            "labels": self.labels,
            "abstained": self.abstained,
            "mean_confidence": _mean(self.confidences, _DECIMALS),
            "mean_brightness": _mean([image.brightness for image in self.statistics], _DECIMALS),
            "mean_sharpness": _mean([image.sharpness for image in self.statistics], _SHARPNESS_DECIMALS),
        }


def summarise(outcomes: Sequence[Outcome | None], statistics: Sequence[ImageStatistics]) -> Summary:
    labels: dict[str, int] = {}
    confidences, abstained = [], 0
    for outcome in outcomes:
        if outcome is None:
            continue
        if outcome["label"] is not None and outcome["confidence"] is not None:
            labels[outcome["label"]] = labels.get(outcome["label"], 0) + 1
            confidences.append(outcome["confidence"])
        abstained += outcome["abstained"]
    return Summary(dict(sorted(labels.items())), abstained, confidences, statistics)


def _mean(values: Sequence[float], decimals: int) -> float | None:
    return round(sum(values) / len(values), decimals) if values else None


class ClassifiedRows(NamedTuple):
    """What became of a batch."""

    outcomes: list[Outcome | None]
    """One a row, in order, NULL for NULL."""
    steps: Steps
    statistics: Sequence[ImageStatistics]
    """Of its images, in no order; none unless they are measured."""
