from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from model.compile import RISING, pool_first
from model.defaults import DEFAULT_MODEL_PATH
from model.networks.keras_model import load_network

pytestmark = pytest.mark.slow

Tensor = keras.KerasTensor
IMAGES = np.random.default_rng(0).normal(size=(4, 20, 20, 3)).astype(np.float32)


def network(body: Callable[[Tensor], Tensor]) -> keras.Model:
    inputs = keras.Input((20, 20, 3))
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.Flatten()(body(inputs))))


def kinds(built: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in built.layers if not isinstance(layer, layers.InputLayer)]


@pytest.mark.parametrize("activation", RISING)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_pooling_moves_before_the_activation(activation: str, padding: str) -> None:
    built = network(
        lambda x: layers.MaxPooling2D(3, 2, padding=padding)(layers.Conv2D(4, 3, activation=activation)(x))
    )
    rewritten = pool_first(built)
    assert kinds(built)[:2] == ["Conv2D", "MaxPooling2D"]
    assert kinds(rewritten)[:3] == ["Conv2D", "MaxPooling2D", "Activation"]
    assert np.allclose(rewritten.predict(IMAGES, verbose=0), built.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "linear"])
def test_decreasing_or_free_activation_is_not_moved(activation: str) -> None:
    built = network(lambda x: layers.MaxPooling2D()(layers.Conv2D(4, 3, activation=activation)(x)))
    assert pool_first(built) is built


def test_activation_with_another_consumer_is_not_moved() -> None:
    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        return layers.Add()([layers.MaxPooling2D()(activated), layers.AveragePooling2D(2)(activated)])

    built = network(body)
    assert pool_first(built) is built


def test_activation_that_is_an_output_is_not_moved() -> None:
    inputs = keras.Input((20, 20, 3))
    activated = layers.Conv2D(4, 3, activation="elu")(inputs)
    built = keras.Model(inputs, [layers.MaxPooling2D()(activated), activated])
    assert pool_first(built) is built


def test_layer_called_twice_is_not_rewritten() -> None:
    convolution = layers.Conv2D(3, 3, padding="same", activation="elu")
    built = network(lambda x: layers.MaxPooling2D()(convolution(convolution(x))))
    assert pool_first(built) is built


def test_activation_with_a_nested_network_as_consumer_is_not_moved() -> None:
    inner_inputs = keras.Input((18, 18, 4))
    inner = keras.Model(inner_inputs, layers.AveragePooling2D(2)(inner_inputs))

    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        return layers.Add()([layers.MaxPooling2D()(activated), inner(activated)])

    built = network(body)
    assert pool_first(built) is built


def test_activation_with_a_shared_layer_as_consumer_is_not_moved() -> None:
    shared = layers.Conv2D(4, 1)

    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        other = layers.Add()([shared(activated), shared(layers.Conv2D(4, 3)(x))])
        return layers.Add()([layers.MaxPooling2D()(activated), layers.MaxPooling2D()(other)])

    built = network(body)
    assert pool_first(built) is built


@pytest.mark.parametrize("elu_first", [True, False])
def test_weights_are_assigned_correctly_if_branches_have_equal_shapes(elu_first: bool) -> None:
    def body(x: Tensor) -> Tensor:
        pooled = layers.MaxPooling2D()(layers.Conv2D(3, 3, padding="same", activation="elu")(x))
        strided = layers.Conv2D(3, 3, padding="same")(layers.Conv2D(3, 3, strides=2, padding="same")(x))
        return layers.Add()([pooled, strided] if elu_first else [strided, pooled])

    built = network(body)
    rewritten = pool_first(built)
    assert kinds(rewritten).count("Activation") == 1
    assert np.allclose(rewritten.predict(IMAGES, verbose=0), built.predict(IMAGES, verbose=0), atol=1e-6)


def test_added_layer_does_not_reuse_an_existing_name() -> None:
    def body(x: Tensor) -> Tensor:
        pooled = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, activation="elu")(x))
        return layers.Activation("tanh", name="activation")(pooled)

    built = network(body)
    keras.backend.clear_session()  # resets automatic names, as in a fresh process
    assert kinds(pool_first(built)).count("Activation") == 2


def test_published_recipe_is_rewritten_to_an_equivalent_network() -> None:
    recipe = load_network(DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"))
    rewritten = pool_first(recipe)
    assert kinds(rewritten).count("Activation") == 3
    images = np.random.default_rng(0).integers(0, 256, (2, 200, 200, 3)).astype(np.float32)
    assert np.allclose(rewritten.predict(images, verbose=0), recipe.predict(images, verbose=0), atol=1e-6)
