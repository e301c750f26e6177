"""What one image costs a network: multiply-accumulate operations of its convolutions and dense layers."""

import keras
import numpy as np
from keras import layers


def count_macs(network: keras.Model) -> int:
    """For one image; what has no kernel (pooling, activations, normalisation) is not counted."""
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return sum(_macs_of(layer) for layer in network.layers if isinstance(layer, counted))


def _macs_of(layer: keras.layers.Layer) -> int:
    """A depthwise kernel (h, w, c, 1) holds no sum over channels, so it counts the same way."""
    places = int(np.prod(layer.output.shape[1:-1]))
    return places * int(np.prod(layer.kernel.shape))
