"""Fit the temperature (calibrated confidence), the novelty detector (abstention) and ridge regression."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import ArrayJson, Floats, Ints
from model.novelty import Novelty, distances_between, unit_length
from model.training.splits import assign_folds

FALSE_ABSTENTION = 0.01
"""Target share of in-distribution images on which the service abstains."""
LEAST_ABSTAINED = 2
"""The target share is at least this number of images, so that the single most unusual one does not decide."""
STRENGTH = 100.0
"""Of the penalty of ridge regression; 30 to 300 give the same accuracy on 60 photographs of textures."""
SEPARATION = 1000.0
"""Strength of the ridge regression that separates images from synthetic negatives."""
SHRINKAGE = 0.02
"""Share of the mean variance added to each variance, so that a covariance from few images is not singular."""
PROTOTYPES = 64
PROTOTYPES_PER_CLASS = 4
"""The number of prototypes is the larger of PROTOTYPES and this value times the number of classes."""
_ROUNDS = 15
_LEAST_TEMPERATURE, _MOST_TEMPERATURE, _HALVINGS = 0.05, 20.0, 40


def expected_accuracy(logits: Floats, labels: Ints) -> float:
    """Expected accuracy of logits (n, k) by Laplace's rule of succession, (correct + 1) / (n + 2).

    Zero errors in a small sample do not imply an error rate of zero.
    """
    right = int((logits.argmax(axis=1) == labels).sum())
    return (right + 1) / (len(labels) + 2)


def fit_temperature(logits: Floats, accuracy: float) -> float:
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


class _Centres(NamedTuple):
    whitening: Floats
    """(d, r)."""
    means: Floats
    """(k, r), whitened."""
    prototypes: Floats
    """(p, d), of unit length."""

    def distances(self, embeddings: Floats) -> NDArray[np.float64]:
        """Distances (2, n) to the nearest mean and prototype."""
        to_class = distances_between(embeddings @ self.whitening, self.means).min(axis=1)
        to_prototype = distances_between(unit_length(embeddings), self.prototypes).min(axis=1)
        return np.stack([to_class, to_prototype]).astype(np.float64)


def fit_novelty(embeddings: Floats, labels: Ints, groups: Ints, negatives: Floats | None = None) -> Novelty:
    """Fit the detector to training embeddings (n, d), with units and threshold from held-out groups.

    If the network was trained on these groups, it abstains on somewhat more than FALSE_ABSTENTION of unseen
    groups; cross-validation measures the actual share. Embeddings (m, d) of synthetic negatives replace the
    distance to class means by one along the direction that separates negatives: for a network that was not
    trained to separate them, and for images too few to estimate a covariance.
    """
    return fit_novelty_and_scores(embeddings, labels, groups, negatives)[0]


def fit_novelty_and_scores(
    embeddings: Floats, labels: Ints, groups: Ints, negatives: Floats | None = None
) -> tuple[Novelty, NDArray[np.float64]]:
    """The detector of `fit_novelty`, and the held-out scores of which its threshold is a quantile."""
    held_out = _distances_held_out(embeddings, labels, groups, negatives)
    quantile = 1 - max(FALSE_ABSTENTION, LEAST_ABSTAINED / len(embeddings))
    class_unit, prototype_unit = units = np.maximum(np.quantile(held_out, quantile, axis=1), 1e-6)
    scores = (held_out / units[:, np.newaxis]).sum(axis=0)
    centres = _fit_centres(embeddings, labels, negatives)
    novelty = Novelty(
        whitening=ArrayJson.from_array(centres.whitening / class_unit),
        class_means=ArrayJson.from_array(centres.means / class_unit),
        prototypes=ArrayJson.from_array(centres.prototypes),
        prototype_unit=float(prototype_unit),
        threshold=float(np.quantile(scores, quantile)),
    )
    return novelty, scores


def _distances_held_out(
    embeddings: Floats, labels: Ints, groups: Ints, negatives: Floats | None
) -> NDArray[np.float64]:
    """Distances (2, m) to the nearest mean and prototype, of images whose group was held out of the fit.

    Skips images of classes that occur only in the held-out fold. If none remain, returns the distances of all
    images to a fit on all images.
    """
    found = []
    folds = assign_folds(labels, groups)
    for fold in np.unique(folds):
        rest = folds != fold
        held_out = ~rest & np.isin(labels, labels[rest])
        if held_out.any():
            centres = _fit_centres(embeddings[rest], labels[rest], negatives)
            found.append(centres.distances(embeddings[held_out]))
    if not found:
        return _fit_centres(embeddings, labels, negatives).distances(embeddings)
    return np.concatenate(found, axis=1)


def _fit_centres(embeddings: Floats, labels: Ints, negatives: Floats | None) -> _Centres:
    present = np.unique(labels)
    wanted = max(PROTOTYPES, PROTOTYPES_PER_CLASS * len(present))
    prototypes = _find_prototypes(unit_length(embeddings), wanted)
    if negatives is None:
        return _Centres(*_whiten(embeddings, labels, present), prototypes)
    return _Centres(*_separate(embeddings, negatives), prototypes)


def _whiten(embeddings: Floats, labels: Ints, present: Ints) -> tuple[Floats, Floats]:
    """Whitening (d, d) of the covariance within classes, and whitened class means (k, d)."""
    means = np.stack([embeddings[labels == label].mean(axis=0) for label in present])
    residuals = (embeddings - means[np.searchsorted(present, labels)]).astype(np.float64)
    covariance = residuals.T @ residuals / len(residuals)
    size = len(covariance)
    covariance += (SHRINKAGE * np.trace(covariance) / size + 1e-9) * np.eye(size)
    variances, directions = np.linalg.eigh(covariance)
    whitening = (directions / np.sqrt(variances)).astype(np.float32)
    return whitening, means @ whitening


def _separate(embeddings: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """Direction (d, 1) from images to negatives, and the place (1, 1) on it of the farthest image."""
    is_negative = np.repeat((0, 1), (len(embeddings), len(negatives)))
    layer = fit_ridge(np.concatenate([embeddings, negatives]), is_negative, 2, SEPARATION)
    direction = layer.kernel[:, 1:].astype(np.float32)
    return direction, (embeddings @ direction).min(axis=0, keepdims=True)


def _find_prototypes(points: Floats, wanted: int) -> Floats:
    """Spherical k-means from a fixed seed: unit-length centres (p, d), with p at most `wanted`."""
    start = np.random.default_rng(0).permutation(len(points))[:wanted]
    centres = points[start]
    for _ in range(_ROUNDS):
        nearest = distances_between(points, centres).argmin(axis=1)
        for place in np.unique(nearest):
            centres[place] = points[nearest == place].mean(axis=0)
        centres = unit_length(centres)
    return centres


def _mean_confidence(logits: Floats) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float((1 / np.exp(shifted).sum(axis=1)).mean())


class Linear(NamedTuple):
    """A linear layer: weights (d, k) and bias (k,), float64."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, rows: Floats) -> Floats:
        """Scores (n, k) of rows (n, d)."""
        return np.asarray(rows @ self.kernel + self.bias, dtype=np.float32)


def fit_ridge(rows: Floats, labels: Ints, num_classes: int, strength: float = STRENGTH) -> Linear:
    """Ridge regression of one-hot labels (n,) on rows (n, d), for which few images suffice.

    The penalty is on standardised columns. Rare classes weigh more.
    """
    centre, spread = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64) + 1e-3
    weights = class_weights(labels, num_classes)[labels, np.newaxis]
    standardised = (rows - centre) / spread
    targets = np.eye(num_classes)[labels]
    mean = (weights * targets).mean(axis=0)
    squares = standardised.T @ (weights * standardised) + strength * np.eye(rows.shape[1])
    kernel = np.linalg.solve(squares, standardised.T @ (weights * (targets - mean)))
    kernel /= spread[:, np.newaxis]
    return Linear(kernel, mean - centre @ kernel)


def class_weights(labels: Ints, num_classes: int) -> Floats:
    """Weights (k,), inverse to the root of a class's frequency, with mean 1 over the images."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    normed: Floats = (weights * len(labels) / (weights * counts).sum()).astype(np.float32)
    return normed
