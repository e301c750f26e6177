"""The same network with less work: max-pooling before the activation, where the activation only rises.

The largest of f(x) is f of the largest x for every f that never falls, so pooling first leaves f a quarter
of its work. LiteRT computes ELU and its kind one by one; ReLU costs it nothing.
"""

from collections import Counter
from typing import Any

import keras
from keras import layers

RISING = ("elu", "selu", "sigmoid", "tanh", "softplus")
_SUFFIX = "_after_pooling"


def pool_first(network: keras.Model) -> keras.Model:
    """A network of the same weights and outputs; the same network where there is nothing to gain."""
    # Cloned, its layers know no calls but its own; seen as a graph, a Sequential has calls to rewrite.
    graph = keras.models.clone_model(keras.Model(network.inputs, network.outputs))
    pairs = {pool.name: activated for activated, pool in _pairs(graph)}
    if not pairs:
        return network
    made_linear = {activated.name for activated in pairs.values()}

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer.name in made_linear:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        outputs = layer(*given, **named)
        if layer.name not in pairs:
            return outputs
        return layers.Activation(pairs[layer.name].activation, name=layer.name + _SUFFIX)(outputs)

    rewritten = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer in network.layers:  # by name, for one more layer may change their order
        if layer.weights:
            rewritten.get_layer(layer.name).set_weights(layer.get_weights())
    return rewritten


def _pairs(graph: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Each convolution with a rising activation, and the max-pooling that alone takes what it gives."""
    takers = Counter(
        id(tensor) for layer in graph.layers for node in calls_of(layer) for tensor in node.input_tensors
    )
    takers.update(id(tensor) for tensor in graph.outputs)
    called_once = [layer for layer in graph.layers if len(calls_of(layer)) == 1]
    rising = {
        id(layer.output): layer
        for layer in called_once
        if isinstance(layer, layers.Conv2D)
        and keras.activations.serialize(layer.activation) in RISING
        and takers[id(layer.output)] == 1
    }
    return [
        (rising[id(layer.input)], layer)
        for layer in called_once
        if isinstance(layer, layers.MaxPooling2D) and id(layer.input) in rising
    ]


def calls_of(layer: keras.Layer) -> list[Any]:
    """The nodes of its graph at which a layer is called."""
    calls: list[Any] = layer._inbound_nodes  # noqa: SLF001 - Keras shows a layer's calls nowhere else
    return calls
