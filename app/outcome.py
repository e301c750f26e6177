"""The outcome of one image: the object that every form of request answers with. Its keys are stable."""

from base64 import b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from app.errors import PredictionFailed
from model.errors import InputError
from model.evidence import Evidence

# Float32 probabilities carry about seven digits; engines agree to five.
_DECIMALS = 6


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


def outcome_of_probabilities(
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    model: ModelIdentity,
    reason: str | None = None,
) -> Outcome:
    """The outcome of an image that was classified; `probabilities` (k,) in the order of `class_names`.

    With a reason to abstain, the label stays null and `nearest_label` says what it would have been.
    """
    if not np.isfinite(probabilities).all():
        failure = PredictionFailed("The network must answer with finite probabilities.")
        return outcome_of_error(failure, model)
    rounded = [round(p, _DECIMALS) for p in probabilities.tolist()]
    best = int(probabilities.argmax())
    outcome = _blank(model)
    outcome["label" if reason is None else "nearest_label"] = class_names[best]
    outcome["abstained"] = reason is not None
    outcome["reason"] = reason
    outcome["confidence"] = rounded[best]
    outcome["probabilities"] = dict(zip(class_names, rounded, strict=True))
    return outcome


def outcome_of_error(error: InputError, model: ModelIdentity) -> Outcome:
    """The outcome of an image that could not be classified."""
    outcome = _blank(model)
    outcome["error"] = ErrorDetail(code=error.code, message=error.message, retryable=error.retryable)
    return outcome


def detail_of_evidence(evidence: Evidence) -> EvidenceDetail:
    return EvidenceDetail(box=evidence.box, heatmap_png=b64encode(evidence.heatmap_png).decode())


def _blank(model: ModelIdentity) -> Outcome:
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
