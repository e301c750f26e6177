"""Random shear, zoom and flip, one warp per image, equivalent to Keras's ImageDataGenerator."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """Ranges as defined by Keras's ImageDataGenerator, which the published recipe used."""

    shear_degrees: float = 0.2
    """Degrees, like Keras's shear_range: the recipe's 0.2 has almost no effect."""
    zoom: float = 0.2
    """Height and width are scaled independently, by factors in [1 - zoom, 1 + zoom]."""
    horizontal_flip: bool = True


class Warp(NamedTuple):
    """One warp per image; each field has shape (count,). `shear` is in radians and applied after the zoom."""

    zoom_x: tf.Tensor
    zoom_y: tf.Tensor
    shear: tf.Tensor
    flip: tf.Tensor


def random_warp(augmentation: Augmentation, count: tf.Tensor, seed: tf.Tensor) -> Warp:
    """Draw `count` warps. `seed` is a stateless seed (2,), int64: equal seeds draw equal warps."""
    draws = tf.random.stateless_uniform((4, count), seed, minval=-1.0, maxval=1.0)
    return Warp(
        zoom_x=1 + augmentation.zoom * draws[0],
        zoom_y=1 + augmentation.zoom * draws[1],
        shear=math.radians(augmentation.shear_degrees) * draws[2],
        flip=(draws[3] < 0) & augmentation.horizontal_flip,
    )


def apply_warp(images: tf.Tensor, warp: Warp) -> tf.Tensor:
    """Warp images (n, h, w, c), float32, bilinear; pixels beyond the border repeat the nearest edge pixel."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=_transforms(warp, images.shape[1], images.shape[2]),
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )


def _transforms(warp: Warp, height: int, width: int) -> tf.Tensor:
    """Projective transforms (count, 8) about the centre, from output (x, y) to input (x, y)."""
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    a0 = tf.where(warp.flip, -warp.zoom_x, warp.zoom_x)
    a1 = -tf.sin(warp.shear) * warp.zoom_y
    b1 = tf.cos(warp.shear) * warp.zoom_y
    a2 = centre_x - a0 * centre_x - a1 * centre_y
    b2 = centre_y - b1 * centre_y
    zero = tf.zeros_like(a0)
    return tf.stack([a0, a1, a2, zero, b1, b2, zero, zero], axis=1)
