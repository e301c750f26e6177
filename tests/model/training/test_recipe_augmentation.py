"""The augmentation must match Keras's ImageDataGenerator, which the published recipe used."""

import math

import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.preprocessing.image import apply_affine_transform

from model.training.augmentation import RecipeAugmentation, Warp, apply_warp, random_warp

# Keras's legacy module still imports a deprecated name from SciPy.
pytestmark = pytest.mark.filterwarnings("ignore:Please import `affine_transform`:DeprecationWarning:keras")

DRAWS = 4000


def warp_of(zoom_x: float = 1.0, zoom_y: float = 1.0, shear_degrees: float = 0.0, flip: bool = False) -> Warp:
    return Warp(
        tf.constant([zoom_x]),
        tf.constant([zoom_y]),
        tf.constant([math.radians(shear_degrees)]),
        tf.constant([flip]),
    )


def smooth_image(height: int, width: int, channels: int) -> np.ndarray:
    y, x, c = np.indices((height, width, channels), dtype=np.float32)
    return 127 + 60 * np.sin(x / 3 + c) + 60 * np.cos(y / 4)


def keras_warp(
    image: np.ndarray, zoom_x: float, zoom_y: float, shear_degrees: float, flip: bool
) -> np.ndarray:
    """Like ImageDataGenerator.apply_transform: the affine warp, then the flip."""
    warped = apply_affine_transform(
        image,
        shear=shear_degrees,
        zx=zoom_x,
        zy=zoom_y,
        row_axis=0,
        col_axis=1,
        channel_axis=2,
        fill_mode="nearest",
        order=1,
    )
    return warped[:, ::-1] if flip else warped


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shear_degrees", [0.0, 0.2, -0.2, 20.0])
@pytest.mark.parametrize(("zoom_x", "zoom_y"), [(1.0, 1.0), (0.8, 1.2), (1.2, 0.85), (1.1, 1.0)])
class TestAgainstKeras:
    @pytest.mark.parametrize("shape", [(24, 24, 3), (31, 31, 1)])
    def test_warp_equals_that_of_keras(
        self, shape: tuple[int, int, int], zoom_x: float, zoom_y: float, shear_degrees: float, flip: bool
    ) -> None:
        image = smooth_image(*shape)
        ours = apply_warp(image[np.newaxis], warp_of(zoom_x, zoom_y, shear_degrees, flip))[0].numpy()
        assert np.abs(ours - keras_warp(image, zoom_x, zoom_y, shear_degrees, flip)).max() < 0.01

    @pytest.mark.parametrize("margin", [(5, 0), (0, 5)], ids=["wide", "tall"])
    def test_warp_of_an_oblong_image_is_about_its_centre(
        self, margin: tuple[int, int], zoom_x: float, zoom_y: float, shear_degrees: float, flip: bool
    ) -> None:
        """Keras swaps height and width of an oblong image, so the reference is padded to a square."""
        rows, columns = margin
        image = smooth_image(30 - 2 * rows, 30 - 2 * columns, 3)
        ours = apply_warp(image[np.newaxis], warp_of(zoom_x, zoom_y, shear_degrees, flip))[0].numpy()
        square = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="edge")
        reference = keras_warp(square, zoom_x, zoom_y, shear_degrees, flip)
        assert np.abs(ours - reference[rows : 30 - rows, columns : 30 - columns]).max() < 0.01


def test_neutral_warp_changes_nothing() -> None:
    image = smooth_image(12, 17, 3)[np.newaxis]
    assert np.allclose(apply_warp(image, warp_of()), image, atol=1e-4)


def test_each_image_has_its_own_warp() -> None:
    images = np.stack([smooth_image(12, 17, 3)] * 2)
    warp = Warp(*(tf.concat(pair, axis=0) for pair in zip(warp_of(), warp_of(flip=True), strict=True)))
    plain, flipped = apply_warp(images, warp).numpy()
    assert np.allclose(plain, images[0], atol=1e-4)
    assert np.allclose(flipped, images[0][:, ::-1], atol=1e-4)


def test_defaults_are_those_of_the_recipe() -> None:
    assert RecipeAugmentation() == RecipeAugmentation(shear_degrees=0.2, zoom=0.2, horizontal_flip=True)


def test_draws_cover_exactly_their_ranges() -> None:
    warp = random_warp(RecipeAugmentation(shear_degrees=10, zoom=0.3), DRAWS, tf.constant([1, 2], tf.int64))
    for drawn, low, high in (
        (warp.zoom_x, 0.7, 1.3),
        (warp.zoom_y, 0.7, 1.3),
        (warp.shear, -math.radians(10), math.radians(10)),
    ):
        values = drawn.numpy()
        assert values.shape == (DRAWS,)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert abs(values.mean() - (low + high) / 2) < 0.05 * (high - low)
    assert 0.45 < warp.flip.numpy().mean() < 0.55


def test_height_and_width_are_zoomed_independently() -> None:
    warp = random_warp(RecipeAugmentation(), DRAWS, tf.constant([1, 2], tf.int64))
    drawn = np.stack([warp.zoom_x, warp.zoom_y, warp.shear, tf.cast(warp.flip, tf.float32)])
    correlations = np.corrcoef(drawn) - np.eye(4)
    assert np.abs(correlations).max() < 0.06


def test_flip_can_be_disabled() -> None:
    warp = random_warp(RecipeAugmentation(horizontal_flip=False), DRAWS, tf.constant([1, 2], tf.int64))
    assert not warp.flip.numpy().any()


def test_only_equal_seeds_draw_equal_warps() -> None:
    first, again, other_seed, other_step = (
        np.stack(random_warp(RecipeAugmentation(), 9, tf.constant(seed, tf.int64))[:3])
        for seed in ([3, 4], [3, 4], [5, 4], [3, 5])
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other_seed)
    assert not np.allclose(first, other_step)
