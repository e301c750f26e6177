"""Images to measure a network on besides its own: corrupted ones, and ones out of distribution.

Corruptions have fixed severities. Images out of distribution, to measure abstention, are blank frames, noise
and drawn shapes, so that the measurement needs no dataset; a folder may add photographs. Training uses other
drawings (`model.training.augmentation`), so no image that is measured here was trained on.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from model.arrays import Pixels
from model.contact_sheet import TrialImages
from model.errors import DatasetError
from model.image import ImageSpec, to_pixels
from model.training.augmentation import along, blur, compress, project

GREYS = (0, 32, 64, 96, 128, 160, 192, 224, 255)
DRAWN = ("blank", "noise", "shapes")
MOST_IMAGES = 100_000
"""Of a folder: all that memory holds."""


def out_of_distribution_sets(spec: ImageSpec, folders: Sequence[Path]) -> dict[str, Pixels]:
    """Named sets of images (m, h, w, c), uint8. Raises DatasetError for an empty folder or a name in use."""
    made = dict(zip(DRAWN, (blank(spec), noise(spec), shapes(spec)), strict=True))
    for folder in folders:
        if folder.name in made:
            raise DatasetError(
                f"Folders of out-of-distribution images must have distinct names. Received: {folder.name}"
            )
        images = TrialImages.of(folder, (), "--out-of-distribution", most=MOST_IMAGES)
        made[folder.name], _ = images.decode(spec)
    return made


def blank(spec: ImageSpec) -> Pixels:
    """Frames of uniform grey, without and with faint sensor noise."""
    random = np.random.default_rng(0)
    flat = np.stack([np.full(spec.shape, grey, dtype=np.float64) for grey in GREYS])
    return to_pixels(np.concatenate([flat, flat + random.normal(0, 1, flat.shape)]))


def noise(spec: ImageSpec) -> Pixels:
    """Uniform noise, and normal noise of several standard deviations around mid-grey."""
    random = np.random.default_rng(1)
    uniform = random.uniform(0, 255, (8, *spec.shape))
    normal = [128 + random.normal(0, deviation, (8, *spec.shape)) for deviation in (5, 20, 60)]
    return to_pixels(np.concatenate([uniform, *normal]))


def shapes(spec: ImageSpec) -> Pixels:
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


def corruptions() -> dict[str, dict[str, Callable[[Pixels], Pixels]]]:
    """Functions by kind and severity, from images (n, h, w, c), uint8, to images of the same shape."""
    return {
        "noise": {f"deviation {d}": partial(_with_noise, deviation=d) for d in (5, 10, 20)},
        "blur": {f"sigma {s}": partial(_blurred, sigma=s) for s in (0.5, 1.0, 1.5, 2.0)},
        "brightness": {f"{b:+}": partial(_lit, brightness=b) for b in (-40, -20, 20, 40)},
        "contrast": {f"x {c}": partial(_lit, contrast=c) for c in (0.6, 0.8, 1.25, 1.5)},
        "JPEG": {f"quality {q}": partial(_compressed, quality=float(q)) for q in (75, 50, 30)},
        "rotation": {f"{a:+} degrees": partial(_warped, degrees=a) for a in (-10, -5, 5, 10)},
        "scale": {f"x {s}": partial(_warped, zoom=s) for s in (0.7, 0.85, 1.2, 1.4)},
    }


def _with_noise(images: Pixels, deviation: float) -> Pixels:
    return to_pixels(images + np.random.default_rng(0).normal(0, deviation, images.shape))


def _blurred(images: Pixels, sigma: float) -> Pixels:
    return to_pixels(blur(tf.cast(images, tf.float32), tf.fill([len(images)], sigma)).numpy())


def _lit(images: Pixels, contrast: float = 1.0, brightness: float = 0.0) -> Pixels:
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return to_pixels((images - mean) * contrast + mean + brightness)


def _compressed(images: Pixels, quality: float) -> Pixels:
    return to_pixels(compress(tf.cast(images, tf.float32), tf.fill([len(images)], quality)).numpy())


def _warped(images: Pixels, degrees: float = 0.0, zoom: float = 1.0) -> Pixels:
    """Rotate and zoom about the centre, bilinear; edges are reflected."""
    height, width = images.shape[1:3]
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    x, y = (width - 1) / 2, (height - 1) / 2
    transform = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0]
    warped = project(tf.cast(images, tf.float32), tf.constant([transform], tf.float32), "REFLECT")
    return to_pixels(warped.numpy())
