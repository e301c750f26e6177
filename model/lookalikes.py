"""Find duplicates in a labelled folder: images with identical pixels, and modified copies.

A copy that was saved as JPEG, reduced in size or brightened keeps the coarse pattern of its original. So does
the next photograph of a fixed part by a fixed camera, so lookalikes are only reported: no image is removed
or grouped because of them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PATTERN_SIDE = 32
LEAST_CORRELATION = 0.992
"""JPEG copies (quality 75) of the NEU images reach 0.996 or more, different images 0.990 at most."""
_FLAT = 1.0
"""In grey levels. Patterns that vary less are skipped, because all of them look alike."""
_ROWS = 512


def find_copies(images: NDArray[np.uint8]) -> list[list[int]]:
    """Lists of indices of images (n, h, w, c) with identical pixels."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append(place)
    return [same for same in places.values() if len(same) > 1]


def find_lookalikes(
    images: NDArray[np.uint8], labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Pairs of indices of images (n, h, w, c) with the same pattern and class, but different groups.

    Each image is paired only with the first match after it: at most n pairs.
    """
    patterns, varied = _patterns(images)
    for label in np.unique(labels):
        places = np.flatnonzero((labels == label) & varied)
        of_class = patterns[places]
        for first in range(0, len(places), _ROWS):
            rows, later = places[first : first + _ROWS], places[first:]
            alike = of_class[first : first + _ROWS] @ of_class[first:].T > LEAST_CORRELATION
            alike &= groups[rows, np.newaxis] != groups[later]
            alike = np.triu(alike, 1)
            for row in np.flatnonzero(alike.any(axis=1)):
                yield int(rows[row]), int(later[alike[row].argmax()])


def _patterns(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Coarse grey patterns (n, d) of mean 0 and length 1, and whether each varies (n,)."""
    height, width = images.shape[1:3]
    pooled = (_pool(_pool(image.mean(axis=2), height, 0), width, 1) for image in images)
    coarse = np.stack([field.astype(np.float32).ravel() for field in pooled])
    coarse -= coarse.mean(axis=1, keepdims=True)
    deviation = coarse.std(axis=1)
    length = np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-6)
    return coarse / length, np.asarray(deviation > _FLAT)


def _pool(field: NDArray[np.float64], side: int, axis: int) -> NDArray[np.float64]:
    """Means of `PATTERN_SIDE` segments along an axis, or all its pixels if there are fewer."""
    edges = np.linspace(0, side, min(side, PATTERN_SIDE), endpoint=False).astype(np.intp)
    widths = np.diff([*edges.tolist(), side])
    means: NDArray[np.float64] = np.add.reduceat(field, edges, axis=axis) / np.expand_dims(widths, 1 - axis)
    return means
