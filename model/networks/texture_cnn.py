"""The default network: a pretrained network's first blocks with fewer filters, on standardised grey levels.

It has two forms: for training with batch normalisation, and for saving with each normalisation folded into
the convolution before it.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from model.arrays import Floats
from model.image import ImageSpec
from model.networks.pretrained_blocks import (
    NORM_EPSILON,
    PIXEL_OFFSET,
    PIXEL_SCALE,
    Block,
    Convolution,
    apply_block,
    load_convolutions,
)

STEM_FILTERS = 24
STEM_KERNEL, STEM_STRIDES = 6, 4
BLOCKS = (
    Block(3, 1, None, 16),
    Block(3, 2, 32, 24),
    Block(3, 1, 64, 24),
    Block(5, 2, 64, 40),
    Block(5, 1, 96, 40),
    Block(3, 1, 96, 80),  # stride 2 in the pretrained network; stride 1 gives evidence a finer grid
)
EMBEDDING = 96
CONTRAST_FLOOR = 0.004
"""Added to an image's variance before the division, so that noise in a blank image is not amplified."""
DROPOUT = 0.1


class FusedBatchNorm(layers.Layer):
    """Batch normalisation in one operation; on a CPU, Keras's own layer takes five times as long."""

    def __init__(self, momentum: float = 0.95, **given: Any) -> None:
        super().__init__(**given)
        self.momentum = momentum

    def build(self, shape: tuple[int | None, ...]) -> None:
        channels = shape[-1:]
        self.gamma = self.add_weight(shape=channels, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta")
        self.mean = self.add_weight(shape=channels, initializer="zeros", trainable=False, name="mean")
        self.variance = self.add_weight(shape=channels, initializer="ones", trainable=False, name="variance")

    def call(self, x: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        inputs = {"x": x, "scale": self.gamma, "offset": self.beta, "epsilon": NORM_EPSILON}
        if not training:
            moments = {"mean": self.mean, "variance": self.variance}
            return tf.raw_ops.FusedBatchNormV3(**inputs, **moments, is_training=False)[0]
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(**inputs, mean=[], variance=[], is_training=True)
        self._update_average(self.mean, mean)
        self._update_average(self.variance, variance)
        return y

    def _update_average(self, moving: Any, current: tf.Tensor) -> None:
        moving.assign(self.momentum * moving + (1 - self.momentum) * tf.stop_gradient(current))


def texture_cnn(image: ImageSpec, num_classes: int) -> keras.Model:
    """The network for saving and serving: 14.6 M MACs, 44,000 parameters at 200 x 200 x 1, 6 classes."""
    inputs = keras.Input(image.shape)
    features = _features(inputs, normalised=False)  # (n, h / 16, w / 16, 96)
    embedding = layers.GlobalAveragePooling2D()(features)  # (n, 96)
    outputs = layers.Dense(num_classes, activation="softmax")(embedding)
    return keras.Model(inputs, outputs, name="texture")


def trainable_texture_cnn(image: ImageSpec, num_classes: int) -> keras.Model:
    """The network for training, with pretrained weights: images to [logits, embedding]."""
    inputs = keras.Input(image.shape)
    embedding = layers.GlobalAveragePooling2D()(_features(inputs, normalised=True))
    logits = layers.Dense(num_classes)(layers.Dropout(DROPOUT)(embedding))
    network = keras.Model(inputs, [logits, embedding], name="texture")
    _start_from_pretrained(network, image.channels)
    return network


def fold(trained: keras.Model, image: ImageSpec, temperature: float = 1.0) -> keras.Model:
    """The network for saving: equal outputs in fewer operations, with logits divided by `temperature`."""
    folded = texture_cnn(image, trained.outputs[0].shape[-1])
    pairs = zip(_convolutions(trained), _norms(trained), _convolutions(folded), strict=True)
    for convolution, norm, target in pairs:
        [kernel] = convolution.get_weights()
        whole = Convolution(kernel, np.stack(norm.get_weights()))
        target.set_weights(whole.folded(depthwise=isinstance(convolution, layers.DepthwiseConv2D)))
    kernel, bias = trained.layers[-1].get_weights()
    folded.layers[-1].set_weights([kernel / temperature, bias / temperature])
    return folded


def _features(x: keras.KerasTensor, *, normalised: bool) -> keras.KerasTensor:
    """Images (n, h, w, c), 0..255, to features (n, gh, gw, EMBEDDING), 0..6."""

    def convolve(x: keras.KerasTensor, layer: type, *size: int, active: bool = True, **more: Any) -> Any:
        x = layer(*size, padding="same", use_bias=not normalised, **more)(x)
        x = FusedBatchNorm()(x) if normalised else x
        return layers.ReLU(6)(x) if active else x

    x = layers.Rescaling(PIXEL_SCALE, PIXEL_OFFSET)(x)
    x = _standardise(x)
    x = convolve(x, layers.Conv2D, STEM_FILTERS, STEM_KERNEL, strides=STEM_STRIDES)
    for block in BLOCKS:
        x = apply_block(x, block, convolve)
    return convolve(x, layers.Conv2D, EMBEDDING, 1)


def _standardise(x: keras.KerasTensor) -> keras.KerasTensor:
    """Give each image mean 0 and variance 1, so that brightness and contrast have no effect.

    Normalises a flat row of pixels: over several axes, Keras's layer normalisation does not survive an .h5,
    and its group normalisation takes as long as the rest of the network.
    """
    shape = x.shape[1:]
    x = layers.Reshape((-1,))(x)
    x = layers.LayerNormalization(center=False, scale=False, epsilon=CONTRAST_FLOOR)(x)
    return layers.Reshape(shape)(x)


def _start_from_pretrained(network: keras.Model, channels: int) -> None:
    """Set pretrained weights, except in the last convolution, which the pretrained network lacks."""
    pretrained = load_convolutions(channels, STEM_FILTERS, BLOCKS)
    pretrained[0] = Convolution(_enlarge(pretrained[0].kernel), pretrained[0].norm)
    targets = zip(pretrained, _convolutions(network), _norms(network), strict=False)
    for weights, convolution, norm in targets:
        convolution.set_weights([weights.kernel])
        norm.set_weights(list(weights.norm))


def _enlarge(kernel: Floats) -> Floats:
    """Convert a kernel 3 x 3 with stride 2, for an image halved by averaging, to 6 x 6 with stride 4."""
    return kernel.repeat(2, axis=0).repeat(2, axis=1) / np.float32(4)


def _convolutions(network: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in network.layers if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)]


def _norms(network: keras.Model) -> list[FusedBatchNorm]:
    return [layer for layer in network.layers if isinstance(layer, FusedBatchNorm)]
