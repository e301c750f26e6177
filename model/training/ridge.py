"""Ridge regression of one-hot labels: a linear classifier in closed form, which few images suffice for."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STRENGTH = 100.0
"""Of the penalty on standardised columns; 30 to 300 give the same accuracy on 60 photographs of textures."""


class Linear(NamedTuple):
    """A linear layer: weights (d, k) and bias (k,), float64."""

    kernel: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (n, k) of rows (n, d)."""
        return np.asarray(rows @ self.kernel + self.bias, dtype=np.float32)


def fit_ridge(
    rows: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, strength: float = STRENGTH
) -> Linear:
    """Fit to rows (n, d) and labels (n,). Rare classes weigh more."""
    centre, spread = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64) + 1e-3
    weights = class_weights(labels, num_classes)[labels, np.newaxis]
    standardised = (rows - centre) / spread
    targets = np.eye(num_classes)[labels]
    mean = (weights * targets).mean(axis=0)
    squares = standardised.T @ (weights * standardised) + strength * np.eye(rows.shape[1])
    kernel = np.linalg.solve(squares, standardised.T @ (weights * (targets - mean)))
    kernel /= spread[:, np.newaxis]
    return Linear(kernel, mean - centre @ kernel)


def class_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    """Weights (k,), inverse to the root of a class's frequency, with mean 1 over the images."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    normed: NDArray[np.float32] = (weights * len(labels) / (weights * counts).sum()).astype(np.float32)
    return normed
