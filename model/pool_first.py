"""Graph rewrite: max-pooling moves before an activation that is monotonically increasing.

For such an f, the maximum of f(x) is f of the maximum of x, so pooling first leaves f a quarter of its
values. LiteRT computes ELU and similar activations value by value; ReLU is free.
"""

from collections import Counter
from typing import Any

import keras
from keras import layers

RISING = ("elu", "selu", "sigmoid", "tanh", "softplus")
_SUFFIX = "_after_pooling"


def pool_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network with the same weights, or the same network if nothing can be rewritten."""
    # A clone, so that layers have calls in this graph only; functional, as a Sequential shows no calls.
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
    for layer in network.layers:  # by name, as the added layer may change the order
        if layer.weights:
            rewritten.get_layer(layer.name).set_weights(layer.get_weights())
    return rewritten


def _pairs(graph: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Each convolution with an increasing activation that only a max-pooling consumes, and that pooling."""
    consumers = Counter(
        id(tensor) for layer in graph.layers for node in calls_of(layer) for tensor in node.input_tensors
    )
    consumers.update(id(tensor) for tensor in graph.outputs)
    called_once = [layer for layer in graph.layers if len(calls_of(layer)) == 1]
    rising = {
        id(layer.output): layer
        for layer in called_once
        if isinstance(layer, layers.Conv2D)
        and keras.activations.serialize(layer.activation) in RISING
        and consumers[id(layer.output)] == 1
    }
    return [
        (rising[id(layer.input)], layer)
        for layer in called_once
        if isinstance(layer, layers.MaxPooling2D) and id(layer.input) in rising
    ]


def calls_of(layer: keras.Layer) -> list[Any]:
    """The graph nodes at which a layer is called."""
    calls: list[Any] = layer._inbound_nodes  # noqa: SLF001 - Keras has no public API for it
    return calls
