"""The outcome of one image: the object that every form of request answers with. Its keys are stable."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from app.errors import PredictionFailed
from model.errors import InputError

# Float32 probabilities carry about seven digits; engines agree to five.
_DECIMALS = 6


class ErrorDetail(TypedDict):
    code: str
    message: str
    retryable: bool


class ModelIdentity(TypedDict):
    name: str
    version: str


class Outcome(TypedDict):
    """Every key is always present, null where unused."""

    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    abstained: bool
    reason: str | None
    nearest_label: str | None
    evidence: dict[str, Any] | None
    model: ModelIdentity
    error: ErrorDetail | None


def outcome_of_probabilities(
    probabilities: NDArray[np.float32], class_names: Sequence[str], model: ModelIdentity
) -> Outcome:
    """The outcome of an image that was classified; `probabilities` (k,) in the order of `class_names`."""
    if not np.isfinite(probabilities).all():
        failure = PredictionFailed("The network must answer with finite probabilities.")
        return outcome_of_error(failure, model)
    rounded = [round(p, _DECIMALS) for p in probabilities.tolist()]
    best = int(probabilities.argmax())
    outcome = _blank(model)
    outcome["label"] = class_names[best]
    outcome["confidence"] = rounded[best]
    outcome["probabilities"] = dict(zip(class_names, rounded, strict=True))
    return outcome


def outcome_of_error(error: InputError, model: ModelIdentity) -> Outcome:
    """The outcome of an image that could not be classified."""
    outcome = _blank(model)
    outcome["error"] = ErrorDetail(code=error.code, message=error.message, retryable=error.retryable)
    return outcome


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
