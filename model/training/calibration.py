"""Fit the softmax temperature (calibrated confidence) and the novelty detector (abstention)."""

import math

import numpy as np
from numpy.typing import NDArray

from model.array_json import ArrayJson
from model.novelty import Novelty, distances_between, unit_length
from model.training.splits import assign_folds

FALSE_ABSTENTION = 0.01
"""Target share of in-distribution images on which the service abstains."""
SHRINKAGE = 0.02
"""Share of the mean variance added to each variance, so that a covariance from few images is not singular."""
PROTOTYPES = 64
PROTOTYPES_PER_CLASS = 4
"""The number of prototypes is the larger of PROTOTYPES and this value times the number of classes."""
_ROUNDS = 15
_LEAST_TEMPERATURE, _MOST_TEMPERATURE, _HALVINGS = 0.05, 20.0, 40


def expected_accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Expected accuracy of logits (n, k) by Laplace's rule of succession, (correct + 1) / (n + 2).

    Zero errors in a small sample do not imply an error rate of zero.
    """
    right = int((logits.argmax(axis=1) == labels).sum())
    return (right + 1) / (len(labels) + 2)


def fit_temperature(logits: NDArray[np.float32], accuracy: float) -> float:
    """Temperature at which the mean confidence of logits (n, k) equals `accuracy`.

    One scalar for all logits, as in C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017. That
    paper fits it by likelihood, which depends on the few errors, or on the prior if there are none.
    """
    low, high = _LEAST_TEMPERATURE, _MOST_TEMPERATURE
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _mean_confidence(logits / middle) > accuracy:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def fit_novelty(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> Novelty:
    """Fit the detector to training embeddings (n, d), with units and threshold from held-out groups.

    The network was trained on these groups, so it abstains on somewhat more than FALSE_ABSTENTION of unseen
    groups; cross-validation measures the actual share.
    """
    return fit_novelty_and_scores(embeddings, labels, groups)[0]


def fit_novelty_and_scores(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[Novelty, NDArray[np.float64]]:
    """The detector of `fit_novelty`, and the held-out scores of which its threshold is a quantile."""
    to_class, to_prototype = _distances_held_out(embeddings, labels, groups)
    class_unit, prototype_unit = (
        max(float(np.quantile(distances, 1 - FALSE_ABSTENTION)), 1e-6)
        for distances in (to_class, to_prototype)
    )
    scores = to_class / class_unit + to_prototype / prototype_unit
    whitening, means, prototypes = _fit_centres(embeddings, labels)
    novelty = Novelty(
        whitening=ArrayJson.from_array(whitening / class_unit),
        class_means=ArrayJson.from_array(means / class_unit),
        prototypes=ArrayJson.from_array(prototypes),
        prototype_unit=prototype_unit,
        threshold=float(np.quantile(scores, 1 - FALSE_ABSTENTION)),
    )
    return novelty, scores


def _distances_held_out(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances (m,) to the nearest class mean and prototype, of images whose group was held out of the fit.

    Skips images of classes that occur only in the held-out fold. If none remain, returns the distances of all
    images to a fit on all images.
    """
    to_class, to_prototype = [], []
    folds = assign_folds(labels, groups)
    for fold in np.unique(folds):
        rest = folds != fold
        held_out = ~rest & np.isin(labels, labels[rest])
        if held_out.any():
            found = _distances(embeddings[held_out], *_fit_centres(embeddings[rest], labels[rest]))
            to_class.append(found[0])
            to_prototype.append(found[1])
    if not to_class:
        return _distances(embeddings, *_fit_centres(embeddings, labels))
    return np.concatenate(to_class), np.concatenate(to_prototype)


def _distances(
    embeddings: NDArray[np.float32],
    whitening: NDArray[np.float32],
    means: NDArray[np.float32],
    prototypes: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    to_class = distances_between(embeddings @ whitening, means).min(axis=1)
    to_prototype = distances_between(unit_length(embeddings), prototypes).min(axis=1)
    return to_class.astype(np.float64), to_prototype.astype(np.float64)


def _fit_centres(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Whitening (d, d), whitened class means (k, d) and prototypes (p, d)."""
    present = np.unique(labels)
    means = np.stack([embeddings[labels == label].mean(axis=0) for label in present])
    residuals = (embeddings - means[np.searchsorted(present, labels)]).astype(np.float64)
    covariance = residuals.T @ residuals / len(residuals)
    size = len(covariance)
    covariance += (SHRINKAGE * np.trace(covariance) / size + 1e-9) * np.eye(size)
    variances, directions = np.linalg.eigh(covariance)
    whitening = (directions / np.sqrt(variances)).astype(np.float32)
    wanted = max(PROTOTYPES, PROTOTYPES_PER_CLASS * len(present))
    return whitening, means @ whitening, _find_prototypes(unit_length(embeddings), wanted)


def _find_prototypes(points: NDArray[np.float32], wanted: int) -> NDArray[np.float32]:
    """Spherical k-means from a fixed seed: unit-length centres (p, d), with p at most `wanted`."""
    start = np.random.default_rng(0).permutation(len(points))[:wanted]
    centres = points[start]
    for _ in range(_ROUNDS):
        nearest = distances_between(points, centres).argmin(axis=1)
        for place in np.unique(nearest):
            centres[place] = points[nearest == place].mean(axis=0)
        centres = unit_length(centres)
    return centres


def _mean_confidence(logits: NDArray[np.float32]) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float((1 / np.exp(shifted).sum(axis=1)).mean())
