"""Split a network whose dense layers exceed a core's cache into a body and a heavy head.

A dense layer reads all its weights once per call, for any number of images, and reading 13 MB takes as
long as a third of the convolutions. The head therefore runs once for all images of a call; the body, which
does not benefit from batches, runs once per image.
"""

from typing import NamedTuple

import keras
from keras import layers

from model.pool_first import calls_of

# More than the cache of one core holds. Weights that fit are fast to read at any number of images per call.
HEAVY_BYTES = 4 << 20
# Layers that process each image independently. Subclasses are excluded, as they may mix images.
_PER_IMAGE_LAYERS = {
    layers.Dense,
    layers.Dropout,
    layers.Activation,
    layers.ELU,
    layers.ReLU,
    layers.LeakyReLU,
    layers.Softmax,
    layers.BatchNormalization,
}


class Parts(NamedTuple):
    """Two networks; applying `head` to the output of `body` is equivalent to the whole network."""

    body: keras.Model
    """Images to flattened values (n, d)."""
    head: keras.Model
    """Flattened values to the network's output."""


def split_heavy_head(network: keras.Model) -> Parts | None:
    """Split a network that ends in Flatten and a heavy chain of dense layers; None for any other network."""
    # A clone, so that layers have calls in this graph only; functional, as a Sequential shows no calls.
    graph = keras.models.clone_model(keras.Model(network.inputs, network.outputs))
    end = _after_flatten(graph)
    if end is None or sum(layer.count_params() for layer in end) * 4 < HEAVY_BYTES:
        return None
    for layer in network.layers:
        if layer.weights:
            graph.get_layer(layer.name).set_weights(layer.get_weights())
    flattened = end[0].input
    head_input = keras.Input(flattened.shape[1:])
    outputs = head_input
    for layer in end:
        outputs = layer(outputs)
    return Parts(keras.Model(graph.inputs, flattened), keras.Model(head_input, outputs))


def _after_flatten(graph: keras.Model) -> list[keras.Layer] | None:
    """Layers from Flatten to the single output if they are a chain of per-image layers, else None."""
    if len(graph.outputs) != 1:
        return None
    made_by = {id(layer.output): layer for layer in graph.layers if len(calls_of(layer)) == 1}
    end: list[keras.Layer] = []
    layer = made_by.get(id(graph.outputs[0]))
    while layer is not None and type(layer) in _PER_IMAGE_LAYERS and getattr(layer, "axis", -1) in (-1, 1):
        end.insert(0, layer)
        layer = made_by.get(id(layer.input))
    return end if end and isinstance(layer, layers.Flatten) else None
