"""What every engine is to those who use it: images in, answers out."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Stacked, or one by one where stacking would copy them for nothing.
Images: TypeAlias = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]


class Answers(NamedTuple):
    """What one forward pass says of n images."""

    probabilities: NDArray[np.float32]
    """(n, k)."""
    embeddings: NDArray[np.float32] | None = None
    """(n, d), where the network ends in global average pooling."""
    features: NDArray[np.float32] | None = None
    """(n, gh, gw, d), the maps that were pooled; only when asked for."""


class Classifier(Protocol):
    """A network held in memory. It may be called from several threads at once."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (n, h, w, c), uint8 0..255, n >= 1, to probabilities (n, k), float32."""
        ...

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        """Images (n, h, w, c), uint8 0..255, n >= 1, to all that one pass says of them."""
        ...


def join_answers(answers: Sequence[Answers]) -> Answers:
    """One after the other, in order."""
    if len(answers) == 1:
        return answers[0]
    probabilities, embeddings, features = zip(*answers, strict=True)
    return Answers(np.concatenate(probabilities), _join(embeddings), _join(features))


def _join(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
