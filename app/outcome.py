"""The outcome of one image: the object that every form of request answers with. Its keys are stable."""

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
