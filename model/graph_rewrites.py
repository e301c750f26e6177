"""Graph rewrites that make a compiled network faster and keep its outputs the same.

- `pool_first`: max-pooling before an increasing activation, which then has fewer values to compute.
- `patches_first`: a first convolution over patches that do not overlap becomes a 1 x 1 convolution.
- `split_heavy_head`: dense layers with many weights become a network of their own, which runs once per call.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import layers

RISING = ("elu", "selu", "sigmoid", "tanh", "softplus")
_SUFFIX = "_after_pooling"
# With more channels, the rows are long already.
MOST_CHANNELS = 4
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


def pool_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network with the same weights, or the same network if nothing can be rewritten."""
    graph = _functional_clone(network)
    pairs = {pool.name: activated for activated, pool in _pairs(graph)}
    if not pairs:
        return network
    made_linear = {activated.name for activated in pairs.values()}

    def change(layer: keras.Layer) -> dict[str, Any]:
        return {"activation": "linear"} if layer.name in made_linear else {}

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        outputs = layer(*given, **named)
        if layer.name not in pairs:
            return outputs
        return layers.Activation(pairs[layer.name].activation, name=layer.name + _SUFFIX)(outputs)

    rewritten = _rewrite(graph, change, call)
    for layer in network.layers:
        _set_weights(rewritten, layer.name, layer.get_weights())
    return rewritten


def patches_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network, or the same network if no layer can be rewritten.

    If the stride is the kernel's size, every pixel is read once, so k x k pixels of c channels can be
    rearranged to one position of k * k * c channels. LiteRT multiplies long rows much faster than many rows
    of 3 values.
    """
    graph = _functional_clone(network)
    patches = {layer.name: layer.kernel_size[0] for layer in graph.layers if _reads_patches(layer)}
    if not patches:
        return network

    def change(layer: keras.Layer) -> dict[str, Any]:
        return {"kernel_size": 1, "strides": 1} if layer.name in patches else {}

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        if layer.name not in patches:
            return layer(*given, **named)
        return layer(SpaceToDepth(patches[layer.name], name=f"{layer.name}_patches")(*given, **named))

    rewritten = _rewrite(graph, change, call)
    for layer in network.layers:
        weights = layer.get_weights()
        if layer.name in patches:
            # (k, k, c, filters), in the order of space_to_depth.
            weights[0] = weights[0].reshape(1, 1, -1, layer.filters)
        _set_weights(rewritten, layer.name, weights)
    return rewritten


class Parts(NamedTuple):
    """Two networks; applying `head` to the output of `body` is equivalent to the whole network."""

    body: keras.Model
    """Images to flattened values (n, d)."""
    head: keras.Model
    """Flattened values to the network's output."""


def split_heavy_head(network: keras.Model) -> Parts | None:
    """Split a network that ends in Flatten and a heavy chain of dense layers; None for any other network."""
    graph = _functional_clone(network)
    end = _after_flatten(graph)
    if end is None or sum(layer.count_params() for layer in end) * 4 < HEAVY_BYTES:
        return None
    for layer in network.layers:
        _set_weights(graph, layer.name, layer.get_weights())
    flattened = end[0].input
    head_input = keras.Input(flattened.shape[1:])
    outputs = head_input
    for layer in end:
        outputs = layer(outputs)
    return Parts(keras.Model(graph.inputs, flattened), keras.Model(head_input, outputs))


class SpaceToDepth(layers.Layer):
    """Images (n, h, w, c) to (n, h / k, w / k, k * k * c)."""

    def __init__(self, patch: int, **given: Any) -> None:
        super().__init__(**given)
        self._patch = patch

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.nn.space_to_depth(images, self._patch)


def _functional_clone(network: keras.Model) -> keras.Model:
    """A clone whose layers have calls in this graph only; functional, as a Sequential shows no calls."""
    return keras.models.clone_model(keras.Model(network.inputs, network.outputs))


def _rewrite(
    graph: keras.Model,
    change: Callable[[keras.Layer], dict[str, Any]],
    call: Callable[..., keras.KerasTensor],
) -> keras.Model:
    """A clone without weights, with the changes to the configuration of each layer, called by `call`."""

    def clone(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | change(layer))

    return keras.models.clone_model(graph, clone_function=clone, call_function=call)


def _set_weights(network: keras.Model, layer_name: str, weights: list[Any]) -> None:
    # By name, as an added layer may change the order.
    if weights:
        network.get_layer(layer_name).set_weights(weights)


def _pairs(graph: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Each convolution with an increasing activation that only a max-pooling consumes, and that pooling."""
    consumers = Counter(
        id(tensor) for layer in graph.layers for node in _calls_of(layer) for tensor in node.input_tensors
    )
    consumers.update(id(tensor) for tensor in graph.outputs)
    called_once = [layer for layer in graph.layers if len(_calls_of(layer)) == 1]
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


def _reads_patches(layer: keras.Layer) -> bool:
    # Subclasses may compute something else.
    if type(layer) is not layers.Conv2D or len(_calls_of(layer)) != 1:
        return False
    _, height, width, channels = layer.input.shape
    patch = layer.kernel_size[0]
    return bool(
        patch > 1
        and layer.kernel_size == layer.strides == (patch, patch)
        and layer.dilation_rate == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and channels <= MOST_CHANNELS
        and height is not None
        and width is not None
        and height % patch == width % patch == 0
    )


def _after_flatten(graph: keras.Model) -> list[keras.Layer] | None:
    """Layers from Flatten to the single output if they are a chain of per-image layers, else None."""
    if len(graph.outputs) != 1:
        return None
    made_by = {id(layer.output): layer for layer in graph.layers if len(_calls_of(layer)) == 1}
    end: list[keras.Layer] = []
    layer = made_by.get(id(graph.outputs[0]))
    while layer is not None and type(layer) in _PER_IMAGE_LAYERS and getattr(layer, "axis", -1) in (-1, 1):
        end.insert(0, layer)
        layer = made_by.get(id(layer.input))
    return end if end and isinstance(layer, layers.Flatten) else None


def _calls_of(layer: keras.Layer) -> list[Any]:
    """The graph nodes at which a layer is called."""
    calls: list[Any] = layer._inbound_nodes  # noqa: SLF001 - Keras has no public API for it
    return calls
