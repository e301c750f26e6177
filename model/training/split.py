"""Splits into train, valid and test: a folder's own split, or a random split of whole groups."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DatasetError
from model.image import ImageSpec
from model.training.dataset import LabelledImages, load_split
from model.training.folder import Folder, load_folder

SHARE = 0.1
"""Share of each class for calibration, and the same share again for testing."""
MOST_OVER = 1.5
"""A group that would bring a class above this times its share is skipped while other groups fit."""


def split(folder: Folder) -> NDArray[np.str_]:
    """Name of the split (n,) of each image: train, valid or test.

    Raises DatasetError if a class has no images to train or test on, or there are no images to calibrate on.
    """
    if folder.splits[0]:
        return folder.splits
    labels, groups = folder.data.labels, folder.groups
    tested = hold_out(labels, groups, np.ones(len(labels), dtype=bool), seed=0)
    calibrated = hold_out(labels, groups, ~tested, seed=1)
    names = np.where(tested, "test", np.where(calibrated, "valid", "train"))
    for name in ("train", "test"):
        absent = set(range(len(folder.class_names))) - set(labels[names == name].tolist())
        if absent:
            few = ", ".join(folder.class_names[label] for label in sorted(absent))
            raise DatasetError(
                f"Every class must have images of several groups to train and test on. Too few: {few}"
            )
    if not calibrated.any():
        raise DatasetError("Training needs images to calibrate on, from groups not used to train or test.")
    return names


def load_part(data_dir: Path, name: str, class_names: tuple[str, ...], spec: ImageSpec) -> LabelledImages:
    """Load one split of a folder: its own split, or the one that training makes.

    Raises DatasetError if the folder's classes are not `class_names`.
    """
    if (data_dir / name).is_dir():
        return load_split(data_dir, name, class_names, spec)
    folder = load_folder(data_dir, spec)
    if folder.class_names != class_names:
        raise DatasetError(
            f"{data_dir} must contain the classes {class_names}. Received: {folder.class_names}"
        )
    return folder.data.take(split(folder) == name)


def hold_out(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    free: NDArray[np.bool_],
    seed: int,
    share: float = SHARE,
) -> NDArray[np.bool_]:
    """Select (n,) about `share` of each class at random, in whole groups of the `free` images.

    At least one group of each class is never selected. If all groups of a class are too large for its share,
    its smallest group is selected.
    """
    classes = np.unique(labels)
    wanted = {int(label): max(1.0, share * (labels == label).sum()) for label in classes}
    names = np.unique(groups[free])
    sizes = np.array([(groups[free] == name).sum() for name in names])
    random = np.random.default_rng(seed)
    shuffled = names[random.permutation(len(names))]
    smallest_first = names[np.lexsort((random.random(len(names)), sizes))]
    held_out = np.zeros(len(labels), dtype=bool)
    for order, most in ((shuffled, MOST_OVER), (smallest_first, np.inf)):
        for name in order:
            members = free & (groups == name)
            counts = {
                int(label): int((labels[members] == label).sum()) for label in np.unique(labels[members])
            }
            taken = {label: int((held_out & (labels == label)).sum()) for label in counts}
            if any(taken[label] >= wanted[label] for label in counts):
                continue
            fits = all(
                taken[label] + count <= max(1, most * wanted[label]) for label, count in counts.items()
            )
            if fits and all(_keeps_a_group(label, members, labels, free & ~held_out) for label in counts):
                held_out |= members
    return held_out


def _keeps_a_group(
    label: int, members: NDArray[np.bool_], labels: NDArray[np.int64], left: NDArray[np.bool_]
) -> bool:
    return bool((left & ~members & (labels == label)).any())
