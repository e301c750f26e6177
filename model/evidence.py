"""Where in an image the network saw its class: a heatmap, its strongest place, and a box.

A network that ends in global average pooling and one dense layer scores a class by the mean, over all
places, of its features there times the class's weights: the summands of that mean are the class activation
(B. Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016). Its grid is coarse, and
every place sees much of its surroundings; so it is weighed by how far the pixels there stand out from
theirs, as guided maps are by gradients (R. R. Selvaraju et al., Grad-CAM, ICCV 2017). Towards the border
the network sees more and more padding and less of the defect, and so the map fades out there.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model.image import encode_png, stretch

HEATMAP_SIDE_PIXELS = 96
"""The longer side of a heatmap; it is to be laid over the whole image."""
BOX_LEVEL = 0.1
"""The box holds every place of at least this share of the strongest, once they are smoothed."""

# In shares of the image's side; found on the boxes that the NEU images' annotators drew.
_ACTIVATION_BLUR, _SURROUNDINGS, _DETAIL_BLUR, _BOX_BLUR = 0.04, 0.10, 0.01, 0.03
_BORDER = 0.2
_KERNEL_REACH = 3.0
_ROUNDING = 1e-3
"""Grey levels: less detail than this is arithmetic, not an image."""

Field = NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Evidence:
    """Where one class was seen in one image."""

    box: Box
    """x0, y0, x1, y1 in pixels of the upright source image, x1 and y1 exclusive."""
    heatmap_png: bytes
    """A grey PNG of the source's proportions, 255 where the evidence is strongest."""


def find_evidence(
    pixels: NDArray[np.uint8], features: Field, class_weights: Field, source_size: tuple[int, int]
) -> Evidence:
    """Evidence for one class in an image that came from a source of (width, height).

    `pixels` (h, w, c) are what the network saw, `features` (gh, gw, d) its last maps and `class_weights`
    (d,) what one class makes of them.
    """
    heat = heat_of(pixels, features, class_weights)
    return Evidence(box_around(heat, source_size), _draw(heat, source_size))


def heat_of(pixels: NDArray[np.uint8], features: Field, class_weights: Field) -> Field:
    """(h, w), 0 to 1; all 0 where nothing speaks for the class."""
    height, width = pixels.shape[:2]
    activation = stretch(np.maximum(features @ class_weights, 0), (width, height))
    grey = pixels.mean(axis=2, dtype=np.float32)
    detail = _blur(np.abs(grey - _blur(grey, _SURROUNDINGS)), _DETAIL_BLUR)
    detail[detail < _ROUNDING] = 0
    return _to_one(_blur(activation, _ACTIVATION_BLUR) ** 2 * detail * _trust(height, width))


def box_around(heat: Field, source_size: tuple[int, int]) -> Box:
    """The box around all strong places, in pixels of the source; the whole image where none is."""
    smooth = _blur(heat, _BOX_BLUR)
    strong = smooth >= BOX_LEVEL * smooth.max()
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    across, down = source_size[0] / heat.shape[1], source_size[1] / heat.shape[0]
    return (
        int(columns[0] * across),
        int(rows[0] * down),
        min(source_size[0], int(np.ceil((columns[-1] + 1) * across))),
        min(source_size[1], int(np.ceil((rows[-1] + 1) * down))),
    )


def against_the_others(class_weights: Field) -> Field:
    """Weights (d, k) less their mean over classes: what speaks for all classes speaks for none."""
    centred: Field = class_weights - class_weights.mean(axis=1, keepdims=True)
    return centred


def _draw(heat: Field, source_size: tuple[int, int]) -> bytes:
    shrink = HEATMAP_SIDE_PIXELS / max(source_size)
    size = max(1, round(source_size[0] * shrink)), max(1, round(source_size[1] * shrink))
    return encode_png(np.rint(255 * _to_one(stretch(heat, size))).astype(np.uint8))


def _to_one(field: Field) -> Field:
    peak = float(field.max())
    scaled: Field = field / peak if peak > 0 else field
    return scaled


def _blur(field: Field, share_of_side: float) -> Field:
    """A Gaussian whose deviation is a share of each side; edges reflect."""
    height, width = field.shape
    blurred = _blurring(height, share_of_side) @ field @ _blurring(width, share_of_side).T
    return np.asarray(blurred, dtype=np.float32)


@lru_cache(maxsize=4)
def _trust(height: int, width: int) -> Field:
    """(height, width): from nearly 0 at the border up to 1 inside it."""
    down, across = ((np.arange(side) + 0.5) / side for side in (height, width))
    to_border = np.minimum(np.minimum(down, 1 - down)[:, np.newaxis], np.minimum(across, 1 - across))
    return np.minimum(to_border / _BORDER, 1).astype(np.float32)


@lru_cache(maxsize=16)
def _blurring(side: int, share_of_side: float) -> Field:
    """The matrix (side, side) that blurs a column."""
    deviation = max(share_of_side * side, 1e-3)
    reach = min(int(_KERNEL_REACH * deviation) + 1, side - 1)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * deviation**2)).astype(np.float32)
    matrix = np.zeros((side, side), dtype=np.float32)
    for offset, weight in zip(offsets, kernel / kernel.sum(), strict=True):
        places = np.abs(np.arange(side) + offset)
        places = np.where(places >= side, 2 * (side - 1) - places, places)
        np.add.at(matrix, (np.arange(side), places), weight)
    return matrix
