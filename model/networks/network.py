"""One interface to a network, whichever library read it, from pixels to probabilities."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from model.arrays import Floats, Pixels
from model.artifact import ArtifactCard
from model.engines import GivenTflite, Shape
from model.errors import ArtifactError
from model.networks.files import NetworkFile, inspect_network
from model.networks.keras_model import find_head, library_of, load_keras, named_outputs
from model.networks.pretrained_blocks import detector_network
from model.preprocessing import LEAST_PROBABILITY, ONE_OUTPUT, Ending, Preprocessing

Step: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Network:
    """A network that computes named outputs, `probabilities` first of all, which may still be logits."""

    call: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    input_shape: Shape
    output_shape: Shape
    resources: Any
    """What holds the variables, for TensorFlow to track."""
    keras_network: Any = None
    """The keras.Model or tf_keras.Model, if Keras read the network."""
    class_weights: Floats | None = None
    """Weights (d, outputs) of the last layer, if the network has a head that gives evidence."""

    @property
    def is_keras3(self) -> bool:
        return isinstance(self.keras_network, keras.Model)

    @property
    def outputs(self) -> int:
        return int(self.output_shape[-1] or 0)

    def norm_distance(self, pixels: Pixels, preprocessing: Preprocessing) -> float | None:
        """Distance of the first batch normalisation's inputs from those it was trained on.

        Its moving averages tell how training preprocessed pixels. None without one.
        """
        if self._norm_probe is None:
            return None
        probe, means, variances = self._norm_probe
        inputs = _arrange(_preprocess(tf.cast(pixels, tf.float32), preprocessing), self.input_shape)
        values = np.asarray(probe(inputs, training=False))
        axes = tuple(range(values.ndim - 1))
        shifts = (values.mean(axis=axes) - means) ** 2 / (variances + _EPSILON)
        stretches = np.log((values.var(axis=axes) + _EPSILON) / (variances + _EPSILON)) ** 2
        return float(np.sqrt(np.median(shifts + stretches)))

    @cached_property
    def _norm_probe(self) -> tuple[Any, Floats, Floats] | None:
        """A network up to the first batch normalisation, whose moving means and variances follow."""
        inner = self.keras_network
        while inner is not None and getattr(inner, "layers", None):
            first = next(layer for layer in inner.layers if type(layer).__name__ != "InputLayer")
            norms = [layer for layer in inner.layers if type(layer).__name__ == "BatchNormalization"]
            if norms and np.asarray(norms[0].moving_mean).any() and norms[0].axis in (-1, 3, [3], [-1]):
                try:
                    probe = library_of(inner).Model(inner.inputs, norms[0].input)
                # Keras raises several types of exceptions for a layer outside the graph of these inputs.
                except (AttributeError, ValueError):
                    return None
                return probe, np.asarray(norms[0].moving_mean), np.asarray(norms[0].moving_variance)
            inner = first
        return None


_EPSILON = 1e-6


class Stages(NamedTuple):
    """What the compiled network computes before and after the network itself."""

    shape: tuple[int, int, int]
    """Of the pixels (h, w, c)."""
    prepare: Step
    """Pixels (n, h, w, c) 0..255 to the network's input."""
    finish: Step
    """The network's outputs to probabilities (n, k)."""
    describe: Any = None
    """A keras.Model from the pixels to the embedding that novelty scores, in place of the network's own."""

    def run(self, call: Callable[[tf.Tensor], Any], pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """All outputs of a network with these stages around it; its body has no `probabilities`."""
        outputs = dict(call(self.prepare(pixels)))
        if "probabilities" in outputs:
            outputs["probabilities"] = self.finish(outputs["probabilities"])
        if self.describe is not None:
            outputs["embedding"] = self.describe(pixels)["statistics"]
        return outputs


def open_network(path: Path, card: ArtifactCard) -> tuple[Network, Stages | None]:
    """Read the artifact's network, and its stages unless pixels and probabilities need no change.

    Raises ArtifactError if the network does not match the card, or is a .tflite.
    """
    if card.is_given_tflite:
        raise ArtifactError(f"TensorFlow runs Keras files and SavedModels. Received: {path}. Use LiteRT.")
    network = read_network(inspect_network(path))
    ending = remove_activation(network, card.ending, with_softmax=card.temperature is not None)
    refuse_mismatch(network, card)
    return network, stages_of(network, card, ending)


def read_network(file: NetworkFile) -> Network:
    """Read a network with the library of its writer. Raises ArtifactError."""
    match file.reader:
        case "keras3" | "keras2":
            return network_of(load_keras(file))
        case "saved_model":
            return _read_saved_model(file.path)
    return _read_tflite(file.path)


def network_of(network: Any) -> Network:
    """Wrap a keras.Model or tf_keras.Model. Raises ArtifactError unless it has one input and one output."""
    # A Sequential of Keras 3 has one output, without a name.
    outputs = getattr(network, "output_names", ["output"])
    _refuse_several([one.name for one in network.inputs], outputs)
    head = find_head(network)
    named = library_of(network).Model(network.inputs, named_outputs(network))
    return Network(
        call=lambda inputs: named(inputs, training=False),
        input_shape=tuple(network.inputs[0].shape),
        output_shape=tuple(network.outputs[0].shape),
        resources=list(network.variables),
        keras_network=network,
        class_weights=None if head is None else head.class_weights,
    )


def remove_activation(network: Network, ending: Ending, *, with_softmax: bool = False) -> Ending:
    """Make a sigmoid at the end linear, so that its logit is not rounded; return the ending that is left.

    Also a softmax, if there is a temperature for its logits.
    """
    left: dict[Ending, tuple[str, Ending]] = {"sigmoid": ("sigmoid", "logit")}
    if with_softmax:
        left["probabilities"] = ("softmax", "logits")
    layer = last_layer(network)
    if ending not in left or activation_of(layer) != left[ending][0] or not hasattr(layer, "activation"):
        return ending
    layer.activation = library_of(network.keras_network).activations.linear
    return left[ending][1]


def last_layer(network: Network) -> Any:
    """The layer that computes the output, searched in nested networks too; None if Keras did not read it."""
    layer = network.keras_network
    while layer is not None and getattr(layer, "layers", None):
        layer = layer.layers[-1]
    return layer


def activation_of(layer: Any) -> str | None:
    """Name of a layer's activation, or None if the layer has none."""
    if type(layer).__name__ == "Softmax":
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", None)


def refuse_mismatch(network: Network, card: ArtifactCard) -> None:
    """Raise ArtifactError if the network's input or output shape differs from the card's."""
    outputs = 1 if card.ending in ONE_OUTPUT else len(card.class_names)
    expected: tuple[Shape, Shape] = (None, *card.image.shape), (None, outputs)
    actual = network.input_shape, network.output_shape
    if not _takes(network.input_shape, card.image.shape) or not gives(network.output_shape, outputs):
        raise ArtifactError(
            f"The network's input and output shapes must match its card: {expected[0]} and {expected[1]}. "
            f"Received: {actual[0]} and {actual[1]}."
        )


def stages_of(network: Network, card: ArtifactCard, ending: Ending) -> Stages | None:
    """The stages for a card, or None if pixels and probabilities need no change."""
    preprocessing = card.preprocessing or Preprocessing()
    exact_shapes = (None, *card.image.shape) == network.input_shape and len(network.output_shape) == 2
    is_pretrained = card.novelty is not None and card.novelty.embedding == "pretrained"
    needs_nothing = preprocessing == Preprocessing() and ending == "probabilities" and exact_shapes
    if needs_nothing and card.temperature is None and not is_pretrained:
        return None

    def prepare(pixels: tf.Tensor) -> tf.Tensor:
        return _arrange(_preprocess(pixels, preprocessing), network.input_shape)

    def finish(outputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.reshape(outputs, (-1, network.outputs))
        if card.temperature is None:
            return _to_probabilities(outputs, ending)
        return tf.nn.softmax(to_logits(outputs, ending) / card.temperature)

    describe = detector_network(card.image, card.scale) if is_pretrained else None
    return Stages(card.image.shape, prepare, finish, describe)


def with_stages(network: Network, stages: Stages | None) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Pixels (n, h, w, c), float32, to named outputs, of which `probabilities` are (n, k)."""
    if stages is None:
        return network.call

    return lambda pixels: stages.run(network.call, pixels)


def _preprocess(pixels: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    if preprocessing.order == "bgr":
        pixels = tf.reverse(pixels, axis=[-1])
    if preprocessing.scale != (1.0,):
        pixels *= tf.constant(preprocessing.scale, tf.float32)
    if any(preprocessing.offset):
        pixels += tf.constant(preprocessing.offset, tf.float32)
    return pixels


def _arrange(images: tf.Tensor, input_shape: Shape) -> tf.Tensor:
    """Images (n, h, w, c) in the layout of the network's input: channels first, no channels, or flat."""
    if len(input_shape) == 4:
        is_channels_first = input_shape[1] == images.shape[-1] != input_shape[-1]
        return tf.transpose(images, (0, 3, 1, 2)) if is_channels_first else images
    return tf.reshape(images, (-1, *input_shape[1:]))


def _to_probabilities(outputs: tf.Tensor, ending: Ending) -> tf.Tensor:
    match ending:
        case "logits":
            return tf.nn.softmax(outputs)
        case "logit":
            return tf.nn.softmax(tf.concat([tf.zeros_like(outputs), outputs], axis=-1))
        case "sigmoid":
            return tf.concat([1 - outputs, outputs], axis=-1)
        case "multi_label_logits":
            return tf.sigmoid(outputs)
    return outputs


def to_logits(outputs: tf.Tensor, ending: Ending) -> tf.Tensor:
    """Logits (n, k) of which a softmax makes the probabilities; not for independent outputs."""
    match ending:
        case "logits":
            return outputs
        case "logit":
            return tf.concat([tf.zeros_like(outputs), outputs], axis=-1)
    return tf.math.log(tf.maximum(_to_probabilities(outputs, ending), LEAST_PROBABILITY))


def _refuse_several(inputs: Collection[str], outputs: Collection[str]) -> None:
    if len(inputs) != 1 or len(outputs) != 1:
        raise ArtifactError(
            "A network must have one input and one output. In the Keras that wrote it, save one of them: "
            "keras.Model(network.inputs, network.outputs[0]).save(…). "
            f"Received: inputs {', '.join(inputs)}; outputs {', '.join(outputs)}."
        )


def _takes(input_shape: Shape, shape: tuple[int, int, int]) -> bool:
    """Whether images of a shape (h, w, c) can be arranged as the network's input."""
    height, width, channels = shape
    layouts = [(height, width, channels), (channels, height, width), (height * width * channels,)]
    if channels == 1:
        layouts.append((height, width))
    return any(_fits(input_shape[1:], layout) for layout in layouts)


def gives(output_shape: Shape, outputs: int) -> bool:
    """Whether the output is (n, outputs), possibly with positions of size 1 between."""
    return len(output_shape) >= 2 and output_shape[-1] == outputs and set(output_shape[1:-1]) <= {1}


def _fits(shape: Shape, layout: tuple[int, ...]) -> bool:
    return len(shape) == len(layout) and all(a in (None, b) for a, b in zip(shape, layout, strict=True))


def _read_tflite(path: Path) -> Network:
    """A .tflite, to be described; LiteRT serves it as it is."""
    given = GivenTflite(path.read_bytes())
    return Network(
        call=lambda inputs: {"probabilities": tf.constant(given.run(np.asarray(inputs)))},
        input_shape=given.input_shape,
        output_shape=given.output_shape,
        resources=given,
    )


def _read_saved_model(path: Path) -> Network:
    try:
        loaded = tf.saved_model.load(str(path))
    # For a broken folder, TensorFlow raises many types of exceptions.
    except Exception as error:
        raise ArtifactError(f"{path} is not a SavedModel: {error}") from error
    signatures = loaded.signatures
    named = [name for name in ("serving_default", "serve") if name in signatures] or list(signatures)
    if not named:
        raise ArtifactError(f"A SavedModel must have a signature. Received: none, in {path}.")
    signature = signatures[named[0]]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    _refuse_several(inputs, outputs)
    [(input_name, input_spec)], [(output_name, output_spec)] = inputs.items(), outputs.items()
    return Network(
        call=lambda images: {"probabilities": signature(**{input_name: images})[output_name]},
        input_shape=tuple(input_spec.shape),
        output_shape=tuple(output_spec.shape),
        resources=loaded,
    )
