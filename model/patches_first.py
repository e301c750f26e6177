"""Graph rewrite: a first convolution over patches that do not overlap becomes a 1 x 1 convolution.

If the stride is the kernel's size, every pixel is read once, so k x k pixels of c channels can be rearranged
to one position of k * k * c channels. LiteRT multiplies long rows much faster than many rows of 3 values.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from model.pool_first import calls_of

# With more channels, the rows are long already.
MOST_CHANNELS = 4


class SpaceToDepth(layers.Layer):
    """Images (n, h, w, c) to (n, h / k, w / k, k * k * c)."""

    def __init__(self, patch: int, **given: Any) -> None:
        super().__init__(**given)
        self._patch = patch

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.nn.space_to_depth(images, self._patch)


def patches_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network, or the same network if no layer can be rewritten."""
    # A clone, so that layers have calls in this graph only; functional, as a Sequential shows no calls.
    graph = keras.models.clone_model(keras.Model(network.inputs, network.outputs))
    patches = {layer.name: layer.kernel_size[0] for layer in graph.layers if _reads_patches(layer)}
    if not patches:
        return network

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer.name in patches:
            config |= {"kernel_size": 1, "strides": 1}
        return type(layer).from_config(config)

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        if layer.name not in patches:
            return layer(*given, **named)
        return layer(SpaceToDepth(patches[layer.name], name=f"{layer.name}_patches")(*given, **named))

    rewritten = keras.models.clone_model(graph, clone_function=clone, call_function=call)
    for layer in network.layers:  # by name, as the added layer may change the order
        weights = layer.get_weights()
        if layer.name in patches:
            # (k, k, c, filters), in the order of space_to_depth.
            weights[0] = weights[0].reshape(1, 1, -1, layer.filters)
        if weights:
            rewritten.get_layer(layer.name).set_weights(weights)
    return rewritten


def _reads_patches(layer: keras.Layer) -> bool:
    # Subclasses may compute something else.
    if type(layer) is not layers.Conv2D or len(calls_of(layer)) != 1:
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
