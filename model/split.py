"""Train, valid and test: a folder's own split, or one of whole groups."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.dataset import LabelledImages, load_split
from model.errors import DatasetError
from model.folder import Folder, load_folder
from model.image import ImageSpec

SHARE = 0.1
"""Of each class, to calibrate on, and as much again to test on."""
MOST_OVER = 1.5
"""A group that would bring a class above this times its share is passed over as long as there are others."""


def split(folder: Folder) -> NDArray[np.str_]:
    """(n,) of train, valid and test.

    Raises DatasetError when that leaves a class without images to train on, or nothing to test on.
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
            raise DatasetError(f"Every class must have images of several groups, to train and test on: {few}")
    if not calibrated.any():
        raise DatasetError("There must be images to calibrate on beside those to train and to test on.")
    return names


def load_part(data_dir: Path, name: str, class_names: tuple[str, ...], spec: ImageSpec) -> LabelledImages:
    """The images of one split of a folder, its own or the one that training makes.

    Raises DatasetError when the folder's classes are not `class_names`.
    """
    if (data_dir / name).is_dir():
        return load_split(data_dir, name, class_names, spec)
    folder = load_folder(data_dir, spec)
    if folder.class_names != class_names:
        raise DatasetError(f"{data_dir} must hold the classes {class_names}. Received: {folder.class_names}")
    return folder.data.take(split(folder) == name)


def hold_out(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    free: NDArray[np.bool_],
    seed: int,
    share: float = SHARE,
) -> NDArray[np.bool_]:
    """(n,): about that share of each class, whole groups at random out of the free ones.

    A class always keeps a group that is not held out; one that is too coarse for its share gives its
    smallest.
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
