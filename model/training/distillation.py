"""Distillation: texture statistics of a pretrained network, which a smaller network learns to predict.

They are means and standard deviations of its feature maps at three depths, without any classes. A linear
classifier on these alone classifies defects of hot-rolled steel better than a small network trained from
scratch.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from model.compile import convert
from model.engines import LiteRtClassifier
from model.image import ImageSpec
from model.networks.pretrained_blocks import (
    BLOCKS,
    PIXEL_OFFSET,
    PIXEL_SCALE,
    STEM_FILTERS,
    apply_block,
    load_convolutions,
)

DEPTHS = (2, 4, 7)
"""The blocks whose feature maps are summarised."""
DEVIATION_FLOOR = 1e-6


class TextureStatistics:
    """Map images (n, h, w, c), uint8, to texture statistics (n, SIZE), float32. Thread-safe."""

    SIZE = 2 * sum(BLOCKS[depth].filters for depth in DEPTHS)

    def __init__(self, image: ImageSpec, threads: int) -> None:
        compiled = convert(statistics_network(image), image.shape)
        # It returns the network's only output, whatever its name.
        self._network = LiteRtClassifier(compiled, scale=1.0, interpreters=threads)
        self._threads = ThreadPoolExecutor(threads, "distillation")

    def describe(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = self._threads.map(lambda image: self._network.predict(image[np.newaxis]), images)
        return np.concatenate(list(rows))


def statistics_network(image: ImageSpec) -> keras.Model:
    """The pretrained blocks, with folded normalisation, ending in means and deviations (n, SIZE)."""
    inputs = keras.Input(image.shape)
    convolutions = iter(load_convolutions(image.channels, STEM_FILTERS, BLOCKS))

    def convolve(x: keras.KerasTensor, kind: type, *size: int, active: bool = True, **more: Any) -> Any:
        layer = kind(*size, padding="same", **more)
        x = layer(x)
        layer.set_weights(next(convolutions).folded(depthwise=kind is layers.DepthwiseConv2D))
        return layers.ReLU(6)(x) if active else x

    x = layers.Rescaling(PIXEL_SCALE, PIXEL_OFFSET)(inputs)
    x = convolve(x, layers.Conv2D, STEM_FILTERS, 3, strides=2)
    statistics = []
    for depth, block in enumerate(BLOCKS):
        x = apply_block(x, block, convolve)
        if depth in DEPTHS:
            variance = keras.ops.var(x, axis=(1, 2))
            statistics += [keras.ops.mean(x, axis=(1, 2)), keras.ops.sqrt(variance + DEVIATION_FLOOR)]
    return keras.Model(inputs, {"statistics": layers.Concatenate()(statistics)})
