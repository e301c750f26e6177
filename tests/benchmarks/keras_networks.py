"""Make networks of keras.applications, as users import them: python -m tests.benchmarks.keras_networks H5.

Random weights, six classes, 224 x 224 in colour, preprocessing inside. The file's name says which network.
The card and the compiled file lie next to it, as `ext-classify import` makes them.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from model.importing import Request, import_network
from tests.draw_samples import SEEDS, draw

SHAPE = (224, 224, 3)
CLASSES = tuple(f"class {number}" for number in range(6))
# BGR, as keras.applications.resnet50.preprocess_input does; the order changes no cost.
CAFFE = keras.layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0])
NETWORKS: dict[str, tuple[list[keras.Layer], Callable[..., keras.Model]]] = {
    "mobilenet_v2": ([keras.layers.Rescaling(1 / 127.5, offset=-1.0)], keras.applications.MobileNetV2),
    "efficientnet_b0": ([], keras.applications.EfficientNetB0),  # it has its own
    "resnet50": ([CAFFE], keras.applications.ResNet50),
}

NORMALISING = keras.layers.BatchNormalization


def build(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    preprocessing, application = NETWORKS[name]
    pixels = values = keras.Input(SHAPE)
    for layer in preprocessing:
        values = layer(values)
    body = application(weights=None, classes=len(CLASSES), input_shape=SHAPE)
    network = keras.Model(pixels, body(values))
    fit_statistics(network, [layer for layer in body.layers if isinstance(layer, NORMALISING)])
    return network


def fit_statistics(network: keras.Model, normalising: Sequence[keras.layers.BatchNormalization]) -> None:
    """Normalise by statistics of drawn images: without, random weights let an image fade to nothing."""
    for layer in normalising:
        layer.momentum = 0.0
    grey = np.stack([draw(name, seed=0) for name in SEEDS]).astype(np.float32)
    network(keras.ops.image.resize(np.repeat(grey[..., np.newaxis], 3, axis=-1), SHAPE[:2]), training=True)
    for layer in normalising:
        layer.momentum = 0.99


def main(h5: Path) -> None:
    h5.parent.mkdir(parents=True, exist_ok=True)
    unchecked = h5.with_name(f"unchecked-{h5.name}")
    build(h5.stem).save(unchecked)
    request = Request(class_names=CLASSES, preprocess="raw", output=h5, force=True)
    print(import_network(unchecked, request))
    unchecked.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
