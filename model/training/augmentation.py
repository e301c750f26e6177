"""Random images to train with: augmented ones, the published recipe's own, and synthetic negatives.

The default network's images are turned, which its distillation sees too, and then disturbed: contrast,
brightness, blur, noise and JPEG.

All draws are stateless: the same seed gives the same images, even after training has been resumed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.random import Generator
from numpy.typing import NDArray

from model.arrays import Floats

BLUR_REACH_PIXELS = 5


@dataclass(frozen=True)
class Augmentation:
    tilt_degrees: float = 12.0
    """In addition to quarter turns and mirroring."""
    least_zoom: float = 0.65
    most_zoom: float = 1.5
    stretch: float = 0.08
    """Maximum natural logarithm of the zoom of one side relative to the other."""
    shift: float = 0.15
    """Share of the image's sides."""
    contrast: float = 0.5
    """Maximum natural logarithm of the contrast factor, up or down."""
    brightness: float = 36.0
    """Grey levels."""
    blur_share: float = 0.32
    most_blur_pixels: float = 2.0
    noise_share: float = 0.32
    most_noise: float = 25.0
    """Standard deviation in grey levels."""
    jpeg_share: float = 0.3
    least_jpeg_quality: int = 20


def turn(images: tf.Tensor, ranges: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Turn by quarters, mirror, tilt, zoom and shift images (n, h, w, c), float32; edges are reflected."""
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    draw = tf.unstack(tf.random.stateless_uniform((9, count), seed), 9)
    tilt = tf.where(draw[0] < 0.7, _between(draw[1], -1.0, 1.0), 0.0) * math.radians(ranges.tilt_degrees)
    angle = tilt + math.pi / 2 * tf.floor(4 * draw[2])
    zoom = tf.exp(_between(draw[3], math.log(ranges.least_zoom), math.log(ranges.most_zoom)))
    zoom = tf.where(draw[4] < 0.3, 1.0, zoom)
    along = zoom * tf.exp(_between(draw[5], -ranges.stretch, ranges.stretch))
    mirror = tf.where(draw[6] < 0.5, -1.0, 1.0)
    # Scaled by the aspect ratio, so that an oblong image fills the frame after a quarter turn.
    a0, a1 = mirror * tf.cos(angle) / along, -tf.sin(angle) / zoom * (width / height)
    b0, b1 = mirror * tf.sin(angle) / along * (height / width), tf.cos(angle) / zoom
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    a2 = centre_x - a0 * centre_x - a1 * centre_y + _between(draw[7], -ranges.shift, ranges.shift) * width
    b2 = centre_y - b0 * centre_x - b1 * centre_y + _between(draw[8], -ranges.shift, ranges.shift) * height
    zero = tf.zeros_like(a0)
    return project(images, tf.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1), "REFLECT")


def disturb(images: tf.Tensor, ranges: Augmentation, seed: tf.Tensor) -> tf.Tensor:
    """Vary contrast and brightness of images (n, h, w, c), float32 0..255, and add blur, noise and JPEG."""
    draw = tf.unstack(tf.random.stateless_uniform((9, tf.shape(images)[0], 1, 1, 1), seed), 9)
    mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    images = (images - mean) * tf.exp(_between(draw[0], -ranges.contrast, ranges.contrast))
    images += mean + _between(draw[1], -ranges.brightness, ranges.brightness)
    sigma = tf.where(draw[2] < ranges.blur_share, draw[3] * ranges.most_blur_pixels, 0.0)
    images = blur(images, sigma[:, 0, 0, 0])
    noise = tf.random.stateless_normal(tf.shape(images), seed + 1)
    images += noise * tf.where(draw[4] < ranges.noise_share, draw[5] ** 1.5 * ranges.most_noise, 0.0)
    images = tf.clip_by_value(images, 0.0, 255.0)
    quality = tf.where(draw[6] < ranges.jpeg_share, _between(draw[7], ranges.least_jpeg_quality, 90.0), 0.0)
    return compress(images, quality[:, 0, 0, 0])


def project(images: tf.Tensor, transforms: tf.Tensor, fill_mode: str) -> tf.Tensor:
    """Map images (n, h, w, c), float32, bilinear, by transforms (n, 8) from output (x, y) to input (x, y)."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=images.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode=fill_mode,
    )


def blur(images: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Blur images (n, h, w, c), float32, each with its own standard deviation (n,) in pixels."""
    # Images become channels, so that one depthwise convolution blurs each image with its own kernel.
    _, height, width, channels = images.shape
    offsets = tf.range(-BLUR_REACH_PIXELS, BLUR_REACH_PIXELS + 1.0)[:, None]
    kernels = tf.exp(-(offsets**2) / (2 * (sigma + 1e-2) ** 2))
    kernels = tf.repeat(kernels / tf.reduce_sum(kernels, axis=0), channels, axis=1)  # (taps, n * c)
    x = tf.reshape(tf.transpose(images, (1, 2, 0, 3)), (1, height, width, -1))
    reach = [BLUR_REACH_PIXELS, BLUR_REACH_PIXELS]
    x = tf.pad(x, [[0, 0], reach, reach, [0, 0]], "REFLECT")
    x = tf.nn.depthwise_conv2d(x, kernels[:, None, :, None], (1, 1, 1, 1), "VALID")
    x = tf.nn.depthwise_conv2d(x, kernels[None, :, :, None], (1, 1, 1, 1), "VALID")
    return tf.transpose(tf.reshape(x, (height, width, -1, channels)), (2, 0, 1, 3))


def compress(images: tf.Tensor, quality: tf.Tensor) -> tf.Tensor:
    """Encode and decode images (n, h, w, c) as JPEG, each with its quality (n,); 0 leaves it unchanged."""
    return tf.map_fn(_compress_one, (images, quality), fn_output_signature=tf.float32)


@dataclass(frozen=True)
class RecipeAugmentation:
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


def random_warp(augmentation: RecipeAugmentation, count: tf.Tensor, seed: tf.Tensor) -> Warp:
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
    return project(images, _transforms(warp, images.shape[1], images.shape[2]), "NEAREST")


def _between(draw: tf.Tensor, least: float, most: float) -> tf.Tensor:
    return least + draw * (most - least)


def _compress_one(image_and_quality: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    image, quality = image_and_quality

    def through_jpeg() -> tf.Tensor:
        pixels = tf.cast(tf.round(image), tf.uint8)
        quality_level = tf.cast(quality, tf.int32)
        compressed = tf.raw_ops.EncodeJpegVariableQuality(images=pixels, quality=quality_level)
        decoded = tf.io.decode_jpeg(compressed, channels=image.shape[-1])
        return tf.ensure_shape(tf.cast(decoded, tf.float32), image.shape)

    return tf.cond(quality > 0, through_jpeg, lambda: image)


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


Field = NDArray[np.float64]
GRAINS = (0.0, 0.0, 0.7, 1.5, 4.0, 12.0, 30.0)
"""Standard deviations, in pixels, of the blur of noise; 0 is listed twice, to be drawn twice as often."""


def draw_negatives(count: int, shape: tuple[int, int, int], random: Generator) -> Floats:
    """Synthetic negatives (count, h, w, c), float32, integers 0..255."""
    height, width, channels = shape
    pictures = np.zeros((count, *shape), dtype=np.float32)
    for picture in pictures:
        draw = DRAWINGS[random.integers(len(DRAWINGS))]
        field = draw(height, width, random)
        spread, middle = random.uniform(2, 90), random.uniform(40, 215)
        grey = middle + spread * _standardised(field)
        tint = random.normal(0, random.choice((0.0, 25.0)), channels)
        picture[:] = np.rint(np.clip(grey[..., None] + tint, 0, 255))
    return pictures


def noise(height: int, width: int, random: Generator) -> Field:
    """Noise of one of three distributions, sometimes blurred."""
    fields = (
        random.normal(size=(height, width)),
        random.uniform(-1, 1, (height, width)),
        (random.random((height, width)) < random.uniform(0.02, 0.5)).astype(np.float64),
    )
    return _smoothed(fields[random.integers(len(fields))], random.choice(GRAINS))


def gradient(height: int, width: int, random: Generator) -> Field:
    """A linear gradient with sensor noise; some are almost blank."""
    return _along_any(height, width, random) + random.normal(0, random.uniform(0, 60), (height, width))


def grating(height: int, width: int, random: Generator) -> Field:
    wave = np.sin(2 * np.pi * _along_any(height, width, random) / random.uniform(4, 80))
    return wave if random.random() < 0.5 else np.sign(wave)


def shapes(height: int, width: int, random: Generator) -> Field:
    """Overlapping discs and boxes."""
    y, x = np.mgrid[0:height, 0:width]
    field = np.zeros((height, width))
    for _ in range(random.integers(1, 12)):
        middle_y, middle_x = random.uniform(0, 1, 2) * (height, width)
        tall, wide = random.uniform(0.03, 0.4, 2) * (height, width)
        down, across = (y - middle_y) / tall, (x - middle_x) / wide
        inside = down**2 + across**2 < 1 if random.random() < 0.5 else (abs(down) < 1) & (abs(across) < 1)
        field[inside] = random.uniform(-1, 1)
    return field + random.normal(0, random.choice((0.0, 0.05)), (height, width))


DRAWINGS: tuple[Callable[[int, int, Generator], Field], ...] = (noise, noise, gradient, grating, shapes)


def along(height: int, width: int, angle: float) -> Field:
    """Coordinate of each pixel along a direction, in pixels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray(x * np.cos(angle) + y * np.sin(angle))


def _along_any(height: int, width: int, random: Generator) -> Field:
    return along(height, width, random.uniform(0, 2 * np.pi))


def _smoothed(field: Field, grain: float) -> Field:
    """Gaussian blur by FFT; the image wraps around, which is invisible in noise."""
    if grain == 0:
        return field
    down, across = np.fft.fftfreq(field.shape[0])[:, None], np.fft.rfftfreq(field.shape[1])[None, :]
    response = np.exp(-2 * (np.pi * grain) ** 2 * (down**2 + across**2))
    return np.asarray(np.fft.irfft2(np.fft.rfft2(field) * response, s=field.shape))


def _standardised(field: Field) -> Field:
    return np.asarray((field - field.mean()) / (field.std() + 1e-6))
