"""A folder of class folders is read, and its faults are reported before training starts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DatasetError
from model.image import ImageSpec, encode_png
from model.training.folder import choose_channels, load_folder
from tests.model.pictures import encode_array

SPEC = ImageSpec(height=16, width=16, channels=1)


def fill(folder: Path, class_name: str, count: int, seed: int = 0, channels: int = 1) -> None:
    random = np.random.default_rng((seed, len(class_name), ord(class_name[0])))
    (folder / class_name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shape = (int(random.integers(10, 60)), int(random.integers(10, 60)), channels)
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        (folder / class_name / f"{seed}-{number}.png").write_bytes(encode_png(pixels))


def test_unsplit_folder_of_any_sizes_and_formats_is_read(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 7)
    picture = np.random.default_rng(9).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    (tmp_path / "good" / "deep").mkdir()
    (tmp_path / "good" / "deep" / "a.bmp").write_bytes(encode_array(picture, "BMP"))
    (tmp_path / "good" / ".DS_Store").write_bytes(b"not an image, but hidden")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.txt").write_text("no class")
    folder = load_folder(tmp_path, SPEC)
    assert folder.class_names == ("bad", "good")
    assert np.bincount(folder.data.labels).tolist() == [7, 5]
    assert folder.data.images.shape == (12, 16, 16, 1)
    assert not any(folder.splits)
    assert "bad: 7" in folder.warnings[0]


def test_split_folder_keeps_its_split_and_warns_of_leaks(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
        for class_name in ("bad", "good"):
            fill(tmp_path / split, class_name, 3, seed)
    leaked = (tmp_path / "train" / "bad" / "0-1.png").read_bytes()
    (tmp_path / "test" / "bad" / "copy.png").write_bytes(leaked)
    folder = load_folder(tmp_path, SPEC)
    assert {name: int((folder.splits == name).sum()) for name in ("train", "valid", "test")} == {
        "train": 6,
        "valid": 6,
        "test": 7,
    }
    assert folder.warnings[0].startswith("1 of 7 test images belong to a group")
    assert folder.warnings[1].endswith("keep one of each:\n  train/bad/0-1.png = test/bad/copy.png")


def test_lookalikes_are_named_unless_they_are_in_one_group(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 4)
    with Image.open(tmp_path / "bad" / "0-2.png") as picture:
        picture.save(tmp_path / "bad" / "again.jpg", quality=95)
    found = [warning for warning in load_folder(tmp_path, SPEC).warnings if "look alike" in warning]
    assert [warning.splitlines()[1:] for warning in found] == [["  bad/0-2.png = bad/again.jpg"]]

    lines = [f"{path.relative_to(tmp_path).as_posix()},{path.stem}" for path in tmp_path.rglob("*.*g")]
    manifest = "\n".join(["path,group_id", *lines]).replace("again.jpg,again", "again.jpg,0-2")
    (tmp_path / "manifest.csv").write_text(manifest + "\n")
    assert not any("look alike" in warning for warning in load_folder(tmp_path, SPEC).warnings)


def test_every_unreadable_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 4)
    (tmp_path / "bad" / "page.JPG").write_text("<html>no image</html>")
    (tmp_path / "good" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DatasetError, match="repair or remove") as refused:
        load_folder(tmp_path, SPEC)
    assert "bad/page.JPG" in str(refused.value)
    assert "good/cut.png" in str(refused.value)


def test_many_faults_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 4)
    for number in range(25):
        (tmp_path / "bad" / f"{number}.png").write_text("no image")
    with pytest.raises(DatasetError, match="and 15 more"):
        load_folder(tmp_path, SPEC)


def test_other_files_are_skipped_with_a_note(tmp_path: Path) -> None:
    for class_name in ("good", "bad"):
        fill(tmp_path, class_name, 3)
        (tmp_path / class_name / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
    (tmp_path / "bad" / "notes.txt").write_text("scanned on Monday")
    (tmp_path / "bad" / "Icon\r").write_bytes(b"")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "bad" / "0-2.png").rename(tmp_path / "bad" / "no suffix")
    folder = load_folder(tmp_path, SPEC)
    assert folder.class_names == ("bad", "good")
    assert len(folder.data) == 6
    rule, *named = folder.warnings[0].splitlines()
    assert rule.startswith("Skipped 4 files")
    assert {name.strip() for name in named} == {"Icon", "Thumbs.db (2 times)", "notes.txt"}


def test_skipped_files_do_not_count_as_images(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "rare", 2)
    (tmp_path / "rare" / "Thumbs.db").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"\n  rare: 2$"):
        load_folder(tmp_path, SPEC)


def test_small_class_is_named_with_its_size(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "rare", 2)
    with pytest.raises(DatasetError, match=r"at least 3 images.*\n  rare: 2$"):
        load_folder(tmp_path, SPEC)


def test_class_missing_from_a_split_is_named(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
        for class_name in ("bad", "good"):
            fill(tmp_path / split, class_name, 3, seed)
    fill(tmp_path / "train", "rare", 3)
    with pytest.raises(DatasetError, match="rare in test: 0"):
        load_folder(tmp_path, SPEC)


def test_one_picture_in_two_classes_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 4)
    (tmp_path / "good" / "same.png").write_bytes((tmp_path / "bad" / "0-0.png").read_bytes())
    with pytest.raises(DatasetError, match="must be in one class") as refused:
        load_folder(tmp_path, SPEC)
    assert "bad/0-0.png" in str(refused.value)
    assert "good/same.png" in str(refused.value)


def test_class_folders_without_any_images_are_named(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=r"\n  bad: 0\n  good: 0"):
        load_folder(tmp_path, SPEC)


def test_class_folder_without_images_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "good", 4)
    fill(tmp_path, "bad", 4)
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match=r"\n  none: 0"):
        load_folder(tmp_path, SPEC)


@pytest.mark.parametrize("classes", [(), ("only",)])
def test_folder_of_fewer_than_two_classes_is_refused(tmp_path: Path, classes: tuple[str, ...]) -> None:
    for name in classes:
        fill(tmp_path, name, 3)
    with pytest.raises(DatasetError, match="2 to 1000 classes"):
        load_folder(tmp_path, SPEC)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Missing"):
        load_folder(tmp_path / "none", SPEC)


@pytest.mark.parametrize(("channels", "chosen"), [(1, 1), (3, 3)])
def test_coloured_images_have_three_channels(tmp_path: Path, channels: int, chosen: int) -> None:
    fill(tmp_path, "a", 3, channels=channels)
    fill(tmp_path, "b", 3, channels=channels)
    assert choose_channels(tmp_path) == chosen
