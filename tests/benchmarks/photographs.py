"""Make a folder of photographs to measure abstention on: python -m tests.benchmarks.photographs DIR.

They come from Debian's wallpaper packages and from the sample pictures of scikit-image and scikit-learn,
which anybody can fetch. Of each picture the whole and two random crops are kept, as grey 200 x 200 PNG. Give
the folder to `ext-classify crossvalidate` or `evaluate` with --out-of-distribution. Needs apt-get and
dpkg.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

DEBIAN = (
    "gnome-backgrounds",
    "lxqt-themes",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
)
PYPI = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SIDE = 200
LEAST_DEVIATION = 3.0
"""Flatter crops are blank frames, which are measured apart."""


def fetch(folder: Path) -> list[Path]:
    """Download and unpack; the pictures among what was unpacked."""
    for package in DEBIAN:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)  # noqa: S607
    for deb in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", deb.name, "unpacked"], cwd=folder, check=True)  # noqa: S607
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *PYPI]
    subprocess.run(download, cwd=folder, check=True)
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")
    pictures = (folder / "unpacked").rglob("*")
    return sorted(p for p in pictures if p.suffix.lower() in SUFFIXES and p.is_file() and not p.is_symlink())


def views(picture: Image.Image, random: np.random.Generator) -> Iterator[Image.Image]:
    """The whole picture and two crops, 200 x 200."""
    width, height = picture.size
    side = min(width, height)
    yield picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    for _ in range(2):
        crop = max(SIDE, int(side * random.uniform(0.15, 0.6)))
        left, top = random.integers(0, width - crop + 1), random.integers(0, height - crop + 1)
        box = (left, top, left + crop, top + crop)
        yield picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    target.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    kept = 0
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as folder:
        for path in fetch(Path(folder)):
            picture = Image.open(path).convert("L")
            if min(picture.size) < SIDE:
                continue
            for view in views(picture, random):
                if np.asarray(view).std() > LEAST_DEVIATION:
                    view.save(target / f"{kept:04d}.png")
                    kept += 1
    print(f"{kept} pictures in {target}")


if __name__ == "__main__":
    main()
