"""Novelty score: the distance of an image's embedding from those of the training images, by two measures.

- The Mahalanobis distance to the nearest class mean, under one covariance shared by all classes
  (K. Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018).
- The distance, on the unit sphere, to the nearest of some prototypes of the training images
  (Y. Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022).

They complement each other: the embedding of a blank image has an unusual length, that of a photograph an
unusual direction. Their sum, each in units of its own 99 % quantile over training images, detects the most.
"""

import math
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from model.arrays import ArrayJson, Floats, Mask

OUT_OF_DISTRIBUTION = "out_of_distribution"
"""Reason that the service reports when it abstains."""

# Prevents a division by zero: the embedding of a blank image is all zeros.
_EPSILON = 1e-6


class _Points(NamedTuple):
    """Points (n, r) times -2, which is exact, and their squared distances (n,) from the origin."""

    minus_twice: Floats
    squares: Floats

    def nearest(self, places: Floats) -> list[float]:
        """Euclidean distances (n,) from `places` (n, r) to the nearest point."""
        to_points = np.matvec(self.minus_twice, places) + self.squares
        squares = to_points.min(axis=1) + np.vecdot(places, places)
        return [math.sqrt(max(0.0, square)) for square in squares.tolist()]


class _Arrays(NamedTuple):
    whitening: Floats
    class_means: _Points
    prototypes: _Points


class Novelty(BaseModel, frozen=True, extra="forbid"):
    """A fitted detector that scores embeddings (n, d). Training fits it once, at the end."""

    whitening: ArrayJson
    """(d, r): makes the covariance within classes the identity, in units of that distance's quantile."""
    class_means: ArrayJson
    """(k, r), whitened."""
    prototypes: ArrayJson
    """(p, d), of unit length."""
    prototype_unit: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Quantile of the distances to the prototypes."""
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The service abstains on images with a higher score."""
    embedding: Literal["network", "pretrained"] = "network"
    """What it scores: the pooled features of the network itself, or the texture statistics of pretrained
    blocks, which are compiled next to the network.
    """

    def score(self, embeddings: Floats) -> Floats:
        """Scores (n,) of embeddings (n, d); a higher score is less familiar."""
        # By functions that multiply each row on its own: in a matrix product, the last bits of a row depend
        # on the other rows of the batch.
        whitening, class_means, prototypes = self._arrays
        lengths = np.sqrt(np.vecdot(embeddings, embeddings)) + _EPSILON
        to_classes = class_means.nearest(np.vecmat(embeddings, whitening))
        to_prototypes = prototypes.nearest(embeddings / lengths[:, np.newaxis])
        sums = [a + b / self.prototype_unit for a, b in zip(to_classes, to_prototypes, strict=True)]
        return np.array(sums, np.float32)

    def abstains(self, embeddings: Floats) -> Mask:
        """Whether to abstain (n,) on the images of embeddings (n, d)."""
        return np.asarray(self.score(embeddings) > self.threshold)

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        size, rank = self.whitening.shape if len(self.whitening.shape) == 2 else (0, 0)
        for name, array, width in (
            ("class_means", self.class_means, rank),
            ("prototypes", self.prototypes, size),
        ):
            if len(array.shape) != 2 or array.shape[1] != width:
                raise ValueError(
                    f"{name} must match the whitening, {self.whitening.shape}. Received: {array.shape}"
                )
        return self

    @cached_property
    def _arrays(self) -> _Arrays:
        return _Arrays(
            self.whitening.to_array(),
            _points(self.class_means.to_array()),
            _points(self.prototypes.to_array()),
        )


def reasons_to_abstain(novelty: Novelty | None, embeddings: Floats | None, images: int) -> list[str | None]:
    """For each of `images` images, the reason to abstain, or None."""
    if novelty is None or embeddings is None:
        return [None] * images
    return [OUT_OF_DISTRIBUTION if abstains else None for abstains in novelty.abstains(embeddings)]


def distances_between(a: Floats, b: Floats) -> Floats:
    """Euclidean distances (n, m) of points (n, r) to points (m, r)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * (a @ b.T)
    distances: Floats = np.sqrt(np.maximum(squares, 0))
    return distances


def unit_length(embeddings: Floats) -> Floats:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: Floats = embeddings / (lengths + _EPSILON)
    return scaled


def _points(places: Floats) -> _Points:
    return _Points(-2 * places, (places**2).sum(axis=1))
