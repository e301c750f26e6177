"""Augmentation is reproducible, within its ranges, and varied."""

import numpy as np
import pytest
import tensorflow as tf

from model.image import ImageSpec
from model.training.augmentation import Augmentation, blur, compress, disturb, turn
from tests.model.conftest import random_images

SPEC = ImageSpec(height=40, width=60, channels=1)
SEED = tf.constant([1, 2], tf.int64)
NEUTRAL = Augmentation(
    tilt_degrees=0,
    least_zoom=1,
    most_zoom=1,
    stretch=0,
    shift=0,
    contrast=0,
    brightness=0,
    blur_share=0,
    noise_share=0,
    jpeg_share=0,
)


def smooth_images(count: int, spec: ImageSpec = SPEC) -> tf.Tensor:
    noise = tf.constant(random_images(count, spec), tf.float32)
    return blur(noise, tf.fill([count], 2.0)) * 3 - 255


@pytest.mark.parametrize("change", [turn, disturb])
def test_same_seed_gives_the_same_images(change: object) -> None:
    images = tf.constant(random_images(4, SPEC), tf.float32)
    first = change(images, Augmentation(), SEED)
    assert np.array_equal(first, change(images, Augmentation(), SEED))
    assert not np.array_equal(first, change(images, Augmentation(), SEED + 1))
    assert first.shape == images.shape


def test_neutral_ranges_allow_quarter_turns_and_mirror_images() -> None:
    square = ImageSpec(height=32, width=32, channels=1)
    image = random_images(1, square)[0]
    turned = turn(tf.repeat(tf.constant(image[None], tf.float32), 64, axis=0), NEUTRAL, SEED).numpy()
    orientations = [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]
    found = {int(np.argmin([np.abs(one - o).max() for o in orientations])) for one in turned}
    assert found == set(range(8))
    for one in turned:
        assert min(np.abs(one - o).max() for o in orientations) < 0.01


def test_neutral_ranges_disturb_nothing() -> None:
    images = tf.constant(random_images(3, SPEC), tf.float32)
    assert np.allclose(disturb(images, NEUTRAL, SEED), images, atol=0.01)


def test_disturbed_pixels_stay_in_range() -> None:
    images = tf.constant(random_images(16, SPEC), tf.float32)
    strong = Augmentation(contrast=2, brightness=200, noise_share=1, most_noise=200)
    disturbed = disturb(images, strong, SEED).numpy()
    assert disturbed.min() >= 0
    assert disturbed.max() <= 255


def test_each_image_is_blurred_by_its_own_deviation() -> None:
    impulse = np.zeros((3, 21, 21, 1), np.float32)
    impulse[:, 10, 10] = 1000
    blurred = blur(tf.constant(impulse), tf.constant([0.0, 1.0, 2.0])).numpy()[..., 0]
    assert np.allclose(blurred[0], impulse[0, ..., 0], atol=1e-3)
    offsets = np.arange(-10, 11)
    for image, sigma in zip(blurred[1:], (1.0, 2.0), strict=True):
        profile = image.sum(axis=0) / image.sum()
        assert np.sqrt((profile * offsets**2).sum()) == pytest.approx(sigma, rel=0.05)


def test_lower_jpeg_quality_changes_more_pixels_and_0_none() -> None:
    images = tf.clip_by_value(smooth_images(3), 0, 255)
    low, high, none = compress(images, tf.constant([5.0, 95.0, 0.0])).numpy()
    difference = [np.abs(a - b).mean() for a, b in zip((low, high, none), images.numpy(), strict=True)]
    assert difference[0] > 2 * difference[1] > 0
    assert difference[2] == 0
