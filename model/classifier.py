"""Interface of the inference engines, and the outputs of a forward pass."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# One stacked array, or a sequence where stacking would be a needless copy.
Images: TypeAlias = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]


class Answers(NamedTuple):
    """Outputs of one forward pass over n images."""

    probabilities: NDArray[np.float32]
    """(n, k)."""
    embeddings: NDArray[np.float32] | None = None
    """(n, d), if the network ends in global average pooling."""
    features: NDArray[np.float32] | None = None
    """(n, gh, gw, d), the feature maps before pooling; only on request."""


class Classifier(Protocol):
    """A loaded network. Thread-safe."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities (n, k), float32, for images (n, h, w, c), uint8 0..255, n >= 1."""
        ...

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        """Return all outputs of one forward pass over images (n, h, w, c), uint8 0..255, n >= 1."""
        ...


def join_answers(answers: Sequence[Answers]) -> Answers:
    """Concatenate outputs in order."""
    if len(answers) == 1:
        return answers[0]
    probabilities, embeddings, features = zip(*answers, strict=True)
    return Answers(np.concatenate(probabilities), _join(embeddings), _join(features))


def _join(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
