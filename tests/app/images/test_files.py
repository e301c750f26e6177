"""Image files that paths on a command line name, and the files that are skipped."""

import os
from pathlib import Path

import pytest

from app.errors import CommandError
from app.images.files import describe_skipped, find_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "B.JPG", "deep/c.tif", "x.heic", "deep/y.HEIC", "z.pdf", "readme", ".hidden.heic"):
        (folder / name).touch()
    return folder


def test_file_that_is_named_twice_counts_once(photos: Path) -> None:
    a = photos / "a.png"
    named = [a, photos, a, photos / "deep" / ".." / "a.png", a.absolute(), Path("photos/*.png")]
    found = find_images(named)
    assert [path.name for path in found] == ["a.png", "B.JPG", "c.tif"]
    assert (
        describe_skipped([photos, photos, photos / "deep"]) == "4 skipped: 2 HEIC, 1 PDF, 1 without a suffix"
    )


def test_what_cannot_be_read_is_counted(photos: Path) -> None:
    (photos / "gone.png").symlink_to("nowhere")
    (photos / "circle.png").symlink_to("circle.png")
    locked = photos / "locked"
    locked.mkdir(mode=0)
    unreadable = 2 + (os.geteuid() != 0)  # root reads every folder
    assert f", {unreadable} unreadable" in describe_skipped([photos]).replace(": ", ", ")


def test_nothing_is_skipped_among_named_files(photos: Path) -> None:
    assert describe_skipped([photos / "a.png", photos / "x.heic"]) == ""


def test_folder_without_images_names_what_it_holds(photos: Path) -> None:
    for image in find_images([photos]):
        image.unlink()
    with pytest.raises(CommandError, match="2 HEIC"):
        find_images([photos])
