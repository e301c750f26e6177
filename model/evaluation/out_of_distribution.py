"""Out-of-distribution images to measure abstention: blank frames, noise and drawn shapes.

They are generated, so the measurement needs no dataset; photographs can be added from a folder. Training uses
other drawings (`model.training.synthetic_negatives`), so no image that is measured here was trained on.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DatasetError, InputError
from model.image import ImageSpec, decode, to_pixels
from model.image_limits import ImageLimits
from model.training.synthetic_negatives import along

Images = NDArray[np.uint8]
GREYS = (0, 32, 64, 96, 128, 160, 192, 224, 255)
DRAWN = ("blank", "noise", "shapes")
_LIMITS = ImageLimits()


def out_of_distribution_sets(spec: ImageSpec, folders: Sequence[Path]) -> dict[str, Images]:
    """Named sets of images (m, h, w, c), uint8. Raises DatasetError for an empty folder or a name in use."""
    made = dict(zip(DRAWN, (blank(spec), noise(spec), shapes(spec)), strict=True))
    for folder in folders:
        if folder.name in made:
            raise DatasetError(
                f"Folders of out-of-distribution images must have distinct names. Received: {folder.name}"
            )
        made[folder.name] = load(spec, folder)
    return made


def blank(spec: ImageSpec) -> Images:
    """Frames of uniform grey, without and with faint sensor noise."""
    random = np.random.default_rng(0)
    flat = np.stack([np.full(spec.shape, grey, dtype=np.float64) for grey in GREYS])
    return to_pixels(np.concatenate([flat, flat + random.normal(0, 1, flat.shape)]))


def noise(spec: ImageSpec) -> Images:
    """Uniform noise, and normal noise of several standard deviations around mid-grey."""
    random = np.random.default_rng(1)
    uniform = random.uniform(0, 255, (8, *spec.shape))
    normal = [128 + random.normal(0, deviation, (8, *spec.shape)) for deviation in (5, 20, 60)]
    return to_pixels(np.concatenate([uniform, *normal]))


def shapes(spec: ImageSpec) -> Images:
    """Smooth gradients, gratings and discs: synthetic images with structure."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[0 : spec.height, 0 : spec.width]
    pictures = []
    for _ in range(12):
        angle, length = random.uniform(0, np.pi), random.uniform(4, 80)
        place = along(spec.height, spec.width, angle)
        pictures.append(np.interp(place, (place.min(), place.max()), random.permutation([20.0, 235.0])))
        pictures.append(128 + 100 * np.sign(np.sin(2 * np.pi * place / length)))
        centre_y, centre_x = random.uniform(0.2, 0.8, 2) * (spec.height, spec.width)
        radius = random.uniform(0.05, 0.4) * min(spec.height, spec.width)
        disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        pictures.append(np.where(disc, *random.permutation([40.0, 215.0])))
    grey = np.stack(pictures)[..., np.newaxis]
    return to_pixels(np.broadcast_to(grey, (*grey.shape[:3], spec.channels)))


def load(spec: ImageSpec, folder: Path) -> Images:
    """Decode every image below a folder; other files are skipped."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as threads:
        pictures = [
            picture for picture in threads.map(lambda p: _decode(p, spec), paths) if picture is not None
        ]
    if not pictures:
        raise DatasetError(
            f"A folder of out-of-distribution images must contain images. Received: none in {folder}"
        )
    return np.stack(pictures)


def _decode(path: Path, spec: ImageSpec) -> Images | None:
    try:
        return decode(path.read_bytes(), spec, _LIMITS)
    except InputError:
        return None
