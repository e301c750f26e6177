"""A classifier on texture statistics of the frozen pretrained network; only its last layer is fitted.

The statistics are means and standard deviations of feature maps at three depths. A deviation is a mean over
positions too, of squared deviations divided by it. The network therefore ends in global average pooling and
one dense layer, which gives evidence.
"""

import keras
from keras import layers, ops

from model.image import ImageSpec
from model.networks.texture_statistics import DEVIATION_FLOOR, feature_maps


def statistics_network(image: ImageSpec) -> keras.Model:
    """The pretrained blocks, with folded normalisation, ending in statistics (n, STATISTICS)."""
    inputs, features = _features(image)
    return keras.Model(inputs, {"statistics": layers.GlobalAveragePooling2D()(features)})


def statistics_classifier(image: ImageSpec, num_classes: int) -> keras.Model:
    """The same network with one dense layer (STATISTICS, num_classes) and a softmax after the statistics."""
    inputs, features = _features(image)
    statistics = layers.GlobalAveragePooling2D()(features)
    outputs = layers.Dense(num_classes, activation="softmax")(statistics)
    return keras.Model(inputs, outputs, name="frozen")


def _features(image: ImageSpec) -> tuple[keras.KerasTensor, keras.KerasTensor]:
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
    return squares / ops.sqrt(variances + DEVIATION_FLOOR)


def _pool_to(x: keras.KerasTensor, grid: tuple[int, int]) -> keras.KerasTensor:
    """Average x (n, h, w, d) to a coarser grid; zeros around it keep the weights of all positions equal."""
    strides = tuple(-(-side // coarse) for side, coarse in zip(x.shape[1:3], grid, strict=True))
    if strides == (1, 1):
        return x
    missing = [coarse * s - side for side, coarse, s in zip(x.shape[1:3], grid, strides, strict=True)]
    padding = tuple((total // 2, total - total // 2) for total in missing)
    return layers.AveragePooling2D(strides, strides)(layers.ZeroPadding2D(padding)(x))
