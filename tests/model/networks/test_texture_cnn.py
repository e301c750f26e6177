"""The default network has its documented cost, starts from pretrained weights and can be saved as .h5."""

from pathlib import Path

import keras
import numpy as np
import pytest

from model.compile import compile_network
from model.image import ImageSpec
from model.networks.keras_model import count_macs, find_head, load_network, save_network
from model.networks.pretrained_blocks import BLOCKS as WHOLE
from model.networks.pretrained_blocks import STATISTICS, STEM_FILTERS, load_convolutions, statistics_network
from model.networks.texture_cnn import fold, texture_cnn, trainable_texture_cnn
from model.training.fit import TextureStatistics
from model.training.recipe import recipe_cnn
from tests.model.conftest import random_images

pytestmark = pytest.mark.slow

GREY = ImageSpec(height=64, width=96, channels=1)
COLOUR = ImageSpec(height=64, width=96, channels=3)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """A network whose weights and moments differ from its initial ones."""
    keras.utils.set_random_seed(0)
    network = trainable_texture_cnn(GREY, 5)
    for seed in range(3):
        network(random_images(4, GREY, seed).astype(np.float32), training=True)
    return network


def test_it_costs_a_third_of_the_recipe_and_a_tenth_of_its_parameters() -> None:
    ours = texture_cnn(ImageSpec(height=200, width=200, channels=1), 6)
    recipe = recipe_cnn(ImageSpec(height=200, width=200, channels=3), 6)
    assert 3 * count_macs(ours) <= count_macs(recipe)
    assert 10 * ours.count_params() <= recipe.count_params()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_folded_network_predicts_as_the_trained_one(trained: keras.Model, temperature: float) -> None:
    images = random_images(3, GREY).astype(np.float32)
    logits, _ = trained(images, training=False)
    expected = keras.ops.softmax(logits / temperature)
    assert np.allclose(fold(trained, GREY, temperature)(images), expected, atol=1e-5)


def test_h5_predicts_as_the_saved_network(trained: keras.Model, tmp_path: Path) -> None:
    """Keras's normalisation over several axes would fail here, because the .h5 does not keep its axes."""
    folded = fold(trained, GREY)
    save_network(folded, tmp_path / "n.h5")
    images = random_images(3, GREY).astype(np.float32)
    assert np.array_equal(load_network(tmp_path / "n.h5")(images), folded(images))


def test_head_shows_features_embedding_and_weights(trained: keras.Model) -> None:
    folded = fold(trained, GREY)
    head = find_head(folded)
    assert head is not None
    assert tuple(head.features.shape) == (None, 4, 6, 96)
    assert head.class_weights.shape == (96, 5)
    assert np.array_equal(head.class_weights, folded.layers[-1].get_weights()[0])


def test_brightness_and_contrast_change_no_prediction(trained: keras.Model) -> None:
    folded = fold(trained, GREY)
    images = random_images(4, GREY).astype(np.float32)
    assert np.allclose(folded(images), folded(60 + 0.5 * images), atol=1e-2)


@pytest.mark.parametrize("spec", [GREY, COLOUR])
def test_it_starts_from_the_pretrained_weights(spec: ImageSpec) -> None:
    network = trainable_texture_cnn(spec, 2)
    kernels = [layer.get_weights()[0] for layer in network.layers if hasattr(layer, "kernel")]
    projected = load_convolutions(spec.channels, 24, WHOLE[:1])[-1].kernel
    assert np.array_equal(kernels[2], projected)
    assert len(compile_network(fold(network, spec), spec.shape)) > 100_000


def test_smaller_block_keeps_the_filters_of_largest_weight() -> None:
    whole = load_convolutions(1, STEM_FILTERS, WHOLE[:2])
    thin = load_convolutions(1, STEM_FILTERS, (WHOLE[0], type(WHOLE[1])(3, 2, 32, 24)))
    importance = np.linalg.norm(whole[-1].kernel[0, 0], axis=1) * np.abs(whole[-2].norm[0])
    kept = np.sort(np.argsort(-importance)[:32])
    assert np.array_equal(thin[-1].kernel, whole[-1].kernel[:, :, kept])
    assert np.array_equal(thin[-3].kernel, whole[-3].kernel[..., kept])


@pytest.fixture(scope="module")
def statistics() -> TextureStatistics:
    return TextureStatistics(GREY, threads=2)


class TestTextureStatistics:
    def test_compiled_network_gives_the_same_statistics(self, statistics: TextureStatistics) -> None:
        images = random_images(3, GREY)
        expected = statistics_network(GREY)(images.astype(np.float32))["statistics"]
        found = statistics.describe(images)
        assert found.shape == (3, STATISTICS)
        assert np.allclose(found, expected, atol=1e-4)

    def test_grey_and_equal_colours_give_the_same_statistics(self, statistics: TextureStatistics) -> None:
        grey = random_images(2, GREY)
        one = statistics.describe(grey)
        three = TextureStatistics(COLOUR, 1).describe(np.repeat(grey, 3, axis=-1))
        assert np.allclose(one, three, atol=1e-3)

    def test_statistics_distinguish_textures(self, statistics: TextureStatistics) -> None:
        """Stripes and noise, without which distillation would be useless."""
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (6, *GREY.shape), dtype=np.uint8)
        stripes = np.zeros_like(noise)
        stripes[:, ::4] = 200
        stripes += random.integers(0, 40, stripes.shape, dtype=np.uint8)
        a, b = statistics.describe(noise), statistics.describe(stripes)
        assert np.linalg.norm(a.mean(0) - b.mean(0)) > 5 * np.linalg.norm(a.std(0) + b.std(0))
