"""Texture statistics: means and deviations of a pretrained network's feature maps at three depths."""

from typing import Any

import keras
from keras import layers

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
