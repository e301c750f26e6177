"""Evaluation metrics, computed from arrays."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats, Ints, Mask

# Keras clips probabilities to the same range before it takes the logarithm.
_EPSILON = 1e-7
RELIABILITY_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Accuracy and mean categorical cross-entropy over `images` images."""

    images: int
    correct: int
    accuracy: float
    loss: float


class Interval(NamedTuple):
    low: float
    high: float


def measure(probabilities: Floats, labels: Ints) -> Metrics:
    """Metrics of probabilities (n, k) against labels (n,)."""
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = float(-np.log(np.clip(of_label, _EPSILON, 1 - _EPSILON)).mean())
    return Metrics(len(labels), correct, correct / len(labels), loss)


def wilson_interval(correct: int, images: int) -> Interval:
    """The 95 % confidence interval of a proportion (E. B. Wilson, 1927)."""
    z = 1.959964
    share = correct / images
    centre = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def group_interval(right: Mask, groups: Ints, draws: int = 2000) -> Interval:
    """The 95 % bootstrap interval of the accuracy. Resamples whole groups, as errors in a group correlate."""
    _, index = np.unique(groups, return_inverse=True)
    size = np.bincount(index).astype(np.float64)
    hits = np.bincount(index, weights=right)
    drawn = np.random.default_rng(0).integers(0, len(size), (draws, len(size)))
    shares = hits[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    return Interval(*(float(q) for q in np.quantile(shares, (0.025, 0.975))))


def confusion_matrix(predicted: Ints, labels: Ints, classes: int) -> Ints:
    """(k, k): row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


class Reliability(NamedTuple):
    """Number of images, mean confidence and accuracy (b,) by bin of confidence."""

    images: Ints
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap between confidence and accuracy, weighted by images (M. P. Naeini et al., AAAI 2015)."""
        return float((self.images * np.abs(self.confidence - self.accuracy)).sum() / self.images.sum())


def reliability(probabilities: Floats, labels: Ints) -> Reliability:
    """Reliability of probabilities (n, k) in bins of equal width."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    images = np.bincount(bins, minlength=RELIABILITY_BINS)
    some = np.maximum(images, 1)
    return Reliability(
        images,
        np.bincount(bins, weights=confidence, minlength=RELIABILITY_BINS) / some,
        np.bincount(bins, weights=right, minlength=RELIABILITY_BINS) / some,
    )


def area_under_roc(in_distribution: NDArray[np.floating], out_of_distribution: NDArray[np.floating]) -> float:
    """The share of pairs in which the out-of-distribution image scores higher; ties count half."""
    scores = np.concatenate([in_distribution, out_of_distribution]).astype(np.float64)
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    inside, outside = len(in_distribution), len(out_of_distribution)
    higher = ranks[inside:].sum() - outside * (outside + 1) / 2
    return float(higher / (inside * outside))


class RiskCoverage(NamedTuple):
    """The error rate (n,) among the most confident share (n,) of images."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


def risk_coverage(confidence: NDArray[np.floating], right: Mask) -> RiskCoverage:
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    return RiskCoverage(kept / len(order), np.cumsum(~right[order]) / kept)
