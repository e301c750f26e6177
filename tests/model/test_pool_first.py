from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from model.defaults import DEFAULT_MODEL_PATH
from model.networks import load_network
from model.pool_first import RISING, pool_first

Tensor = keras.KerasTensor
IMAGES = np.random.default_rng(0).normal(size=(4, 20, 20, 3)).astype(np.float32)


def network(body: Callable[[Tensor], Tensor]) -> keras.Model:
    inputs = keras.Input((20, 20, 3))
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.Flatten()(body(inputs))))


def kinds(built: keras.Model) -> list[str]:
    return [type(layer).__name__ for layer in built.layers if not isinstance(layer, layers.InputLayer)]


@pytest.mark.parametrize("activation", RISING)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_pooling_goes_first_and_nothing_else_changes(activation: str, padding: str) -> None:
    built = network(
        lambda x: layers.MaxPooling2D(3, 2, padding=padding)(layers.Conv2D(4, 3, activation=activation)(x))
    )
    rewritten = pool_first(built)
    assert kinds(built)[:2] == ["Conv2D", "MaxPooling2D"]
    assert kinds(rewritten)[:3] == ["Conv2D", "MaxPooling2D", "Activation"]
    assert np.allclose(rewritten.predict(IMAGES, verbose=0), built.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "linear"])
def test_activation_that_falls_or_costs_nothing_stays(activation: str) -> None:
    built = network(lambda x: layers.MaxPooling2D()(layers.Conv2D(4, 3, activation=activation)(x)))
    assert pool_first(built) is built


def test_activation_that_others_take_too_stays() -> None:
    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        return layers.Add()([layers.MaxPooling2D()(activated), layers.AveragePooling2D(2)(activated)])

    built = network(body)
    assert pool_first(built) is built


def test_activation_that_is_an_output_too_stays() -> None:
    inputs = keras.Input((20, 20, 3))
    activated = layers.Conv2D(4, 3, activation="elu")(inputs)
    built = keras.Model(inputs, [layers.MaxPooling2D()(activated), activated])
    assert pool_first(built) is built


def test_layer_that_is_called_twice_stays() -> None:
    convolution = layers.Conv2D(3, 3, padding="same", activation="elu")
    built = network(lambda x: layers.MaxPooling2D()(convolution(convolution(x))))
    assert pool_first(built) is built


def test_activation_that_a_network_within_takes_too_stays() -> None:
    inner_inputs = keras.Input((18, 18, 4))
    inner = keras.Model(inner_inputs, layers.AveragePooling2D(2)(inner_inputs))

    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        return layers.Add()([layers.MaxPooling2D()(activated), inner(activated)])

    built = network(body)
    assert pool_first(built) is built


def test_activation_that_a_layer_of_two_calls_takes_too_stays() -> None:
    shared = layers.Conv2D(4, 1)

    def body(x: Tensor) -> Tensor:
        activated = layers.Conv2D(4, 3, activation="elu")(x)
        beside = layers.Add()([shared(activated), shared(layers.Conv2D(4, 3)(x))])
        return layers.Add()([layers.MaxPooling2D()(activated), layers.MaxPooling2D()(beside)])

    built = network(body)
    assert pool_first(built) is built


@pytest.mark.parametrize("elu_first", [True, False])
def test_weights_find_their_layer_when_branches_are_alike(elu_first: bool) -> None:
    def body(x: Tensor) -> Tensor:
        pooled = layers.MaxPooling2D()(layers.Conv2D(3, 3, padding="same", activation="elu")(x))
        strided = layers.Conv2D(3, 3, padding="same")(layers.Conv2D(3, 3, strides=2, padding="same")(x))
        return layers.Add()([pooled, strided] if elu_first else [strided, pooled])

    built = network(body)
    rewritten = pool_first(built)
    assert kinds(rewritten).count("Activation") == 1
    assert np.allclose(rewritten.predict(IMAGES, verbose=0), built.predict(IMAGES, verbose=0), atol=1e-6)


def test_layer_named_as_keras_names_activations_is_no_hindrance() -> None:
    def body(x: Tensor) -> Tensor:
        pooled = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, activation="elu")(x))
        return layers.Activation("tanh", name="activation")(pooled)

    built = network(body)
    keras.backend.clear_session()  # names begin anew, as in a process that only compiles
    assert kinds(pool_first(built)).count("Activation") == 2


def test_published_recipe_is_the_same_network_with_a_quarter_of_its_exponentials() -> None:
    recipe = load_network(DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"))
    rewritten = pool_first(recipe)
    assert kinds(rewritten).count("Activation") == 3
    images = np.random.default_rng(0).integers(0, 256, (2, 200, 200, 3)).astype(np.float32)
    assert np.allclose(rewritten.predict(images, verbose=0), recipe.predict(images, verbose=0), atol=1e-6)
