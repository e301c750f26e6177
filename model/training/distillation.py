"""Teacher for distillation: a pretrained network's texture statistics, which a smaller network imitates.

They are means and standard deviations of its feature maps at three depths, without any classes. A linear
classifier on these alone classifies defects of hot-rolled steel better than a small network trained from
scratch.
"""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from numpy.typing import NDArray

from model.compile import convert
from model.image import ImageSpec
from model.networks.pretrained_blocks import (
    BLOCKS,
    NORM_EPSILON,
    PIXEL_OFFSET,
    PIXEL_SCALE,
    STEM_FILTERS,
    load_convolutions,
)

DEPTHS = (2, 4, 7)
"""The blocks whose feature maps are summarised."""
DEVIATION_FLOOR = 1e-6


class Teacher:
    """Map images (n, h, w, c) to texture statistics (n, STATISTICS), float32. Thread-safe."""

    STATISTICS = 2 * sum(BLOCKS[depth].filters for depth in DEPTHS)

    def __init__(self, image: ImageSpec, threads: int) -> None:
        compiled = convert(teacher_network(image), image.shape)
        self._idle: queue.LifoQueue[Callable[[NDArray[np.float32]], NDArray[np.float32]]] = queue.LifoQueue()
        for _ in range(threads):
            self._idle.put(_open(compiled))
        self._threads = ThreadPoolExecutor(threads, "teacher")

    def describe(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        return np.stack(list(self._threads.map(self._describe_one, images)))

    def _describe_one(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        describe = self._idle.get()
        try:
            return describe(image.astype(np.float32))
        finally:
            self._idle.put(describe)


def teacher_network(image: ImageSpec) -> keras.Model:
    """The pretrained blocks, with folded normalisation, ending in means and deviations (n, STATISTICS)."""
    inputs = keras.Input(image.shape)
    convolutions = iter(load_convolutions(image.channels, STEM_FILTERS, BLOCKS))

    def convolve(x: keras.KerasTensor, layer: layers.Layer, *, active: bool = True) -> keras.KerasTensor:
        weights = next(convolutions)
        gamma, beta, mean, variance = weights.norm
        factor = gamma / np.sqrt(variance + NORM_EPSILON)
        shape = (-1, 1) if isinstance(layer, layers.DepthwiseConv2D) else (-1,)
        folded = [weights.kernel * factor.reshape(shape), beta - mean * factor]
        x = layer(x)
        layer.set_weights(folded)
        return layers.ReLU(6)(x) if active else x

    x = layers.Rescaling(PIXEL_SCALE, PIXEL_OFFSET)(inputs)
    x = convolve(x, layers.Conv2D(STEM_FILTERS, 3, strides=2, padding="same"))
    statistics = []
    for depth, block in enumerate(BLOCKS):
        before = x
        if block.expanded is not None:
            x = convolve(x, layers.Conv2D(block.expanded, 1))
        x = convolve(x, layers.DepthwiseConv2D(block.kernel, strides=block.strides, padding="same"))
        x = convolve(x, layers.Conv2D(block.filters, 1), active=False)
        if before.shape == x.shape:
            x = layers.Add()([before, x])
        if depth in DEPTHS:
            variance = keras.ops.var(x, axis=(1, 2))
            statistics += [keras.ops.mean(x, axis=(1, 2)), keras.ops.sqrt(variance + DEVIATION_FLOOR)]
    return keras.Model(inputs, {"statistics": layers.Concatenate()(statistics)})


def _open(compiled: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    interpreter = Interpreter(model_content=compiled, num_threads=1)
    interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]

    def describe(image: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(input_index, image[np.newaxis])
        interpreter.invoke()
        statistics: NDArray[np.float32] = interpreter.get_tensor(output_index)[0]
        return statistics

    return describe
