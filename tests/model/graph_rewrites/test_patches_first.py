from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from model.compile import patches_first
from model.defaults import DEFAULT_MODEL_PATH
from model.networks.keras_model import load_network

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).normal(size=(4, 24, 36, 3)).astype(np.float32)


def network(convolution: layers.Layer, channels: int = 3) -> keras.Model:
    inputs = keras.Input((24, 36, channels))
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.Flatten()(convolution(inputs))))


@pytest.mark.parametrize("patch", [2, 3, 4])
@pytest.mark.parametrize("given", [{}, {"activation": "elu"}, {"use_bias": False}, {"padding": "same"}])
def test_rewritten_network_is_equivalent(patch: int, given: dict[str, Any]) -> None:
    built = network(layers.Conv2D(8, patch, strides=patch, bias_initializer="random_normal", **given))
    rewritten = patches_first(built)
    [convolution] = [layer for layer in rewritten.layers if isinstance(layer, layers.Conv2D)]
    assert convolution.kernel_size == (1, 1)
    assert np.allclose(rewritten.predict(IMAGES, verbose=0), built.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    "convolution",
    [
        layers.Conv2D(8, 3, strides=2),
        layers.Conv2D(8, 2, strides=1),
        layers.Conv2D(8, 1),
        layers.Conv2D(8, (2, 3), strides=(2, 3)),
        layers.Conv2D(8, 5, strides=5),
        layers.DepthwiseConv2D(2, strides=2),
        layers.Conv2D(6, 2, strides=2, groups=3),
    ],
)
def test_other_convolutions_are_not_rewritten(convolution: layers.Layer) -> None:
    built = network(convolution)
    assert patches_first(built) is built


def test_convolution_of_many_channels_is_not_rewritten() -> None:
    built = network(layers.Conv2D(8, 2, strides=2), channels=8)
    assert patches_first(built) is built


def test_convolution_called_twice_is_not_rewritten() -> None:
    convolution = layers.Conv2D(3, 2, strides=2)
    built = network(lambda x: convolution(convolution(x)))  # type: ignore[arg-type]
    assert patches_first(built) is built


def test_published_recipe_is_rewritten() -> None:
    recipe = load_network(DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"))
    rewritten = patches_first(recipe)
    images = np.random.default_rng(0).integers(0, 256, (2, 200, 200, 3)).astype(np.float32)
    first = next(layer for layer in rewritten.layers if isinstance(layer, layers.Conv2D))
    assert first.input.shape == (None, 100, 100, 12)
    assert np.allclose(rewritten.predict(images, verbose=0), recipe.predict(images, verbose=0), atol=1e-6)
