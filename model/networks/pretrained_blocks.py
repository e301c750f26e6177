"""The pretrained network: the first eight blocks of EfficientNet-Lite0, complete or with fewer filters.

Texture statistics are means and deviations of their feature maps at three depths. Of a classifier on them,
only the last layer is fitted. A deviation is a mean over positions too, of squared deviations divided by it.
The classifier therefore ends in global average pooling and one dense layer, which gives evidence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from model.arrays import Floats
from model.image import ImageSpec

WEIGHTS = "pretrained/efficientnet_lite0.npz"
NORM_EPSILON = 1e-3
PIXEL_SCALE, PIXEL_OFFSET = 1 / 128, -127 / 128
"""The scaling of pixels 0..255 that it was trained with."""


@dataclass(frozen=True)
class Block:
    """An inverted residual block. `expanded` is None if it does not expand, like the first."""

    kernel: int
    strides: int
    expanded: int | None
    filters: int


@dataclass(frozen=True)
class Convolution:
    """A kernel in Keras's layout, and its batch normalisation (4, c): gamma, beta, mean, variance."""

    kernel: Floats
    norm: Floats

    def folded(self, *, depthwise: bool) -> list[Floats]:
        """Kernel and bias of an equal convolution without normalisation."""
        gamma, beta, mean, variance = self.norm
        factor = gamma / np.sqrt(variance + NORM_EPSILON)
        shape = (-1, 1) if depthwise else (-1,)
        return [self.kernel * factor.reshape(shape), beta - mean * factor]


STEM_FILTERS = 32
BLOCKS = (
    Block(3, 1, None, 16),
    Block(3, 2, 96, 24),
    Block(3, 1, 144, 24),
    Block(5, 2, 144, 40),
    Block(5, 1, 240, 40),
    Block(3, 2, 240, 80),
    Block(3, 1, 480, 80),
    Block(3, 1, 480, 80),
)


def load_convolutions(channels: int, stem_filters: int, blocks: tuple[Block, ...]) -> list[Convolution]:
    """Weights, in the order of the layers, of a network with the same or fewer filters inside its blocks.

    Keeps the filters with the largest weights in the next layer. For a single channel, the stem's kernels are
    summed over colours.
    """
    # A warehouse imports this package from a zip.
    content = files("model.networks").joinpath(WEIGHTS).read_bytes()
    with np.load(BytesIO(content)) as weights:
        kept = _strongest(np.abs(weights["block0/project/kernel"][0, 0]).sum(axis=1), stem_filters)
        kernel = weights["stem/kernel"][..., kept]
        if channels == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        found = [Convolution(kernel, weights["stem/norm"][:, kept])]
        for number, block in enumerate(blocks):
            found += _load_block(weights, number, block, kept)
    return found


def apply_block(
    x: keras.KerasTensor, block: Block, convolve: Callable[..., keras.KerasTensor]
) -> keras.KerasTensor:
    """Apply a block to features; `convolve(x, layer type, *size, active, strides)` adds one convolution."""
    before = x
    if block.expanded is not None:
        x = convolve(x, layers.Conv2D, block.expanded, 1)
    x = convolve(x, layers.DepthwiseConv2D, block.kernel, strides=block.strides)
    x = convolve(x, layers.Conv2D, block.filters, 1, active=False)
    return layers.Add()([before, x]) if before.shape == x.shape else x


def _load_block(
    weights: "np.lib.npyio.NpzFile", number: int, block: Block, arriving: NDArray[np.intp]
) -> list[Convolution]:
    def part(name: str) -> Convolution:
        prefix = f"block{number}/{name}"
        return Convolution(weights[f"{prefix}/kernel"], weights[f"{prefix}/norm"])

    depthwise, project = part("depthwise"), part("project")
    kept, found = arriving, []
    if block.expanded is not None:
        importance = np.linalg.norm(project.kernel[0, 0], axis=1) * np.abs(depthwise.norm[0])
        kept = _strongest(importance, block.expanded)
        expand = part("expand")
        found.append(Convolution(expand.kernel[..., kept], expand.norm[:, kept]))
    found.append(Convolution(depthwise.kernel[:, :, kept], depthwise.norm[:, kept]))
    found.append(Convolution(project.kernel[:, :, kept], project.norm))
    return found


def _strongest(importance: Floats, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, in ascending order."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])


DEPTHS = (2, 4, 7)
"""The blocks whose feature maps are summarised."""
DEVIATION_FLOOR = 1e-6
DETECTOR_SIDE = 96
"""Side in pixels at which they are computed to detect out-of-distribution images. It bounds their cost: 29 M
MACs, a tenth of MobileNetV2's, for a network of any size.
"""
STATISTICS = 2 * sum(BLOCKS[depth].filters for depth in DEPTHS)
"""How many an image has."""


def detector_network(image: ImageSpec, scale: float = 1.0) -> keras.Model:
    """What novelty scores: the statistics (n, STATISTICS) at DETECTOR_SIDE, of unit length at each depth.

    Pixels 0..255 arrive multiplied by `scale`. Without the unit length, an image of low contrast is close to
    every class, as all its statistics are small.
    """
    inputs = keras.Input(image.shape)
    resized = layers.Resizing(DETECTOR_SIDE, DETECTOR_SIDE)(inputs)
    scaled = layers.UnitNormalization()
    return keras.Model(
        inputs, {"statistics": layers.Concatenate()([scaled(each) for each in _statistics(resized, scale)])}
    )


def statistics_network(image: ImageSpec) -> keras.Model:
    """The pretrained blocks, with folded normalisation, ending in statistics (n, STATISTICS)."""
    inputs, features = _pooled_features(image)
    return keras.Model(inputs, {"statistics": layers.GlobalAveragePooling2D()(features)})


def statistics_classifier(image: ImageSpec, num_classes: int) -> keras.Model:
    """The same network with one dense layer (STATISTICS, num_classes) and a softmax after the statistics."""
    inputs, features = _pooled_features(image)
    statistics = layers.GlobalAveragePooling2D()(features)
    outputs = layers.Dense(num_classes, activation="softmax")(statistics)
    return keras.Model(inputs, outputs, name="frozen")


def feature_maps(x: keras.KerasTensor, scale: float = 1.0) -> list[keras.KerasTensor]:
    """The pretrained blocks, with folded normalisation: feature maps (n, h, w, d) at each of DEPTHS."""
    convolutions = iter(load_convolutions(x.shape[-1], STEM_FILTERS, BLOCKS))

    def convolve(x: keras.KerasTensor, kind: type, *size: int, active: bool = True, **more: Any) -> Any:
        layer = kind(*size, padding="same", **more)
        x = layer(x)
        layer.set_weights(next(convolutions).folded(depthwise=kind is layers.DepthwiseConv2D))
        return layers.ReLU(6)(x) if active else x

    x = layers.Rescaling(PIXEL_SCALE / scale, PIXEL_OFFSET)(x)
    x = convolve(x, layers.Conv2D, STEM_FILTERS, 3, strides=2)
    maps = []
    for depth, block in enumerate(BLOCKS):
        x = apply_block(x, block, convolve)
        if depth in DEPTHS:
            maps.append(x)
    return maps


def _statistics(x: keras.KerasTensor, scale: float) -> list[keras.KerasTensor]:
    """Means and deviations (n, 2 d) at each depth."""
    statistics = []
    for features in feature_maps(x, scale):
        deviation = keras.ops.sqrt(keras.ops.var(features, axis=(1, 2)) + DEVIATION_FLOOR)
        statistics.append(layers.Concatenate()([keras.ops.mean(features, axis=(1, 2)), deviation]))
    return statistics


def _pooled_features(image: ImageSpec) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Images (n, h, w, c), 0..255, and features (n, h / 16, w / 16, STATISTICS), averaging to statistics."""
    inputs = keras.Input(image.shape)
    maps = [each for features in feature_maps(inputs) for each in (features, _deviations(features))]
    grid = maps[-1].shape[1:3]
    return inputs, layers.Concatenate()([_pool_to(features, grid) for features in maps])


def _deviations(x: keras.KerasTensor) -> keras.KerasTensor:
    """Features of which the mean over positions is the standard deviation of x."""
    # An .h5 does not keep the axes of Keras's operations, but those of its layers.
    differences = layers.Subtract()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)])
    squares = layers.Multiply()([differences, differences])
    variances = layers.GlobalAveragePooling2D(keepdims=True)(squares)
    return squares / keras.ops.sqrt(variances + DEVIATION_FLOOR)


def _pool_to(x: keras.KerasTensor, grid: tuple[int, int]) -> keras.KerasTensor:
    """Average x (n, h, w, d) to a coarser grid; zeros around it keep the weights of all positions equal."""
    strides = tuple(-(-side // coarse) for side, coarse in zip(x.shape[1:3], grid, strict=True))
    if strides == (1, 1):
        return x
    missing = [coarse * s - side for side, coarse, s in zip(x.shape[1:3], grid, strides, strict=True)]
    padding = tuple((total // 2, total - total // 2) for total in missing)
    return layers.AveragePooling2D(strides, strides)(layers.ZeroPadding2D(padding)(x))
