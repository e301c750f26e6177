"""Build, load and save networks. Builders map (image spec, number of classes) to a keras.Model."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from model.array_json import PackedArray
from model.artifact import ArtifactCard
from model.errors import ArtifactError, TrainingError
from model.image import ImageSpec
from model.networks.texture_cnn import texture_cnn


def recipe_cnn(image: ImageSpec, num_classes: int) -> keras.Model:
    """The published recipe: a dilated CNN, 3.45 M parameters and 44 M MACs at 200 x 200 x 3.

    The published script divides pixels by 255 outside the network, but not when it predicts; here, the
    network does it.
    """
    return keras.Sequential(
        [
            keras.Input(image.shape),  # (n, 200, 200, 3)
            layers.Rescaling(1 / 255),
            layers.Conv2D(64, 2, strides=2, activation="elu"),  # (n, 100, 100, 64)
            layers.MaxPooling2D(2),  # (n, 50, 50, 64)
            layers.Conv2D(128, 2, strides=2, activation="elu"),  # (n, 25, 25, 128)
            layers.MaxPooling2D(2),  # (n, 12, 12, 128)
            layers.Conv2D(256, 2, dilation_rate=2, activation="elu"),  # (n, 10, 10, 256)
            layers.MaxPooling2D(2),  # (n, 5, 5, 256)
            layers.Flatten(),
            layers.Dense(512, activation="elu"),
            layers.Dropout(0.3),
            layers.Dense(num_classes, activation="softmax"),
        ],
        name="recipe",
    )


NETWORKS: dict[str, Callable[[ImageSpec, int], keras.Model]] = {"recipe": recipe_cnn, "texture": texture_cnn}


def build_network(name: str, image: ImageSpec, num_classes: int) -> keras.Model:
    """Build an untrained network by name. Raises TrainingError for an unknown name."""
    if name not in NETWORKS:
        raise TrainingError(f"A network must be one of {', '.join(NETWORKS)}. Received: {name}.")
    return NETWORKS[name](image, num_classes)


def load_network(h5_path: Path) -> keras.Model:
    """Load a Keras .h5 for inference.

    Raises ArtifactError if the file contains code: Keras ignores safe_mode for .h5 (CVE-2025-9905), so the
    layers are checked before any of them is built.
    """
    try:
        _refuse_lambda(h5_path)
        return keras.models.load_model(h5_path, compile=False)
    except ArtifactError:
        raise
    # For a broken file, Keras and h5py raise many types of exceptions.
    except Exception as error:
        raise ArtifactError(f"{h5_path} is not a Keras .h5 model: {error}") from error


def save_network(network: keras.Model, h5_path: Path) -> None:
    """Write a Keras .h5 without the state of the optimizer, which inference does not need."""
    # Keras warns at each save that .h5 is a legacy format.
    logging.disable(logging.WARNING)
    try:
        network.save(h5_path, include_optimizer=False)
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Head:
    """The end of a network: global average pooling and one dense layer, so scores are sums over positions."""

    features: keras.KerasTensor
    """(n, gh, gw, d), before pooling."""
    embedding: keras.KerasTensor
    """(n, d), after pooling."""
    class_weights: NDArray[np.float32]
    """(d, k)."""


def find_head(network: keras.Model) -> Head | None:
    """Head of a network that ends in pooling and a dense layer, dropout and softmax allowed; else None."""
    end = [layer for layer in network.layers if not isinstance(layer, layers.Dropout | layers.Softmax)]
    match end[-2:]:
        case [layers.GlobalAveragePooling2D() as pooling, layers.Dense() as dense]:
            if pooling.keepdims or pooling.data_format != "channels_last":
                return None
            weights = keras.ops.convert_to_numpy(dense.kernel)
            return Head(pooling.input, pooling.output, weights)
    return None


def named_outputs(network: keras.Model) -> dict[str, keras.KerasTensor]:
    """`probabilities` and, if the network has a head, `embedding` and `features`."""
    [probabilities] = network.outputs
    head = find_head(network)
    shown = {} if head is None else {"embedding": head.embedding, "features": head.features}
    return {"probabilities": probabilities, **shown}


def class_weights_of(network: keras.Model) -> PackedArray | None:
    """The head's weights (d, k) for the card, or None without a head."""
    head = find_head(network)
    return None if head is None else PackedArray.pack(head.class_weights)


def refuse_mismatch(network: keras.Model, card: ArtifactCard) -> None:
    """Raise ArtifactError if the network's input or output shape differs from the card's."""
    expected = (None, *card.image.shape), (None, len(card.class_names))
    actual = network.input_shape, network.output_shape
    if expected != actual:
        raise ArtifactError(
            f"The network's input and output shapes must match its card: {expected[0]} and {expected[1]}. "
            f"Received: {actual[0]} and {actual[1]}."
        )


def _refuse_lambda(h5_path: Path) -> None:
    with h5py.File(h5_path, "r") as file:
        config = json.loads(file.attrs["model_config"])
    if "Lambda" in _class_names(config):
        raise ArtifactError(f"A network must not contain code. Received: a Lambda layer in {h5_path}.")


def _class_names(config: object) -> set[str]:
    """Every `class_name` anywhere in a Keras configuration."""
    if isinstance(config, dict):
        own = {config["class_name"]} if isinstance(config.get("class_name"), str) else set()
        return own.union(*map(_class_names, config.values()))
    if isinstance(config, list):
        return set().union(*map(_class_names, config))
    return set()
