"""Image corruptions at fixed severities, to measure robustness."""

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.image import to_pixels
from model.training.augmentation import blur, compress, project

Images = NDArray[np.uint8]


def corruptions() -> dict[str, dict[str, Callable[[Images], Images]]]:
    """Functions by kind and severity, from images (n, h, w, c), uint8, to images of the same shape."""
    return {
        "noise": {f"deviation {d}": _noise(d) for d in (5, 10, 20)},
        "blur": {f"sigma {s}": _blur(s) for s in (0.5, 1.0, 1.5, 2.0)},
        "brightness": {f"{b:+}": _light(1.0, b) for b in (-40, -20, 20, 40)},
        "contrast": {f"x {c}": _light(c, 0) for c in (0.6, 0.8, 1.25, 1.5)},
        "JPEG": {f"quality {q}": _jpeg(q) for q in (75, 50, 30)},
        "rotation": {f"{a:+} degrees": _warp(a, 1.0) for a in (-10, -5, 5, 10)},
        "scale": {f"x {s}": _warp(0, s) for s in (0.7, 0.85, 1.2, 1.4)},
    }


def _noise(deviation: float) -> Callable[[Images], Images]:
    def add(images: Images) -> Images:
        noise = np.random.default_rng(0).normal(0, deviation, images.shape)
        return to_pixels(images + noise)

    return add


def _blur(sigma: float) -> Callable[[Images], Images]:
    def change(images: Images) -> Images:
        return to_pixels(blur(tf.cast(images, tf.float32), tf.fill([len(images)], sigma)).numpy())

    return change


def _light(contrast: float, brightness: float) -> Callable[[Images], Images]:
    def change(images: Images) -> Images:
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        return to_pixels((images - mean) * contrast + mean + brightness)

    return change


def _jpeg(quality: int) -> Callable[[Images], Images]:
    def through(images: Images) -> Images:
        floats = tf.cast(images, tf.float32)
        return to_pixels(compress(floats, tf.fill([len(images)], float(quality))).numpy())

    return through


def _warp(degrees: float, zoom: float) -> Callable[[Images], Images]:
    """Rotate and zoom about the centre, bilinear; edges are reflected."""

    def warp(images: Images) -> Images:
        height, width = images.shape[1:3]
        cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        transform = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0]
        warped = project(tf.cast(images, tf.float32), tf.constant([transform], tf.float32), "REFLECT")
        return to_pixels(warped.numpy())

    return warp
