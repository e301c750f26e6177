"""A network in two parts, where its dense end does not fit a core's cache: the body and the heavy head.

A dense layer reads all its weights once a call, however many images it is given, and 13 MB of them take as
long as a third of the convolutions. So the head takes all images of a call together; the body, which gains
nothing from that, takes them one by one.
"""

from typing import NamedTuple

import keras
from keras import layers

from model.pool_first import calls_of

# A cache of one core holds less; what fits is read quickly, one image a call or many.
HEAVY_BYTES = 4 << 20
# Each gives an image's values from that image's alone. Not their subclasses, which may do otherwise.
_KEEP_IMAGES_APART = {
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
    """Head after body is the network."""

    body: keras.Model
    """Images to flattened values (n, d)."""
    head: keras.Model
    """Those to the network's output."""


def split_heavy_head(network: keras.Model) -> Parts | None:
    """The parts of a network that flattens and then is dense and heavy to its end; else None."""
    # Cloned, its layers know no calls but its own; seen as a graph, a Sequential has calls to follow.
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
    """The layers between the flattened values and the one output, where they are a chain of dense ones."""
    if len(graph.outputs) != 1:
        return None
    made_by = {id(layer.output): layer for layer in graph.layers if len(calls_of(layer)) == 1}
    end: list[keras.Layer] = []
    layer = made_by.get(id(graph.outputs[0]))
    while layer is not None and type(layer) in _KEEP_IMAGES_APART and getattr(layer, "axis", -1) in (-1, 1):
        end.insert(0, layer)
        layer = made_by.get(id(layer.input))
    return end if end and isinstance(layer, layers.Flatten) else None
