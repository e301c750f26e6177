"""How unlike the training images an image is, told from its embedding by two distances.

- The Mahalanobis distance to the nearest class mean, under one covariance shared by all classes
  (K. Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018).
- The distance, on the unit sphere, to the nearest of some prototypes of the training images
  (Y. Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022).

Each misses what the other sees: a blank image's embedding has the length of none, a photograph's the
direction of none. Their sum, each in units of its own 99 % quantile over training images, misses least.
"""

import math
from functools import cached_property
from typing import Annotated, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.packed import PackedArray

OUT_OF_DISTRIBUTION = "out_of_distribution"
"""The reason that is given for abstaining."""

# Keeps the embedding of a blank image, all zeros, from being divided by nothing.
_EPSILON = 1e-6


class Points(NamedTuple):
    """Places (n, r), and their squared distances (n,) from the origin."""

    places: NDArray[np.float32]
    squares: NDArray[np.float32]

    def nearest(self, place: NDArray[np.float32]) -> float:
        """The Euclidean distance from a place (r,)."""
        return math.sqrt(max(0.0, float((self.squares - 2 * (self.places @ place)).min() + place @ place)))


class Arrays(NamedTuple):
    whitening: NDArray[np.float32]
    class_means: Points
    prototypes: Points


class Novelty(BaseModel):
    """Fitted once, at the end of training; scores embeddings (n, d) ever after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    whitening: PackedArray
    """(d, r): makes the covariance within classes the identity, in units of that distance's quantile."""
    class_means: PackedArray
    """(k, r), whitened."""
    prototypes: PackedArray
    """(p, d), of length 1."""
    prototype_unit: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The quantile of the distances to them."""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Images that score above it are abstained on."""

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings (n, d) to scores (n,); the larger, the less familiar."""
        # One by one: what a matrix product gives for a row depends, in its last bits, on the rows beside it.
        return np.array([self._score_one(row) for row in embeddings], dtype=np.float32)

    def _score_one(self, embedding: NDArray[np.float32]) -> float:
        """Of an embedding (d,)."""
        whitening, class_means, prototypes = self._arrays
        to_class = class_means.nearest(embedding @ whitening)
        to_prototype = prototypes.nearest(embedding / (math.sqrt(embedding @ embedding) + _EPSILON))
        return to_class + to_prototype / self.prototype_unit

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        size, rank = self.whitening.shape if len(self.whitening.shape) == 2 else (0, 0)
        for name, array, width in (
            ("class_means", self.class_means, rank),
            ("prototypes", self.prototypes, size),
        ):
            if len(array.shape) != 2 or array.shape[1] != width:
                raise ValueError(f"{name} must fit a whitening of {self.whitening.shape}: {array.shape}")
        return self

    @cached_property
    def _arrays(self) -> Arrays:
        return Arrays(
            self.whitening.unpack(), _points(self.class_means.unpack()), _points(self.prototypes.unpack())
        )


def reasons_to_abstain(
    novelty: Novelty | None, embeddings: NDArray[np.float32] | None, images: int
) -> list[str | None]:
    """For each of so many images, why its label must not be trusted; None where it may be."""
    if novelty is None or embeddings is None:
        return [None] * images
    return [OUT_OF_DISTRIBUTION if score > novelty.threshold else None for score in novelty.score(embeddings)]


def _points(places: NDArray[np.float32]) -> Points:
    return Points(places, (places**2).sum(axis=1))


def distances_between(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean distances (n, m) of points (n, r) to points (m, r)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * (a @ b.T)
    distances: NDArray[np.float32] = np.sqrt(np.maximum(squares, 0))
    return distances


def unit_length(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = embeddings / (lengths + _EPSILON)
    return scaled
