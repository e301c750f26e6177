"""Outcomes of images, and what the log and the metrics report of a request: timings and a summary.

A summary shows drift: a change of the line, the light or the camera shows in many images, not in one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired

from typing_extensions import TypedDict

from model.errors import InputError


class ErrorDetail(TypedDict):
    code: str
    message: str
    retryable: bool


class ModelIdentity(TypedDict):
    name: str
    version: str
    missing: NotRequired[list[str]]
    """What the network's outcomes lack, if anything: without calibration, `confidence` is its own softmax."""


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
    nearest_confidence: float | None
    evidence: EvidenceDetail | None
    model: ModelIdentity
    error: ErrorDetail | None


def outcome_of_error(error: InputError, model: ModelIdentity) -> Outcome:
    return failed_outcome(error.code, error.message, retryable=error.retryable, model=model)


def failed_outcome(
    code: str, message: str, *, retryable: bool, model: ModelIdentity | None = None
) -> Outcome:
    """Without a `model` if the client, and not the service, knows of the error."""
    outcome = blank_outcome(model or ModelIdentity(name="", version=""))
    outcome["error"] = ErrorDetail(code=code, message=message, retryable=retryable)
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
        nearest_confidence=None,
        evidence=None,
        model=model,
        error=None,
    )


class CallSeconds(NamedTuple):
    """Times of one call to a classifier process, which decodes all rows of the call, then predicts them."""

    decode: float
    predict: float


@dataclass
class Step:
    """The time that one step took for a request's rows, which run in parallel."""

    seconds: float = 0.0
    """Sum over the rows."""
    began: float = math.inf
    """Start of the first row, by `perf_counter`."""
    ended: float = -math.inf
    """End of the last row."""

    def note(self, seconds: float, began: float, ended: float) -> None:
        """Add a row, which took `seconds` of the time from `began` to `ended`."""
        self.seconds += seconds
        self.began = min(self.began, began)
        self.ended = max(self.ended, ended)


@dataclass
class Steps:
    """A step that no row needed has 0 seconds."""

    fetch: Step = field(default_factory=Step)
    decode: Step = field(default_factory=Step)
    predict: Step = field(default_factory=Step)

    def note_call(self, call: CallSeconds, rows: int, ended: float) -> None:
        """Add one row of a call of `rows` rows that returned at `ended`."""
        predict_began = ended - call.predict
        self.predict.note(call.predict / rows, predict_began, ended)
        self.decode.note(call.decode / rows, predict_began - call.decode, predict_began)


_DECIMALS = 4
# Sharpness is a small number.
_SHARPNESS_DECIMALS = 6


class ImageStatistics(NamedTuple):
    """Statistics of one image, in grey levels of 0 to 1 at the network's input size."""

    brightness: float
    """The mean."""
    sharpness: float
    """The variance of the Laplacian."""


@dataclass(frozen=True)
class Summary:
    labels: dict[str, int]
    """Images by label; those that failed or were abstained on have none."""
    abstained: int
    confidences: Sequence[float]
    """Confidences of the images with a label."""
    statistics: Sequence[ImageStatistics]
    """Statistics of all decoded images, empty unless they are measured."""

    def figures(self) -> dict[str, object]:
        """For the log: nothing that the client sent, and null for the mean of no image."""
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
    """The result of a batch."""

    outcomes: list[Outcome | None]
    """One outcome a row, in order; None for NULL."""
    steps: Steps
    statistics: Sequence[ImageStatistics]
    """Statistics of its images, in no order; empty unless they are measured."""
