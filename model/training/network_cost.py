"""Cost of a network for one image: multiply-accumulate operations (MACs) of convolutions and dense layers."""

from collections.abc import Iterator

import keras
import numpy as np
from keras import layers


def count_macs(network: keras.Model) -> int:
    """MACs for one image. Layers without a kernel (pooling, activations, normalisation) are not counted."""
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return sum(_macs_of(layer) for layer in _layers_of(network) if isinstance(layer, counted))


def _layers_of(network: keras.Model) -> Iterator[keras.layers.Layer]:
    """The network's layers, with nested networks replaced by their layers."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer


def _macs_of(layer: keras.layers.Layer) -> int:
    """MACs of a layer. Also correct for a depthwise kernel (h, w, c, 1), which does not sum over channels."""
    places = int(np.prod(layer.output.shape[1:-1]))
    return places * int(np.prod(layer.kernel.shape))


def layers_of_weight(network: keras.Model) -> list[tuple[str, tuple[int, ...], int]]:
    """Kind, output shape and MACs of every counted layer, in order."""
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return [
        (_kind_of(layer), tuple(layer.output.shape[1:]), _macs_of(layer))
        for layer in _layers_of(network)
        if isinstance(layer, counted)
    ]


def _kind_of(layer: keras.layers.Layer) -> str:
    if isinstance(layer, layers.Dense):
        return "dense"
    kind = "depthwise" if isinstance(layer, layers.DepthwiseConv2D) else "convolution"
    height, width = layer.kernel_size
    return f"{kind} {height} x {width}, strides {layer.strides[0]}"
