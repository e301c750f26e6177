"""One split of a folder is read completely and in order, or the error names the fault."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.errors import DatasetError
from model.image import ImageSpec, decode, encode_png
from model.image_limits import ImageLimits
from model.training.folder import load_folder, load_part
from tests.model.pictures import encode_array, noise

SPEC = ImageSpec(height=4, width=5, channels=1)
CLASSES = ("Abrasion", "Zinc", "dent")  # sorted by code point, upper case first


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two images per class and split; each is of one grey, 50 times its class plus its number."""
    for split in ("train", "valid", "test"):
        for label, class_name in reversed(list(enumerate(CLASSES))):
            folder = tmp_path / split / class_name
            folder.mkdir(parents=True)
            for number in (1, 0):
                grey = np.full((8, 10), 50 * label + number, dtype=np.uint8)
                (folder / f"{number}.png").write_bytes(encode_png(grey))
    return tmp_path


def test_classes_are_the_sorted_folders(data_dir: Path) -> None:
    (data_dir / "train" / "readme.txt").write_text("not a class")
    assert load_folder(data_dir, SPEC).class_names == CLASSES


def test_split_is_loaded_in_order(data_dir: Path) -> None:
    data = load_part(data_dir, "valid", CLASSES, SPEC)
    assert len(data) == 6
    assert data.images.shape == (6, *SPEC.shape)
    assert data.images.dtype == np.uint8
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 50, 51, 100, 101]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.dtype == np.int64
    assert [path.relative_to(data_dir).as_posix() for path in data.paths][:3] == [
        "valid/Abrasion/0.png",
        "valid/Abrasion/1.png",
        "valid/Zinc/0.png",
    ]


def test_labels_follow_the_order_of_the_class_names(data_dir: Path) -> None:
    data = load_part(data_dir, "valid", CLASSES[::-1], SPEC)
    assert data.images[:, 0, 0, 0].tolist() == [100, 101, 50, 51, 0, 1]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("has_parts", [True, False])
def test_folders_are_found_by_the_names_of_the_classes(data_dir: Path, *, has_parts: bool) -> None:
    """In any order and case, with `_` for a slash, which no folder's name has."""
    names = ("DENT", "zinc/tin", "Abrasion")
    for part in ("train", "valid", "test"):
        (data_dir / part / "Zinc").rename(data_dir / part / "Zinc_Tin")
    if not has_parts:
        for folder in (data_dir / "train").iterdir():
            folder.rename(data_dir / folder.name)
            for number in range(10):
                grey = np.full((8, 10), 50 * CLASSES.index(folder.name.partition("_")[0]) + number, np.uint8)
                (data_dir / folder.name / f"{number}.png").write_bytes(encode_png(grey))
        for part in ("train", "valid", "test"):
            shutil.rmtree(data_dir / part)
    data = load_part(data_dir, "test", names, SPEC)
    greys = data.images[:, 0, 0, 0] // 50
    assert sorted(set(data.labels.tolist())) == [0, 1, 2]
    assert data.labels.tolist() == (2 - greys).tolist()


@pytest.mark.parametrize("names", [("Abrasion", "Zinc", "Zinc_"), ("Abrasion", "zinc", "ZINC")])
def test_folder_is_not_two_classes(data_dir: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match="must contain"):
        load_part(data_dir, "test", names, SPEC)


def test_images_of_any_supported_format_are_read_as_the_service_reads_them(data_dir: Path) -> None:
    picture = encode_array(noise(20, 30), "BMP")
    (data_dir / "test" / "Zinc" / "2.bmp").write_bytes(picture)
    data = load_part(data_dir, "test", CLASSES, SPEC)
    assert np.array_equal(data.images[4], decode(picture, SPEC, ImageLimits()))


def test_missing_split_is_named(data_dir: Path) -> None:
    (data_dir / "valid").rename(data_dir / "validation")
    with pytest.raises(DatasetError, match=r"train, valid, test\. Missing: .*/valid$"):
        load_part(data_dir, "valid", CLASSES, SPEC)


def test_missing_class_is_named(data_dir: Path) -> None:
    (data_dir / "test" / "Zinc").rename(data_dir / "Zinc")
    with pytest.raises(DatasetError, match=r"/test must contain .*'Zinc'.*Received: \('Abrasion', 'dent'\)"):
        load_part(data_dir, "test", CLASSES, SPEC)


def test_unknown_class_is_named(data_dir: Path) -> None:
    (data_dir / "test" / "rust").mkdir()
    with pytest.raises(DatasetError, match=r"/test must contain .*Received: .*'rust'"):
        load_part(data_dir, "test", CLASSES, SPEC)


def test_empty_class_is_named(data_dir: Path) -> None:
    for path in (data_dir / "train" / "dent").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"dent in train: 0$"):
        load_part(data_dir, "train", CLASSES, SPEC)


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"", "have content"), (b"text", "be BMP"), (encode_png(noise(9, 9))[:60], "decode completely")],
    ids=["empty", "text", "truncated"],
)
def test_image_that_does_not_decode_is_named(data_dir: Path, content: bytes, fault: str) -> None:
    (data_dir / "train" / "Zinc" / "broken.png").write_bytes(content)
    with pytest.raises(DatasetError, match=rf"/train/Zinc/broken\.png: An image must {fault}"):
        load_part(data_dir, "train", CLASSES, SPEC)


def test_real_folder_has_six_classes_of_twelve_test_images(neu_dir: Path) -> None:
    class_names = ("Crazing", "Inclusion", "Patches", "Pitted", "Rolled", "Scratches")
    data = load_part(neu_dir, "test", class_names, ImageSpec(height=200, width=200, channels=1))
    assert np.bincount(data.labels).tolist() == [12] * 6


def test_real_image_is_the_same_as_png_and_as_bmp(neu_dir: Path) -> None:
    spec = ImageSpec(height=200, width=200, channels=3)
    png = next((neu_dir / "test" / "Patches").iterdir()).read_bytes()
    pixels = decode(png, spec, ImageLimits())
    assert len(np.unique(pixels)) > 20
    assert np.array_equal(decode(encode_array(pixels, "BMP"), spec, ImageLimits()), pixels)
    assert np.array_equal(decode(encode_array(pixels[..., 0], "BMP"), spec, ImageLimits()), pixels)
