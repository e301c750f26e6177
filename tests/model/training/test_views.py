"""Views are reproducible, within their ranges, and varied."""

import numpy as np
import pytest
import tensorflow as tf

from model.evaluation.corruptions import corruptions
from model.evaluation.out_of_distribution import foreign_sets, load
from model.image import ImageSpec, encode_png
from model.training.augmentation import Views, blur, compress, disturb, turn
from model.training.synthetic_negatives import DRAWINGS, draw_strange
from tests.model.conftest import random_images

SPEC = ImageSpec(height=40, width=60, channels=1)
SEED = tf.constant([1, 2], tf.int64)
NEUTRAL = Views(
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
def test_same_seed_gives_the_same_views(change: object) -> None:
    images = tf.constant(random_images(4, SPEC), tf.float32)
    first = change(images, Views(), SEED)
    assert np.array_equal(first, change(images, Views(), SEED))
    assert not np.array_equal(first, change(images, Views(), SEED + 1))
    assert first.shape == images.shape


def test_neutral_views_are_quarter_turns_and_mirror_images() -> None:
    square = ImageSpec(height=32, width=32, channels=1)
    image = random_images(1, square)[0]
    turned = turn(tf.repeat(tf.constant(image[None], tf.float32), 64, axis=0), NEUTRAL, SEED).numpy()
    orientations = [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]
    found = {int(np.argmin([np.abs(view - o).max() for o in orientations])) for view in turned}
    assert found == set(range(8))
    for view in turned:
        assert min(np.abs(view - o).max() for o in orientations) < 0.01


def test_neutral_views_are_not_disturbed() -> None:
    images = tf.constant(random_images(3, SPEC), tf.float32)
    assert np.allclose(disturb(images, NEUTRAL, SEED), images, atol=0.01)


def test_disturbed_pixels_stay_in_range() -> None:
    images = tf.constant(random_images(16, SPEC), tf.float32)
    views = disturb(images, Views(contrast=2, brightness=200, noise_share=1, most_noise=200), SEED).numpy()
    assert views.min() >= 0
    assert views.max() <= 255


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


class TestCorruptions:
    def test_every_corruption_keeps_the_shape_and_changes_pixels(self) -> None:
        images = np.clip(smooth_images(2), 0, 255).astype(np.uint8)
        for severities in corruptions().values():
            for corrupt in severities.values():
                corrupted = corrupt(images)
                assert corrupted.shape == images.shape
                assert corrupted.dtype == np.uint8
                assert not np.array_equal(corrupted, images)

    def test_scale_zooms_about_the_centre(self) -> None:
        image = np.zeros((1, 41, 41, 1), np.uint8)
        image[:, 15:26, 15:26] = 200
        sizes = {name: (corrupt(image) > 100).sum() for name, corrupt in corruptions()["scale"].items()}
        assert sizes["x 1.4"] == pytest.approx(121 * 1.4**2, rel=0.15)
        assert sizes["x 0.7"] == pytest.approx(121 * 0.7**2, rel=0.2)


class TestSyntheticNegatives:
    @pytest.mark.parametrize("draw", DRAWINGS)
    def test_each_drawing_varies(self, draw: object) -> None:
        random = np.random.default_rng(0)
        first, second = draw(30, 40, random), draw(30, 40, random)
        assert first.shape == (30, 40)
        assert np.isfinite(first).all()
        assert not np.array_equal(first, second)

    def test_negatives_are_pixels_and_reproducible(self) -> None:
        pictures = draw_strange(20, (16, 24, 3), np.random.default_rng(1))
        assert pictures.shape == (20, 16, 24, 3)
        assert pictures.min() >= 0
        assert pictures.max() <= 255
        assert np.array_equal(pictures, np.rint(pictures))
        assert np.array_equal(pictures, draw_strange(20, (16, 24, 3), np.random.default_rng(1)))


def test_folder_is_added_to_the_generated_sets(tmp_path) -> None:  # noqa: ANN001
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode_png(random_images(1, SPEC)[0]))
    (tmp_path / "photos" / "b.txt").write_text("no image")
    sets = foreign_sets(SPEC, [tmp_path / "photos"])
    assert set(sets) == {"blank", "noise", "shapes", "photos"}
    assert sets["photos"].shape == (1, *SPEC.shape)
    assert np.array_equal(sets["photos"], load(SPEC, tmp_path / "photos"))
    assert all(images.dtype == np.uint8 and images.shape[1:] == SPEC.shape for images in sets.values())
