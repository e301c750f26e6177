"""Load and save Keras networks, and what the service, the card and the report read of them."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from model.array_json import ArrayJson
from model.artifact import ArtifactCard
from model.errors import ArtifactError


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


def class_weights_of(network: keras.Model) -> ArrayJson | None:
    """The head's weights (d, k) for the card, or None without a head."""
    head = find_head(network)
    return None if head is None else ArrayJson.from_array(head.class_weights)


def refuse_mismatch(network: keras.Model, card: ArtifactCard) -> None:
    """Raise ArtifactError if the network's input or output shape differs from the card's."""
    expected = (None, *card.image.shape), (None, len(card.class_names))
    actual = network.input_shape, network.output_shape
    if expected != actual:
        raise ArtifactError(
            f"The network's input and output shapes must match its card: {expected[0]} and {expected[1]}. "
            f"Received: {actual[0]} and {actual[1]}."
        )


class LayerCost(NamedTuple):
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    """Multiply-accumulate operations for one image."""


def layer_costs(network: keras.Model) -> list[LayerCost]:
    """Cost of every convolution and dense layer, in order; pooling, activations and so on are not counted."""
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return [_cost_of(layer) for layer in _layers_of(network) if isinstance(layer, counted)]


def count_macs(network: keras.Model) -> int:
    """Multiply-accumulate operations for one image."""
    return sum(cost.macs for cost in layer_costs(network))


def _layers_of(network: keras.Model) -> Iterator[keras.layers.Layer]:
    """The network's layers, with nested networks replaced by their layers."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer


def _cost_of(layer: keras.layers.Layer) -> LayerCost:
    output_shape = tuple(layer.output.shape[1:])
    # Also correct for a depthwise kernel (h, w, c, 1), which does not sum over channels.
    macs = int(np.prod(output_shape[:-1])) * int(np.prod(layer.kernel.shape))
    return LayerCost(_kind_of(layer), output_shape, macs)


def _kind_of(layer: keras.layers.Layer) -> str:
    if isinstance(layer, layers.Dense):
        return "dense"
    kind = "depthwise" if isinstance(layer, layers.DepthwiseConv2D) else "convolution"
    height, width = layer.kernel_size
    return f"{kind} {height} x {width}, strides {layer.strides[0]}"


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
