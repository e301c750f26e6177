from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from model.compile import HEAVY_BYTES, patches_first, pool_first, split_heavy_head
from model.defaults import DEFAULT_MODEL_PATH
from model.networks.keras_model import load_network

pytestmark = pytest.mark.slow

Tensor = keras.KerasTensor
RECIPE = DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5")
IMAGES = np.random.default_rng(0).normal(size=(4, 20, 20, 3)).astype(np.float32)
# The fewest units of a dense layer on 1,200 flattened values whose weights and biases are heavy.
HEAVY = -(-HEAVY_BYTES // 4 // 1201)


def network(end: Callable[[Tensor], Tensor]) -> keras.Model:
    inputs = keras.Input((20, 20, 3))
    return keras.Model(inputs, end(layers.Conv2D(3, 3, padding="same")(inputs)))


def dense(units: int) -> Callable[[Tensor], Tensor]:
    return lambda x: layers.Dense(units, "softmax")(layers.Flatten()(x))


def test_body_and_head_are_equivalent_to_the_network() -> None:
    def end(x: Tensor) -> Tensor:
        x = layers.Dense(HEAVY, "elu")(layers.Flatten()(x))
        x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
        return layers.Softmax()(layers.Activation("tanh")(layers.Dense(3)(x)))

    built = network(end)
    parts = split_heavy_head(built)
    assert parts is not None
    flattened = parts.body.predict(IMAGES, verbose=0)
    assert flattened.shape == (4, 1200)
    answers = parts.head.predict(flattened, verbose=0)
    assert np.array_equal(answers, built.predict(IMAGES, verbose=0))
    assert len(np.unique(answers)) > 3, "the test requires outputs that differ"


def test_head_is_split_only_if_it_is_heavy() -> None:
    assert split_heavy_head(network(dense(HEAVY - 1))) is None
    assert split_heavy_head(network(dense(HEAVY))) is not None


def test_sequential_network_is_split_too() -> None:
    built = keras.Sequential([keras.Input((20, 20, 3)), layers.Flatten(), layers.Dense(HEAVY, "softmax")])
    parts = split_heavy_head(built)
    assert parts is not None
    answers = parts.head.predict(parts.body.predict(IMAGES, verbose=0), verbose=0)
    assert np.array_equal(answers, built.predict(IMAGES, verbose=0))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: layers.Dense(1 << 20)(layers.GlobalAveragePooling2D()(x)),
        lambda x: layers.Add()([dense(HEAVY)(x), dense(HEAVY)(x)]),
        lambda x: [dense(HEAVY)(x), layers.Flatten()(x)],
        lambda x: layers.Reshape((HEAVY,))(dense(HEAVY)(x)),
        lambda x: layers.Softmax(axis=0)(dense(HEAVY)(x)),
        lambda x: layers.UnitNormalization()(dense(HEAVY)(x)),
        lambda x: type("Mixing", (layers.Dense,), {})(HEAVY)(layers.Flatten()(x)),
    ],
    ids=[
        "pooled",
        "two chains",
        "two outputs",
        "reshaped",
        "across images",
        "another layer",
        "a custom layer",
    ],
)
def test_other_ends_are_not_split(
    end: Callable[[Tensor], Tensor],
) -> None:
    assert split_heavy_head(network(end)) is None


def test_layer_called_twice_is_not_split() -> None:
    shared = layers.Dense(1200)
    assert split_heavy_head(network(lambda x: shared(shared(layers.Flatten()(x))))) is None


def test_recipe_has_a_heavy_head_and_the_shipped_network_has_none() -> None:
    assert split_heavy_head(patches_first(pool_first(load_network(RECIPE)))) is not None
    assert split_heavy_head(patches_first(pool_first(load_network(DEFAULT_MODEL_PATH)))) is None
