"""The images that every server receives, in one order: real ones if NEU_DATA_DIR is set, else drawn ones."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from model.image import encode_png
from tests.draw_samples import SEEDS, draw

# Images that no network was trained on.
SPLITS = ("test", "valid")
DRAWN = 144
JPEG_QUALITY = 85  # as mills store them


class ImageSet(NamedTuple):
    description: str
    files: tuple[bytes, ...]


def load_images() -> ImageSet:
    """PNG files, their classes mixed, the same on every call."""
    folder = os.environ.get("NEU_DATA_DIR")
    if not folder:
        return ImageSet(f"{DRAWN} drawn samples", _mixed(_drawn_files()))
    paths = sorted(path for split in SPLITS for path in (Path(folder) / split).rglob("*.png"))
    if not paths:
        raise FileNotFoundError(f"NEU_DATA_DIR must hold PNG images in {' or '.join(SPLITS)}: {folder}")
    return ImageSet(f"{len(paths)} NEU images", _mixed([path.read_bytes() for path in paths]))


def as_jpeg(files: Sequence[bytes]) -> tuple[bytes, ...]:
    """A third of the bytes, so that 4,096 images fit into one body of the default size."""
    return tuple(map(_as_jpeg, files))


def _as_jpeg(file: bytes) -> bytes:
    encoded = io.BytesIO()
    with Image.open(io.BytesIO(file)) as image:
        image.save(encoded, format="JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def _drawn_files() -> list[bytes]:
    names = list(SEEDS)
    return [encode_png(draw(names[i % len(names)], seed=i)) for i in range(DRAWN)]


def _mixed(files: Sequence[bytes]) -> tuple[bytes, ...]:
    order = np.random.default_rng(seed=0).permutation(len(files))
    return tuple(files[i] for i in order)
