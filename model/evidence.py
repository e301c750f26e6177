"""Where in an image the network saw its class: class-activation maps, boxes and heatmaps.

Source: B. Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016. A network that
ends in global average pooling and one dense layer scores a class by the mean, over all places, of its
features there times the class's weights: the summands of that mean are the evidence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.image import encode_png, stretch

HEATMAP_SIDE_PIXELS = 96
"""The longer side of a heatmap; it is to be laid over the whole image."""
BOX_LEVEL = 0.5
"""The box holds the connected places, around the strongest, of at least this share of its activation."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Evidence:
    """Where one class was seen in one image."""

    box: Box
    """x0, y0, x1, y1 in pixels of the upright source image, x1 and y1 exclusive."""
    heatmap_png: bytes
    """A grey PNG of the source's proportions, 255 where the evidence is strongest."""


def find_evidence(
    features: NDArray[np.float32], class_weights: NDArray[np.float32], source_size: tuple[int, int]
) -> Evidence:
    """Evidence for one class, from features (gh, gw, d) and its weights (d,), in a (width, height) image."""
    heat = heat_of(features, class_weights)
    width, height = source_size
    shrink = HEATMAP_SIDE_PIXELS / max(width, height)
    heatmap_size = max(1, round(width * shrink)), max(1, round(height * shrink))
    fine = stretch(heat, heatmap_size)
    return Evidence(
        box=_scale_box(box_around_peak(fine), heatmap_size, source_size),
        heatmap_png=encode_png(np.rint(255 * fine).astype(np.uint8)),
    )


def heat_of(features: NDArray[np.float32], class_weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positive class activation (gh, gw), scaled to 0..1; all 0 where nothing speaks for the class."""
    activation = np.maximum(features @ class_weights, 0.0)
    peak = float(activation.max())
    heat: NDArray[np.float32] = activation / peak if peak > 0 else activation
    return heat


def box_around_peak(heat: NDArray[np.float32]) -> Box:
    """The box, in places of the grid, of the strong region that holds the strongest place."""
    strong = heat >= BOX_LEVEL * heat.max()
    region = _connected(strong, np.unravel_index(int(heat.argmax()), heat.shape))
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _connected(strong: NDArray[np.bool_], start: tuple[np.intp, ...]) -> NDArray[np.bool_]:
    """The places of `strong` that are reached from `start` by steps to a side or up and down."""
    region = np.zeros_like(strong)
    region[start] = True
    while True:
        grown = region.copy()
        grown[1:] |= region[:-1]
        grown[:-1] |= region[1:]
        grown[:, 1:] |= region[:, :-1]
        grown[:, :-1] |= region[:, 1:]
        grown &= strong
        if np.array_equal(grown, region):
            return region
        region = grown


def _scale_box(box: Box, from_size: tuple[int, int], to_size: tuple[int, int]) -> Box:
    across, down = to_size[0] / from_size[0], to_size[1] / from_size[1]
    x0, y0, x1, y1 = box
    return (
        int(x0 * across),
        int(y0 * down),
        min(to_size[0], int(np.ceil(x1 * across))),
        min(to_size[1], int(np.ceil(y1 * down))),
    )
