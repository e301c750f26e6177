"""python -m tests.trials.shipped_networks DIR: the shipped networks on the test images of NEU's own split.

DIR is the labelled folder, with a manifest.csv and a boxes.csv. Prints the accuracy of each network on all
test images, on those whose group is in the train split too, and on the others; and whether the default
network's evidence agrees with the boxes that annotators drew.

The pointing game (J. Zhang et al., Top-Down Neural Attention by Excitation Backprop, ECCV 2016) counts a hit
if the strongest position lies in a box of the image's class. The overlap is the intersection over union of
the evidence's box with the bounding box of all boxes of the class, or with the best single box, whichever is
higher.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.artifact import Artifact, load_artifact
from model.defaults import DEFAULT_MODEL_PATH, SHIPPED_MODELS, user_cache_dir
from model.engines import Classifier, open_classifier
from model.errors import DatasetError
from model.evidence import Box, against_the_others, box_around, heat_of
from model.image import ImageSpec
from model.training.folder import LabelledImages, load_folder, load_part
from model.training.metrics import wilson_interval
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


def _scaled(box: Box, path: Path, spec: ImageSpec) -> Box:
    """From pixels of a file to pixels of the network's input."""
    with Image.open(path) as image:
        across, down = spec.width / image.width, spec.height / image.height
    x0, y0, x1, y1 = box
    return round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)


def print_accuracy(data_dir: Path) -> None:
    for name, path in SHIPPED_MODELS.items():
        artifact = load_artifact(path)
        folder = load_folder(data_dir, artifact.card.image)
        test = folder.splits == "test"
        leaked = np.isin(folder.groups[test], folder.groups[folder.splits == "train"])
        predicted = open_engine(artifact).predict(folder.data.images[test]).argmax(axis=1)
        right = predicted == folder.data.labels[test]
        shares = (_share(part) for part in (right, right[leaked], right[~leaked]))
        print(f"{name}, all, group trained on, group unseen: {'; '.join(shares)}")


def _share(right: NDArray[np.bool_]) -> str:
    low, high = wilson_interval(int(right.sum()), len(right))
    return f"{right.mean():.1%} of {len(right)} ({low:.1%} to {high:.1%})"


def print_localisation(data_dir: Path) -> None:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    card = artifact.card
    assert card.class_weights is not None
    data = load_part(data_dir, "test", card.class_names, card.image)
    names = [path.relative_to(data_dir).as_posix() for path in data.paths]
    by_name = read_boxes(data_dir, card.class_names)
    boxes = [
        [_scaled(box, path, card.image) for number, box in by_name.get(name, ()) if number == label]
        for name, path, label in zip(names, data.paths, data.labels, strict=True)
    ]
    features = open_engine(artifact).answer(data.images, with_features=True).features
    assert features is not None
    found = judge(data, features, against_the_others(card.class_weights.to_array()), boxes)
    assert found is not None
    print(f"strongest evidence in a box: {found.pointing_accuracy:.1%} of {found.images}")
    print(f"median overlap of boxes: {found.median_overlap:.2f}")


def open_engine(artifact: Artifact) -> Classifier:
    return open_classifier(artifact, "litert", 1, user_cache_dir())


if __name__ == "__main__":
    print_accuracy(Path(sys.argv[1]))
    print_localisation(Path(sys.argv[1]))
