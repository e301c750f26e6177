"""Synthetic negatives: random images that show none of the classes (noise, gradients, shapes), to train with.

They need no photographs, so they work for any folder of classes.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.arrays import Floats

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
