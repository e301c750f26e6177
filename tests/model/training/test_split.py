"""A folder without a split gets one of whole groups, with images to train on in every class."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DatasetError
from model.training.dataset import LabelledImages
from model.training.folder import Folder
from model.training.split import hold_out, split


def folder_of(labels: np.ndarray, groups: np.ndarray) -> Folder:
    count = len(labels)
    paths = tuple(Path(str(number)) for number in range(count))
    data = LabelledImages(np.zeros((count, 1, 1, 1), np.uint8), labels, paths)
    names = tuple("abcdefgh"[: int(labels.max()) + 1])
    return Folder(names, data, np.array([""] * count), groups, None, ())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=3, max_size=120))
def test_no_group_is_divided_and_no_class_is_held_out_completely(images: list[tuple[int, int]]) -> None:
    labels, groups = (np.array(values) for values in zip(*images, strict=True))
    held_out = hold_out(labels, groups, np.ones(len(labels), dtype=bool), seed=0)
    assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())
    assert set(labels[~held_out].tolist()) == set(labels.tolist())


def test_share_is_about_a_tenth_of_every_class() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 300, 2000)
    labels = groups % 4
    names = split(folder_of(labels, groups))
    for label in range(4):
        for name in ("valid", "test"):
            assert 0.06 < (names[labels == label] == name).mean() < 0.16


def test_large_groups_stay_in_training() -> None:
    """Each class has one group of 50 and some single images, which are held out."""
    labels = np.repeat([0, 1, 2], 58)
    groups = np.concatenate([[100 * c] * 50 + list(range(100 * c + 1, 100 * c + 9)) for c in range(3)])
    names = split(folder_of(labels, groups))
    assert (names[groups % 100 == 0] == "train").all()
    assert set(labels[names == "test"].tolist()) == set(labels[names == "valid"].tolist()) == {0, 1, 2}


def test_three_images_of_a_class_go_to_three_splits() -> None:
    names = split(folder_of(np.repeat([0, 1], 3), np.arange(6)))
    for label in range(2):
        assert sorted(names[3 * label : 3 * label + 3].tolist()) == ["test", "train", "valid"]


def test_class_of_one_group_is_named() -> None:
    labels, groups = np.repeat([0, 1], 6), np.array([0, 1, 2, 3, 4, 5] + [9] * 6)
    with pytest.raises(DatasetError, match="Too few: b"):
        split(folder_of(labels, groups))
