"""Tiny networks of every kind that people publish, of either Keras, with their writer's own answers."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.engine.base_layer import TensorFlowOpLayer

from model.importing import Request
from model.preprocessing import Preprocessing

NAMES = ("rock", "paper", "scissors")
PAIR = ("cat", "dog")
SIZE = (16, 16, 3)


@dataclass(frozen=True)
class Kind:
    """How a network is built and imported."""

    name: str
    build: Callable[[Any], Any]
    """From the package keras or tf_keras to a network."""
    library: Any = keras
    suffix: str = ".h5"
    request: Request = field(default_factory=lambda: Request(NAMES, "raw"))
    shape: tuple[int, int, int] = SIZE
    ending: str = "probabilities"
    to_input: Callable[[np.ndarray], np.ndarray] | None = None
    """From pixels (n, h, w, c) to the network's input, as the author's code does it."""
    tolerance: float = 1e-5
    version: str | None = None
    """Written to the file as the version of Keras."""

    def write(self, folder: Path) -> tuple[Path, Callable[[np.ndarray], np.ndarray]]:
        """Write the file; return its path, and the author's own answers (n, k) for pixels."""
        self.library.utils.set_random_seed(len(self.name))
        network = self.build(self.library)
        path = folder / f"network{self.suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.suffix == ".tflite":
                path.write_bytes(convert(network, is_quantised="quantised" in self.name))
            elif self.suffix:
                network.save(path)
            elif self.library is keras:
                network.export(path, verbose=False)
            else:
                tf.saved_model.save(network, str(path))
        if self.version is not None:
            with h5py.File(path, "r+") as file:
                file.attrs["keras_version"] = self.version

        def answer(pixels: np.ndarray) -> np.ndarray:
            given = pixels.astype(np.float32) if self.to_input is None else self.to_input(pixels)
            return to_probabilities(np.asarray(network(given, training=False)), self.ending)

        return path, answer


def convert(network: Any, *, is_quantised: bool) -> bytes:
    """As TensorFlow's own tutorials convert; quantised with pixels as input and bytes as output."""
    with tempfile.TemporaryDirectory() as folder:
        network.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if is_quantised:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            shape = (1, *network.input_shape[1:])
            random = np.random.default_rng(0)
            converter.representative_dataset = lambda: (
                [random.random(shape, np.float32) * 2 - 1] for _ in range(64)
            )
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        return bytes(converter.convert())


def to_probabilities(outputs: np.ndarray, ending: str) -> np.ndarray:
    """By the formulas of the textbook, in float64."""
    outputs = outputs.astype(np.float64).reshape(len(outputs), -1)
    match ending:
        case "logits":
            powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)
        case "logit":
            return to_probabilities(1 / (1 + np.exp(-outputs)), "sigmoid")
        case "sigmoid":
            return np.concatenate([1 - outputs, outputs], axis=1)
        case "multi_label_logits":
            return 1 / (1 + np.exp(-outputs))
    return outputs


def preprocessed(preset: str) -> Callable[[np.ndarray], np.ndarray]:
    """What the author's code computes, by the formulas of Keras's documentation."""
    given: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "unit": lambda x: x / np.float32(255),
        "symmetric": lambda x: x / np.float32(127.5) - 1,
        "teachable-machine": lambda x: x.astype(np.float32) / np.float32(127.5) - 1,
        "caffe": lambda x: x[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32),
        "torch": lambda x: (
            (x / np.float32(255) - np.array([0.485, 0.456, 0.406], np.float32))
            / np.array([0.229, 0.224, 0.225], np.float32)
        ),
    }
    return given[preset]


def body(k: Any, x: Any) -> Any:
    """Features whose values differ between images of any scale."""
    x = k.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = k.layers.BatchNormalization()(x)
    return k.layers.GlobalAveragePooling2D()(x)


def classifier(outputs: int = 3, activation: str | None = "softmax", **more: Any) -> Callable[[Any], Any]:
    def build(k: Any) -> Any:
        inputs = k.Input(SIZE, **more)
        return k.Model(inputs, k.layers.Dense(outputs, activation=activation)(body(k, inputs)))

    return build


def teachable_machine(k: Any, size: int = 224) -> Any:
    """The structure of the export: a MobileNet with pooling and two dense layers, each a Sequential."""
    inputs = k.Input((size, size, 3))
    x = k.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = k.layers.ReLU(6.0)(k.layers.BatchNormalization()(x))
    x = k.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = k.layers.ReLU(6.0)(k.layers.BatchNormalization()(x))
    base = k.Model(inputs, k.layers.Conv2D(16, 1)(x), name="model1")
    features = k.Sequential([base, k.layers.GlobalAveragePooling2D()], name="sequential_1")
    dense = [k.layers.Dense(10, activation="relu"), k.layers.Dense(3, activation="softmax", use_bias=False)]
    head = k.Sequential([k.Input((16,)), *dense], name="sequential_3")
    return k.Sequential([k.Input((size, size, 3)), features, head], name="sequential_4")


def nested(k: Any) -> Any:
    inputs = k.Input(SIZE)
    base = k.Model(inputs, k.layers.SeparableConv2D(8, 3, activation="relu")(inputs))
    top = [k.layers.GlobalAveragePooling2D(), k.layers.Dropout(0.5), k.layers.Dense(3, activation="softmax")]
    return k.Sequential([k.Input(SIZE), base, *top])


def arithmetic(k: Any) -> Any:
    inputs = k.Input(SIZE)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, inputs / 127.5 - 1.0)))


def caffe_inside(k: Any) -> Any:
    inputs = k.Input(SIZE)
    prepared = k.applications.resnet50.preprocess_input(inputs)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, prepared)))


def rescaling(k: Any) -> Any:
    inputs = k.Input(SIZE)
    prepared = k.layers.Rescaling(1 / 255)(inputs)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, prepared)))


def augmentation(k: Any) -> Any:
    """As TensorFlow's tutorials begin; inference leaves images as they are."""
    random = [k.layers.RandomFlip(), k.layers.RandomRotation(0.2), k.layers.RandomZoom(0.2)]
    layers = [k.layers.Rescaling(1 / 255), k.layers.Conv2D(8, 3, activation="relu"), k.layers.MaxPooling2D()]
    return k.Sequential(
        [k.Input(SIZE), *random, *layers, k.layers.Flatten(), k.layers.Dense(3, activation="softmax")]
    )


def resizing(k: Any) -> Any:
    inputs = k.Input(SIZE)
    prepared = k.layers.Rescaling(1 / 127.5, offset=-1)(k.layers.Resizing(24, 24)(inputs))
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, prepared)))


def operations(k: Any) -> Any:
    """A softmax and a cast outside of layers."""
    inputs = k.Input(SIZE)
    logits = k.layers.Dense(3)(body(k, inputs * (1 / 255)))
    return k.Model(inputs, k.activations.softmax(logits))


def operation_layers(k: Any) -> Any:
    """Arithmetic as TensorFlow before 2.4 wrote it."""

    def compute(x: Any, operation: str, constant: float) -> Any:
        node = {"name": operation, "op": operation, "input": ["x", "y"], "attr": {"T": {"type": "DT_FLOAT"}}}
        return TensorFlowOpLayer(node_def=node, name=operation, constants={1: constant})(x)

    inputs = k.Input(SIZE)
    prepared = compute(compute(inputs, "RealDiv", 127.5), "Sub", 1.0)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, prepared)))


def objects_of_authors(k: Any) -> Any:
    """Names that Keras 2 reads only with custom_objects."""

    class FixedDropout(k.layers.Dropout):  # type: ignore[misc]
        pass

    def hard_swish(x: Any) -> Any:
        return x * tf.nn.relu6(x + 3) / 6

    def softmax_v2(x: Any) -> Any:
        return tf.nn.softmax(x)

    inputs = k.Input(SIZE)
    x = k.layers.Conv2D(8, 3, activation=hard_swish)(inputs)
    x = k.layers.Activation("relu6")(FixedDropout(0.5)(k.layers.Conv2D(8, 3)(x)))
    x = k.layers.GlobalAveragePooling2D()(x)
    return k.Model(inputs, k.layers.Dense(3, activation=softmax_v2)(x))


def flat(k: Any) -> Any:
    inputs = k.Input((784,))
    hidden = k.layers.Dense(16, activation="relu")(inputs)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(hidden))


def grey_without_channels(k: Any) -> Any:
    layers = [
        k.layers.Flatten(),
        k.layers.Dense(16, activation="relu"),
        k.layers.Dense(3, activation="softmax"),
    ]
    return k.Sequential([k.Input((28, 28)), *layers])


def channels_first(k: Any) -> Any:
    inputs = k.Input((3, 16, 20))
    moved = k.layers.Permute((2, 3, 1))(inputs)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, moved)))


def channels_first_layers(k: Any) -> Any:
    inputs = k.Input((3, 16, 20))
    x = k.layers.Conv2D(8, 3, data_format="channels_first", activation="relu")(inputs)
    x = k.layers.MaxPooling2D(data_format="channels_first")(k.layers.BatchNormalization(axis=1)(x))
    x = k.layers.Flatten(data_format="channels_first")(x)
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(x))


def any_size(k: Any) -> Any:
    inputs = k.Input((None, None, 3))
    return k.Model(inputs, k.layers.Dense(3, activation="softmax")(body(k, inputs)))


def mixed_precision(k: Any) -> Any:
    k.mixed_precision.set_global_policy("mixed_float16")
    try:
        inputs = k.Input(SIZE)
        logits = k.layers.Dense(3)(body(k, k.layers.Rescaling(1 / 255)(inputs)))
        return k.Model(inputs, k.layers.Activation("softmax", dtype="float32")(logits))
    finally:
        k.mixed_precision.set_global_policy("float32")


def fully_convolutional(k: Any) -> Any:
    inputs = k.Input(SIZE)
    x = k.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = k.layers.GlobalAveragePooling2D(keepdims=True)(x)
    return k.Model(inputs, k.layers.Softmax()(k.layers.Conv2D(3, 1)(x)))


def heavy_head(k: Any) -> Any:
    inputs = k.Input((32, 32, 3))
    x = k.layers.Flatten()(k.layers.Conv2D(8, 3, activation="elu")(inputs))
    x = k.layers.Dense(256, activation="elu")(x)
    return k.Model(inputs, k.layers.Dense(1, activation="sigmoid")(x))


def _with(preset: str, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {"request": Request(names, preset), "to_input": preprocessed(preset)}  # type: ignore[arg-type]


_PAIR_UNIT = _with("unit", PAIR)
_MULTI_LABEL = {"request": Request(NAMES, "unit", is_multi_label=True), "to_input": preprocessed("unit")}
_FLAT = {
    "shape": (28, 28, 1),
    "request": Request(NAMES, "unit"),
    "to_input": lambda x: (x / np.float32(255)).reshape(-1, 784),
}
_GREY = _FLAT | {"to_input": lambda x: (x / np.float32(255))[..., 0]}
_FIRST = {
    "shape": (16, 20, 3),
    "request": Request(NAMES, "symmetric"),
    "to_input": lambda x: np.moveaxis(x / np.float32(127.5) - 1, -1, 1),
}

KINDS = [
    *(
        Kind(f"{library.__name__}-{name}", build, library, **more)
        for library in (keras, tf_keras)
        for name, build, more in (
            ("unit", classifier(), _with("unit")),
            ("torch", classifier(), _with("torch")),
            ("caffe", classifier(), _with("caffe")),
            ("nested", nested, _with("symmetric")),
            ("arithmetic", arithmetic, {}),
            # Keras 3 cannot read its own .h5 of it.
            ("caffe-inside", caffe_inside, {"suffix": ".keras" if library is keras else ".h5"}),
            ("rescaling", rescaling, {}),
            ("augmentation", augmentation, {}),
            ("resizing", resizing, {}),
            ("operations", operations, {}),
            ("sigmoid", classifier(1, "sigmoid"), _PAIR_UNIT | {"ending": "sigmoid"}),
            ("logit", classifier(1, None), _PAIR_UNIT | {"ending": "logit"}),
            ("logits", classifier(3, None), _with("unit") | {"ending": "logits"}),
            ("multi-label", classifier(3, "sigmoid"), _MULTI_LABEL | {"ending": "sigmoids"}),
            ("flat", flat, _FLAT),
            ("grey", grey_without_channels, _GREY),
            ("channels-first", channels_first, _FIRST),
            ("channels-first-layers", channels_first_layers, _FIRST),
            ("any-size", any_size, {"request": Request(NAMES, "raw", size=(16, 16))}),
            ("fixed-batch", classifier(batch_size=4), _with("unit")),
            ("mixed-precision", mixed_precision, {"tolerance": 1e-3}),
            ("fully-convolutional", fully_convolutional, _with("unit")),
            ("heavy-head", heavy_head, _PAIR_UNIT | {"shape": (32, 32, 3), "ending": "sigmoid"}),
            ("keras-file", rescaling, {"suffix": ".keras"}),
            ("hdf5", classifier(), _with("unit") | {"suffix": ".hdf5"}),
            ("saved-model", classifier(), _with("symmetric") | {"suffix": ""}),
        )
    ),
    Kind(
        "teachable-machine",
        teachable_machine,
        tf_keras,
        request=Request(NAMES),
        shape=(224, 224, 3),
        to_input=preprocessed("teachable-machine"),
        version="2.4.0",
    ),
    Kind("tf_keras-operation-layers", operation_layers, tf_keras, request=Request(NAMES)),
    Kind("tf_keras-objects-of-authors", objects_of_authors, tf_keras, **_with("unit")),
    Kind("tflite", classifier(), suffix=".tflite", **_with("symmetric")),
    Kind("tflite-sigmoid", classifier(1, "sigmoid"), suffix=".tflite", ending="sigmoid", **_PAIR_UNIT),
    Kind("tflite-quantised", classifier(), suffix=".tflite", tolerance=0.02, **_with("symmetric")),
    Kind(
        "explicit",
        classifier(),
        request=Request(NAMES, Preprocessing(scale=(1 / 64,), offset=(-2.0,), order="bgr")),
        to_input=lambda x: x[..., ::-1].astype(np.float32) / 64 - 2,
    ),
]
