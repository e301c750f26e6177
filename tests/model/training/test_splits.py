"""Images of one piece stay in one split and one fold, whether a manifest or equal pixels group them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DatasetError
from model.training.splits import assign_folds, find_groups, hold_out, split_randomly

PATHS = ("a/1.png", "a/2.png", "b/1.png", "b/2.png")


def write_manifest(folder: Path, text: str) -> list[Path]:
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return [folder / path for path in PATHS]


def test_without_a_manifest_each_image_is_its_own_group(tmp_path: Path) -> None:
    groups, folds = find_groups(tmp_path, [tmp_path / path for path in PATHS], [])
    assert len(set(groups.tolist())) == 4
    assert folds is None


def test_duplicates_join_groups(tmp_path: Path) -> None:
    groups, _ = find_groups(tmp_path, [tmp_path / path for path in PATHS], [[0, 3]])
    assert groups[0] == groups[3]
    assert len(set(groups.tolist())) == 3


@pytest.mark.parametrize("column", ["path", "kaggle_path"])
def test_manifest_names_groups_and_folds(tmp_path: Path, column: str) -> None:
    rows = "".join(
        f"{path},{group},{fold}\n" for path, group, fold in zip(PATHS, "xxyz", "0014", strict=True)
    )
    groups, folds = find_groups(tmp_path, write_manifest(tmp_path, f"{column},group_id,gfold5\n{rows}"), [])
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 3
    assert folds is not None
    assert folds.tolist() == [0, 0, 1, 4]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("path\na/1.png\n", r"columns group_id\. Missing"),
        ("group_id\n1\n", "columns path and group_id"),
        ("path,group_id\na/1.png,1\na/1.png,2\n", "image once.* line 3, a/1.png"),
        ("path,group_id\na/1.png,\n", "Empty: line 2"),
        ("path,group_id\na/1.png\n", "Empty: line 2"),
        ("path,group_id\na/1.png,1\n", "Missing: a/2.png, b/1.png, b/2.png"),
        ("path,group_id,gfold5\n" + "".join(f"{path},1,7\n" for path in PATHS), r"Received: \['7'\]"),
    ],
)
def test_manifest_that_cannot_be_used_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(DatasetError, match=fault):
        find_groups(tmp_path, write_manifest(tmp_path, text), [])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=5, max_size=80))
def test_no_group_is_ever_divided(images: list[tuple[int, int]]) -> None:
    labels, groups = (np.array(values) for values in zip(*images, strict=True))
    folds = assign_folds(labels, groups)
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in groups)
    assert set(folds.tolist()) <= set(range(5))


def test_classes_are_spread_evenly() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 60, 600)
    labels = groups % 3
    folds = assign_folds(labels, groups)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.min() > 0.6 * counts.mean()


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
    names = split_randomly(labels, groups, "abcd"[: labels.max() + 1])
    for label in range(4):
        for name in ("valid", "test"):
            assert 0.06 < (names[labels == label] == name).mean() < 0.16


def test_large_groups_stay_in_training() -> None:
    """Each class has one group of 50 and some single images, which are held out."""
    labels = np.repeat([0, 1, 2], 58)
    groups = np.concatenate([[100 * c] * 50 + list(range(100 * c + 1, 100 * c + 9)) for c in range(3)])
    names = split_randomly(labels, groups, "abcd"[: labels.max() + 1])
    assert (names[groups % 100 == 0] == "train").all()
    assert set(labels[names == "test"].tolist()) == set(labels[names == "valid"].tolist()) == {0, 1, 2}


def test_three_images_of_a_class_go_to_three_splits() -> None:
    names = split_randomly(np.repeat([0, 1], 3), np.arange(6), "ab")
    for label in range(2):
        assert sorted(names[3 * label : 3 * label + 3].tolist()) == ["test", "train", "valid"]


def test_class_of_one_group_is_named() -> None:
    labels, groups = np.repeat([0, 1], 6), np.array([0, 1, 2, 3, 4, 5] + [9] * 6)
    with pytest.raises(DatasetError, match="Too few: b"):
        split_randomly(labels, groups, "abcd"[: labels.max() + 1])
