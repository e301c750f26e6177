"""Images of one piece stay in one fold, whether a manifest or equal pixels group them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DatasetError
from model.training.groups import assign_folds, find_groups

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
    folds = assign_folds(labels, groups, 5)
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in groups)
    assert set(folds.tolist()) <= set(range(5))


def test_classes_are_spread_evenly() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 60, 600)
    labels = groups % 3
    folds = assign_folds(labels, groups, 5)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.min() > 0.6 * counts.mean()
