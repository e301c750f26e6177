"""Where in an image the network sees a class: a heatmap and a bounding box.

In a network that ends in global average pooling and one dense layer, a class's score is the mean, over
positions, of features times class weights. The summands form the class activation map (B. Zhou et al.,
Learning Deep Features for Discriminative Localization, CVPR 2016). This map is coarse, because each position
has a large receptive field. It is therefore multiplied by the local contrast of the pixels, as guided maps
are multiplied by gradients (R. R. Selvaraju et al., Grad-CAM, ICCV 2017). Near the border, receptive fields
contain mostly padding, so the map fades out there.

For any other network, a map of the same form is found by occlusion (M. D. Zeiler and R. Fergus, Visualizing
and Understanding Convolutional Networks, ECCV 2014): how much the class's score falls if a part of the image
is hidden. It needs OCCLUSION_RUNS runs of the network.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.arrays import Floats, Pixels
from model.image import encode_png, stretch
from model.preprocessing import LEAST_PROBABILITY

HEATMAP_SIDE_PIXELS = 96
"""Longer side of a heatmap, which clients scale to the size of the image."""
BOX_LEVEL = 0.1
"""The box contains every position whose smoothed heat is at least this share of the maximum."""

# Shares of the image's side, tuned on the annotated boxes of the NEU images.
_ACTIVATION_BLUR, _SURROUNDINGS, _DETAIL_BLUR, _BOX_BLUR = 0.04, 0.10, 0.01, 0.03
_BORDER = 0.2
_OCCLUSION_GRID = 8
"""A part of 2 x 2 of 8 x 8 cells is hidden at a time."""
OCCLUSION_RUNS = (_OCCLUSION_GRID - 1) ** 2
_KERNEL_REACH = 3.0
_ROUNDING = 1e-3
"""Grey levels. Contrast below this value is rounding error."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Evidence:
    """Location of one class in one image."""

    box: Box
    """x0, y0, x1, y1 in pixels of the upright source image; x1 and y1 are exclusive."""
    heatmap_png: bytes
    """Greyscale PNG with the source's aspect ratio; 255 is the strongest evidence."""


def find_evidence(
    pixels: Pixels,
    features: Floats,
    class_weights: Floats,
    source_size: tuple[int, int],
    frame_size: tuple[float, float] | None = None,
) -> Evidence:
    """Locate one class in an image whose source has the size (width, height).

    `pixels` (h, w, c) are the network's input, `features` (gh, gw, d) its last feature maps and
    `class_weights` (d,) the class's weights for them. `frame_size` is what `ImageSpec.frame_size` returns.
    """
    heat = heat_of(pixels, features, class_weights)
    if frame_size is None or frame_size == source_size:
        return Evidence(box_around(heat, source_size), _draw(heat, source_size))
    box = _shift(box_around(heat, frame_size), frame_size, source_size)
    return Evidence(box, _draw(_over_source(heat, frame_size, source_size), source_size))


def occlusion_map(pixels: Pixels, class_index: int, predict: Callable[[Pixels], Floats]) -> Floats:
    """Map (8, 8, 1) of how much the score of a class falls where the image (h, w, c) is hidden.

    `predict` maps images (n, h, w, c) to probabilities (n, k). The score is the logarithm of the class's
    probability divided by that of all others. A hidden part has the image's mean colour.
    """
    before = _log_odds(predict(pixels[np.newaxis]), class_index)
    total = np.zeros((_OCCLUSION_GRID, _OCCLUSION_GRID, 1), np.float32)
    count = np.zeros_like(total)
    for cells, part in _parts_to_hide(*pixels.shape[:2]):
        hidden = pixels.copy()
        hidden[part] = pixels.mean(axis=(0, 1)).round()
        total[cells] += before - _log_odds(predict(hidden[np.newaxis]), class_index)
        count[cells] += 1
    return total / count


def _parts_to_hide(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Each part, as cells of the map and as pixels of the image."""
    rows, columns = (
        np.linspace(0, side, _OCCLUSION_GRID + 1).round().astype(int) for side in (height, width)
    )
    for row in range(_OCCLUSION_GRID - 1):
        for column in range(_OCCLUSION_GRID - 1):
            part = slice(rows[row], rows[row + 2]), slice(columns[column], columns[column + 2])
            yield (slice(row, row + 2), slice(column, column + 2)), part


def _log_odds(probabilities: Floats, class_index: int) -> float:
    [row] = probabilities.astype(np.float64)
    of_class, of_others = row[class_index], np.delete(row, class_index).sum()
    return float(np.log(max(of_class, LEAST_PROBABILITY)) - np.log(max(of_others, LEAST_PROBABILITY)))


def heat_of(pixels: Pixels, features: Floats, class_weights: Floats) -> Floats:
    """Heatmap (h, w), 0 to 1; all 0 if there is no evidence for the class."""
    height, width = pixels.shape[:2]
    activation = stretch(np.maximum(features @ class_weights, 0), (width, height))
    grey = pixels.mean(axis=2, dtype=np.float32)
    detail = _blur(np.abs(grey - _blur(grey, _SURROUNDINGS)), _DETAIL_BLUR)
    detail[detail < _ROUNDING] = 0
    return _to_one(_blur(activation, _ACTIVATION_BLUR) ** 2 * detail * _border_weight(height, width))


def box_around(heat: Floats, source_size: tuple[float, float]) -> Box:
    """Bounding box of all strong positions, in source pixels; the whole image if the heatmap is all 0."""
    smooth = _blur(heat, _BOX_BLUR)
    strong = smooth >= BOX_LEVEL * smooth.max()
    rows, columns = np.flatnonzero(strong.any(axis=1)), np.flatnonzero(strong.any(axis=0))
    across, down = source_size[0] / heat.shape[1], source_size[1] / heat.shape[0]
    return (
        int(columns[0] * across),
        int(rows[0] * down),
        min(int(source_size[0]), int(np.ceil((columns[-1] + 1) * across))),
        min(int(source_size[1]), int(np.ceil((rows[-1] + 1) * down))),
    )


def against_the_others(class_weights: Floats) -> Floats:
    """Weights (d, k) minus their mean over classes, which removes evidence common to all classes."""
    centred: Floats = class_weights - class_weights.mean(axis=1, keepdims=True)
    return centred


def _shift(box: Box, frame_size: tuple[float, float], source_size: tuple[int, int]) -> Box:
    """From pixels of a centred frame to those of the source, of which the box stays a part."""
    left, top = ((side - frame) / 2 for side, frame in zip(source_size, frame_size, strict=True))
    across, down = source_size
    x0, y0 = min(max(0, int(box[0] + left)), across - 1), min(max(0, int(box[1] + top)), down - 1)
    x1, y1 = min(across, int(np.ceil(box[2] + left))), min(down, int(np.ceil(box[3] + top)))
    return x0, y0, max(x0 + 1, x1), max(y0 + 1, y1)


def _over_source(heat: Floats, frame_size: tuple[float, float], source_size: tuple[int, int]) -> Floats:
    """Heatmap of the whole source from that of a centred frame: 0 around a crop, cut from a padded image."""
    across, down = (side / frame for side, frame in zip(source_size, frame_size, strict=True))
    height, width = heat.shape
    whole = np.zeros((max(1, round(height * down)), max(1, round(width * across))), np.float32)
    for_rows, for_columns = _overlap(whole.shape[0], height), _overlap(whole.shape[1], width)
    whole[for_rows[0], for_columns[0]] = heat[for_rows[1], for_columns[1]]
    return whole


def _overlap(outer: int, inner: int) -> tuple[slice, slice]:
    """The parts of two centred sides that overlap, in each side's own coordinates."""
    common = min(outer, inner)
    return (
        slice((outer - common) // 2, (outer - common) // 2 + common),
        slice((inner - common) // 2, (inner - common) // 2 + common),
    )


def _draw(heat: Floats, source_size: tuple[int, int]) -> bytes:
    shrink = HEATMAP_SIDE_PIXELS / max(source_size)
    size = max(1, round(source_size[0] * shrink)), max(1, round(source_size[1] * shrink))
    return encode_png(np.rint(255 * _to_one(stretch(heat, size))).astype(np.uint8))


def _to_one(field: Floats) -> Floats:
    peak = float(field.max())
    scaled: Floats = field / peak if peak > 0 else field
    return scaled


def _blur(field: Floats, share_of_side: float) -> Floats:
    """Gaussian blur with a standard deviation relative to each side; edges are reflected."""
    height, width = field.shape
    blurred = _blur_matrix(height, share_of_side) @ field @ _blur_matrix(width, share_of_side).T
    return np.asarray(blurred, dtype=np.float32)


@lru_cache(maxsize=4)
def _border_weight(height: int, width: int) -> Floats:
    """Weight (height, width), rising from nearly 0 at the border to 1 inside."""
    down, across = ((np.arange(side) + 0.5) / side for side in (height, width))
    to_border = np.minimum(np.minimum(down, 1 - down)[:, np.newaxis], np.minimum(across, 1 - across))
    return np.minimum(to_border / _BORDER, 1).astype(np.float32)


@lru_cache(maxsize=16)
def _blur_matrix(side: int, share_of_side: float) -> Floats:
    """Matrix (side, side) that blurs a column."""
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
