"""Agreement of the evidence with the boxes that annotators drew around defects.

The pointing game (J. Zhang et al., Top-Down Neural Attention by Excitation Backprop, ECCV 2016) counts a hit
if the strongest position lies in a box of the image's class. The overlap is the intersection over union of
the evidence's box with the bounding box of all boxes of the class, or with the best single box, whichever is
higher.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DatasetError
from model.evidence import Box, box_around, heat_of
from model.training.folder import LabelledImages
from model.training.splits import read_csv

BOXES = "boxes.csv"
_COLUMNS = ("path", "label", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Localisation:
    """Results for the `images` images that have boxes of their class."""

    images: int
    pointing_accuracy: float
    median_overlap: float


def read_boxes(data_dir: Path, class_names: Sequence[str]) -> dict[str, list[tuple[int, Box]]]:
    """Boxes with the index of their class, by path below the folder; empty without a boxes.csv.

    A label belongs to the class whose name it starts with, ignoring case: `pitted_surface` to Pitted.
    """
    file_path = data_dir / BOXES
    if not file_path.is_file():
        return {}
    boxes: dict[str, list[tuple[int, Box]]] = defaultdict(list)
    for line, row in enumerate(read_csv(file_path, _COLUMNS), start=2):
        number = _class_of(row["label"], class_names)
        if number is not None:
            boxes[row["path"]].append((number, _box_of(row, f"{file_path}, line {line}")))
    return dict(boxes)


def judge(
    data: LabelledImages,
    features: NDArray[np.float32],
    class_weights: NDArray[np.float32],
    boxes: Sequence[Sequence[Box]],
) -> Localisation | None:
    """Measure evidence of features (n, gh, gw, d) and weights (d, k) against each image's boxes of its class.

    Boxes are in pixels of the network's input. Images without a box are skipped; None if no image has one.
    """
    hits, overlaps = [], []
    for image, label in enumerate(data.labels):
        if not boxes[image]:
            continue
        heat = heat_of(data.images[image], features[image], class_weights[:, label])
        hits.append(_points_into(heat, boxes[image]))
        height, width = heat.shape
        found = box_around(heat, (width, height))
        overlaps.append(max(overlap(found, target) for target in [*boxes[image], _around(boxes[image])]))
    if not hits:
        return None
    return Localisation(len(hits), float(np.mean(hits)), float(np.median(overlaps)))


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (_area(a) + _area(b) - shared)


def _class_of(label: str, class_names: Sequence[str]) -> int | None:
    """Index of the class whose name the label starts with (the longest such name), or None."""
    found = [name for name in class_names if label.lower().startswith(name.lower())]
    return class_names.index(max(found, key=len)) if found else None


def _box_of(row: dict[str, str], place: str) -> Box:
    try:
        x0, y0, x1, y1 = (round(float(row[column])) for column in _COLUMNS[2:])
    except ValueError:
        raise DatasetError(f"A box must have four numbers. Received: other values in {place}") from None
    if x0 >= x1 or y0 >= y1:
        raise DatasetError(f"A box must have an area. Received: {x0}, {y0}, {x1}, {y1} in {place}")
    return x0, y0, x1, y1


def _points_into(heat: NDArray[np.float32], boxes: Sequence[Box]) -> bool:
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return any(x0 <= column < x1 and y0 <= row < y1 for x0, y0, x1, y1 in boxes)


def _around(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
