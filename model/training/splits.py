"""Groups of images that show the same piece, such as crops of one strip, and splits of whole groups.

A folder states its groups in `manifest.csv`, one line per image: in the column `path` (or `kaggle_path`, as
in the published manifest of the NEU images) the path below the folder, in `group_id` the number or name of
the group and, optionally, in `gfold5` the number of the fold, 0 to 4. Without a manifest, only images with
identical pixels form a group.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.arrays import Ints, Mask, Strings
from model.errors import DatasetError

MANIFEST = "manifest.csv"
FOLDS = 5
SHARE = 0.1
"""Share of each class for calibration, and the same share again for testing."""
MOST_OVER = 1.5
"""A group that would bring a class above this times its share is skipped while other groups fit."""
_PATH_COLUMNS = ("path", "kaggle_path")


def find_groups(
    data_dir: Path, paths: Sequence[Path], copies: Sequence[Sequence[int]]
) -> tuple[Ints, Ints | None]:
    """Group (n,) of each image, and its fold (n,) if the manifest states one, else None.

    Raises DatasetError if the manifest cannot be used or lacks images.
    """
    manifest = data_dir / MANIFEST
    if not manifest.is_file():
        return _join_copies(np.arange(len(paths), dtype=np.int64), copies), None
    rows = _read_manifest(manifest)
    names = [path.relative_to(data_dir).as_posix() for path in paths]
    missing = [name for name in names if name not in rows]
    if missing:
        raise DatasetError(f"{manifest} must have a line for every image. Missing: {', '.join(missing[:5])}")
    group_names = [rows[name]["group_id"] for name in names]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(group_names))}
    groups = np.array([numbers[name] for name in group_names], dtype=np.int64)
    return _join_copies(groups, copies), _folds_of([rows[name] for name in names], manifest)


def split_randomly(labels: Ints, groups: Ints, class_names: Sequence[str]) -> Strings:
    """Name of the split (n,) of each image: train, valid or test.

    Raises DatasetError if a class has no images to train or test on, or there are no images to calibrate on.
    """
    tested = hold_out(labels, groups, np.ones(len(labels), dtype=bool), seed=0)
    calibrated = hold_out(labels, groups, ~tested, seed=1)
    names = np.where(tested, "test", np.where(calibrated, "valid", "train"))
    for name in ("train", "test"):
        absent = set(range(len(class_names))) - set(labels[names == name].tolist())
        if absent:
            few = ", ".join(class_names[label] for label in sorted(absent))
            raise DatasetError(
                f"Every class must have images of several groups to train and test on. Too few: {few}"
            )
    if not calibrated.any():
        raise DatasetError("Training needs images to calibrate on, from groups not used to train or test.")
    return names


def hold_out(labels: Ints, groups: Ints, free: Mask, seed: int, share: float = SHARE) -> Mask:
    """Select (n,) about `share` of each class at random, in whole groups of the `free` images.

    At least one group of each class is never selected. If all groups of a class are too large for its share,
    its smallest group is selected.
    """
    one_hot = np.eye(int(labels.max()) + 1, dtype=np.int64)[labels]
    wanted = np.maximum(1.0, share * one_hot.sum(axis=0))
    names = np.unique(groups[free])
    sizes = np.array([(groups[free] == name).sum() for name in names])
    random = np.random.default_rng(seed)
    shuffled = names[random.permutation(len(names))]
    smallest_first = names[np.lexsort((random.random(len(names)), sizes))]
    held_out = np.zeros(len(labels), dtype=bool)
    for order, most in ((shuffled, MOST_OVER), (smallest_first, np.inf)):
        for name in order:
            members = free & (groups == name)
            counts, taken = one_hot[members].sum(axis=0), one_hot[held_out].sum(axis=0)
            others = one_hot[free & ~held_out & ~members].sum(axis=0)
            fits = (taken < wanted) & (taken + counts <= np.maximum(1, most * wanted)) & (others > 0)
            if fits[counts > 0].all():
                held_out |= members
    return held_out


def assign_folds(labels: Ints, groups: Ints) -> Ints:
    """Fold (n,), 0 to FOLDS - 1, of each image: groups stay whole, and classes are spread evenly.

    Assigns the largest groups first, each to the fold in which its classes are rarest.
    """
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    names, index = np.unique(groups, return_inverse=True)
    contents = np.zeros((len(names), one_hot.shape[1]))
    np.add.at(contents, index, one_hot)
    share = contents / np.maximum(one_hot.sum(axis=0), 1)
    random = np.random.default_rng(0)
    order = np.lexsort((random.random(len(names)), -share.max(axis=1)))
    filled = np.zeros((FOLDS, one_hot.shape[1]))
    chosen = np.zeros(len(names), dtype=np.int64)
    for group in order:
        load = (filled * share[group]).sum(axis=1)
        chosen[group] = np.lexsort((filled.sum(axis=1), load))[0]
        filled[chosen[group]] += share[group]
    return np.asarray(chosen[index])


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; missing cells are empty strings. Raises DatasetError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            found = [{name: cell.strip() for name, cell in row.items() if name} for row in reader]
            missing = set(columns) - set(reader.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} must be a CSV file in UTF-8: {error}") from None
    if missing:
        raise DatasetError(f"{path} must have the columns {', '.join(columns)}. Missing: {sorted(missing)}")
    return found


def _read_manifest(manifest: Path) -> dict[str, dict[str, str]]:
    rows = read_csv(manifest, ("group_id",))
    path_column = next((column for column in _PATH_COLUMNS if rows and column in rows[0]), None)
    if path_column is None:
        raise DatasetError(f"{manifest} must have the columns path and group_id, and a line for every image.")
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        if not row["group_id"]:
            raise DatasetError(f"{manifest} must name a group in every line. Empty: line {number}")
        if row[path_column] in found:
            raise DatasetError(
                f"{manifest} must list each image once. Repeated: line {number}, {row[path_column]}"
            )
        found[row[path_column]] = row
    return found


def _folds_of(rows: Sequence[dict[str, str]], manifest: Path) -> Ints | None:
    if "gfold5" not in rows[0]:
        return None
    given = [row["gfold5"] for row in rows]
    invalid = sorted(set(given) - {str(fold) for fold in range(FOLDS)})
    if invalid:
        raise DatasetError(f"{manifest} must name folds 0 to {FOLDS - 1} in gfold5. Received: {invalid[:5]}")
    return np.array(given, dtype=np.int64)


def _join_copies(groups: Ints, copies: Sequence[Sequence[int]]) -> Ints:
    for same in copies:
        members = groups[list(same)]
        groups = np.where(np.isin(groups, members), members.min(), groups)
    return groups
