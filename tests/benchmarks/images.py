"""The images that every server receives, in one order: real ones if NEU_DATA_DIR is set, else drawn ones.

They are sent as the PNG files that they are, as JPEG, or enlarged to what cameras take.
"""

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.image import encode_png
from tests.draw_samples import SEEDS, draw

AS_THEY_ARE = "png"
JPEG = "jpeg"
"""A third of the bytes, so that 4,096 images fit into one body of the default size."""
# Images that no network was trained on.
SPLITS = ("test", "valid")
DRAWN = 144
JPEG_QUALITY = 85  # as steel mills store them
# Camera-size files are few, for a run makes them twice and holds them in several processes.
CAMERA_IMAGES = 12
NOISE = 4.0
"""Standard deviation of a camera's noise, of 255: without it, files would be unusually small."""


class ImageSet(NamedTuple):
    description: str
    files: tuple[bytes, ...]


def load_images(kind: str = AS_THEY_ARE) -> ImageSet:
    """Files of a kind, their classes mixed, the same on every call."""
    images = _load_png()
    if kind == AS_THEY_ARE:
        return images
    files = images.files if kind == JPEG else images.files[:CAMERA_IMAGES]
    return ImageSet(f"{len(files)} of {images.description} as {kind}", tuple(map(_KINDS[kind], files)))


def _load_png() -> ImageSet:
    folder = os.environ.get("NEU_DATA_DIR")
    if not folder:
        return ImageSet(f"{DRAWN} drawn samples", _mixed(_drawn_files()))
    paths = sorted(path for split in SPLITS for path in (Path(folder) / split).rglob("*.png"))
    if not paths:
        raise FileNotFoundError(f"NEU_DATA_DIR must hold PNG images in {' or '.join(SPLITS)}: {folder}")
    return ImageSet(f"{len(paths)} NEU images", _mixed([path.read_bytes() for path in paths]))


def as_jpeg(files: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(map(_as_jpeg, files))


def _as_jpeg(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as image:
        return _encoded(image, "JPEG")


def _encoded(image: Image.Image, file_format: str) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, format=file_format, quality=JPEG_QUALITY)
    return encoded.getvalue()


def _colour_jpeg(size: tuple[int, int], file: bytes) -> bytes:
    """In the warm grey of a lamp."""
    grey = _enlarged(file, size)
    channels = [Image.fromarray((grey * share).astype(np.uint8)) for share in (1.0, 0.97, 0.9)]
    return _encoded(Image.merge("RGB", channels), "JPEG")


def _grey_png(size: tuple[int, int], file: bytes) -> bytes:
    return _encoded(Image.fromarray(_enlarged(file, size).astype(np.uint8)), "PNG")


def _deep_tiff(size: tuple[int, int], file: bytes) -> bytes:
    """16 bits a pixel, not compressed."""
    return _encoded(Image.fromarray((_enlarged(file, size) * 257).astype(np.uint16)), "TIFF")


def _enlarged(file: bytes, size: tuple[int, int]) -> NDArray[np.float32]:
    """Values 0..255 (height, width) with a camera's noise."""
    with Image.open(io.BytesIO(file)) as image:
        smooth = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(seed=0).standard_normal(smooth.shape, np.float32)
    return (smooth + NOISE * noise).clip(0, 255)


_PHOTOGRAPHS = ((400, 300), (800, 600), (1600, 1200), (4000, 3000))
_KINDS: dict[str, Callable[[bytes], bytes]] = {
    JPEG: _as_jpeg,
    **{f"jpeg-{width}x{height}": partial(_colour_jpeg, (width, height)) for width, height in _PHOTOGRAPHS},
    "png-1600x1200": partial(_grey_png, (1600, 1200)),
    "tiff-2048x1536": partial(_deep_tiff, (2048, 1536)),
}
KINDS = (AS_THEY_ARE, *_KINDS)


def _drawn_files() -> list[bytes]:
    names = list(SEEDS)
    return [encode_png(draw(names[i % len(names)], seed=i)) for i in range(DRAWN)]


def _mixed(files: Sequence[bytes]) -> tuple[bytes, ...]:
    order = np.random.default_rng(seed=0).permutation(len(files))
    return tuple(files[i] for i in order)
