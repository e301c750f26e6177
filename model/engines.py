"""Engines that run a network: LiteRT for serving, TensorFlow as the reference; and the self-test of both."""

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats, Pixels
from model.artifact import Artifact, ArtifactCard, golden_image, load_compiled
from model.defaults import Engine
from model.errors import ArtifactError
from model.preprocessing import Ending, Preprocessing, soften, softmax

# One stacked array, or a sequence where stacking would be a needless copy.
Images: TypeAlias = Pixels | Sequence[Pixels]
Shape: TypeAlias = tuple[int | None, ...]

NOVELTY_TOLERANCE = 0.01
"""Relative, as scores have any size."""


class Answers(NamedTuple):
    """Outputs of one forward pass over n images."""

    probabilities: Floats
    """(n, k)."""
    embeddings: Floats | None = None
    """(n, d), if the network ends in global average pooling."""
    features: Floats | None = None
    """(n, gh, gw, d), the feature maps before pooling; only on request."""


class Classifier(Protocol):
    """A loaded network. Thread-safe."""

    def predict(self, images: Pixels) -> Floats:
        """Return probabilities (n, k), float32, for images (n, h, w, c), uint8 0..255, n >= 1."""
        ...

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        """Return all outputs of one forward pass over images (n, h, w, c), uint8 0..255, n >= 1."""
        ...


def open_classifier(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    """Load and warm up an engine, and run its self-test on the golden image. Raises ArtifactError.

    TensorFlow runs the float32 network of an artifact with an int8 model.
    """
    if engine == "tensorflow":
        artifact = Artifact(artifact.h5_path, artifact.card.float32)
    classifier = _open_engine(artifact, engine, interpreters, cache_dir)
    self_test(classifier, artifact.card)
    return classifier


def self_test(classifier: Classifier, card: ArtifactCard) -> None:
    """Raise ArtifactError unless the engine's answers for the golden image are as the card says."""
    verify_golden(classifier, card)
    _verify_outputs(classifier, card)


def verify_golden(classifier: Classifier, card: ArtifactCard) -> Floats:
    """Return the engine's probabilities (k,) for the golden image.

    Raises ArtifactError unless there is one probability per class and they match the card's, if it has any.
    """
    image = golden_image(card.image)[np.newaxis]
    try:
        probabilities: Floats = classifier.predict(image)[0]
    # For a wrong shape, LiteRT raises ValueError, TensorFlow its own exceptions.
    except Exception as error:
        raise ArtifactError(f"The network must take {card.image.shape} images: {error}") from error
    if probabilities.shape != (len(card.class_names),):
        raise ArtifactError(
            f"The network must have an output for each of the {len(card.class_names)} classes. "
            f"Received: outputs of shape {probabilities.shape}."
        )
    in_range = ((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all()
    if not in_range or not (card.is_multi_label or np.isclose(probabilities.sum(), 1.0, atol=1e-3)):
        raise ArtifactError("The network must output probabilities that sum to 1, such as a softmax does.")
    if card.golden_probabilities is None:
        return probabilities
    difference = float(np.abs(probabilities - np.array(card.golden_probabilities)).max())
    if not difference <= card.golden_tolerance:
        raise ArtifactError(
            f"The engine's probabilities for the golden image must match the card's "
            f"within {card.golden_tolerance:.2g}. Received: a difference of {difference:.2g}."
        )
    return probabilities


class LiteRtClassifier:
    """LiteRT with XNNPACK: one single-threaded interpreter per core, each used by one thread at a time.

    The network runs once per image, which is as fast as in batches; only a heavy head runs once per call. The
    output for an image is bit-identical in every batch.
    """

    def __init__(
        self, compiled: bytes, scale: float, interpreters: int, given: ArtifactCard | None = None
    ) -> None:
        """`given` is the card of a .tflite that was not compiled from another file."""
        self._idle: SimpleQueue[_Network] = SimpleQueue()
        for _ in range(interpreters):
            network = _open_network(compiled, scale) if given is None else _Given(compiled, given)
            self._idle.put(network)

    def predict(self, images: Pixels) -> Floats:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        network = self._idle.get()
        try:
            return network.answer(images, with_features=with_features)
        finally:
            self._idle.put(network)


def join_answers(answers: Sequence[Answers]) -> Answers:
    if len(answers) == 1:
        return answers[0]
    probabilities, embeddings, features = zip(*answers, strict=True)
    return Answers(np.concatenate(probabilities), _join(embeddings), _join(features))


def _open_engine(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    if engine == "litert":
        compiled = load_compiled(artifact, cache_dir)
        given = artifact.card if artifact.card.is_given_tflite else None
        return LiteRtClassifier(compiled, artifact.card.scale, interpreters, given)
    try:
        from model.tensorflow_engine import open_tensorflow  # noqa: PLC0415 - not installed for serving
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"The tensorflow engine requires {error.name}, which is not installed for serving. Run: make dev"
        ) from None
    return open_tensorflow(artifact)


def _verify_outputs(classifier: Classifier, card: ArtifactCard) -> None:
    """Raise ArtifactError if the engine lacks the outputs that the card needs for abstention and evidence."""
    if card.class_weights is None and card.novelty is None:
        return
    outputs = classifier.answer(golden_image(card.image)[np.newaxis], with_features=True)
    arrays = {"embedding": outputs.embeddings, "features": outputs.features}
    for name, size in _sizes_of_outputs(card).items():
        array = arrays[name]
        if array is None or array.shape[-1] != size:
            raise ArtifactError(f"The network must have the output `{name}` of size {size}, as in its card.")
    if card.novelty is not None and card.golden_novelty is not None and outputs.embeddings is not None:
        [score] = card.novelty.score(outputs.embeddings)
        tolerance = max(NOVELTY_TOLERANCE, card.golden_tolerance)
        if not np.isclose(score, card.golden_novelty, rtol=tolerance):
            raise ArtifactError(
                f"The novelty of the golden image must match the card's {card.golden_novelty:.6g} "
                f"within {tolerance:.0%}. Received: {score:.6g}."
            )


def _sizes_of_outputs(card: ArtifactCard) -> dict[str, int]:
    sizes = {}
    if card.class_weights is not None:
        sizes = dict.fromkeys(("embedding", "features"), card.class_weights.shape[0])
    if card.novelty is not None:
        sizes["embedding"] = card.novelty.whitening.shape[0]
    return sizes


def _join(parts: Sequence[Floats | None]) -> Floats | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


class _Network(Protocol):
    """A warmed-up network, used by one thread at a time."""

    def answer(self, images: Images, *, with_features: bool) -> Answers: ...


class _Whole:
    """A network that takes one image per call."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        self._one_image = _OneImage(interpreter, scale)
        self._interpreter = interpreter
        self._outputs = _find_outputs(interpreter)

    def answer(self, images: Images, *, with_features: bool) -> Answers:
        return join_answers([self._answer_one(image, with_features=with_features) for image in images])

    def _answer_one(self, image: Pixels, *, with_features: bool) -> Answers:
        self._one_image.run(image)
        return Answers(
            probabilities=self._interpreter.get_tensor(self._outputs["probabilities"]),  # (1, k), a copy
            embeddings=self._read("embedding"),
            features=self._read("features") if with_features else None,
        )

    def _read(self, name: str) -> Floats | None:
        index = self._outputs.get(name)
        return None if index is None else self._interpreter.get_tensor(index)


class _BodyAndHead:
    """A network with two signatures: the body runs once per image, the head once for n flattened images."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        self._body = _OneImage(interpreter, scale)
        self._interpreter = interpreter
        self._outputs = _find_outputs(interpreter, "body")
        flattened = self._interpreter.get_tensor(self._outputs["flattened"])
        self._run_head(np.zeros_like(flattened))  # the first run packs the weights

    def answer(self, images: Images, *, with_features: bool) -> Answers:  # noqa: ARG002 - no features
        flattened, *embeddings = zip(*[self._run_body(image) for image in images], strict=True)
        return Answers(self._run_head(np.concatenate(flattened)), *map(np.concatenate, embeddings))

    def _run_body(self, image: Pixels) -> list[Floats]:
        """Flattened values (1, d) and, if there is one, the embedding (1, e); copies."""
        self._body.run(image)
        names = [name for name in ("flattened", "embedding") if name in self._outputs]
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]

    def _run_head(self, flattened: Floats) -> Floats:
        # Created per call (3 microseconds): while a runner exists, no other signature may run.
        head = self._interpreter.get_signature_runner("head")
        probabilities: Floats = head(inputs=flattened)["probabilities"]
        return probabilities


def _find_outputs(interpreter: Any, signature: str | None = None) -> dict[str, int]:
    """Tensor index of each named output. A compiled model with one output may leave it unnamed."""
    details = interpreter.get_output_details()
    if len(details) == 1:
        return {"probabilities" if signature is None else "flattened": details[0]["index"]}
    names = interpreter.get_signature_list()
    named = interpreter.get_signature_runner(signature or next(iter(names))).get_output_details()
    return {name: detail["index"] for name, detail in named.items()}


class _Given:
    """A .tflite as it was given."""

    def __init__(self, content: bytes, card: ArtifactCard) -> None:
        self._network, self._card = GivenTflite(content), card

    def answer(self, images: Images, *, with_features: bool) -> Answers:  # noqa: ARG002 - no features
        network, card = self._network, self._card
        preprocessing = card.preprocessing or Preprocessing(scale=(card.scale,))
        inputs = (network.arrange(_preprocess(image, preprocessing)) for image in images)
        probabilities = [_to_probabilities(network.run(each), card.ending) for each in inputs]
        return Answers(soften(np.concatenate(probabilities), card.temperature))


class _OneImage:
    """An interpreter's first signature, warmed up; releases the GIL while it runs."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        interpreter.allocate_tensors()
        [details] = interpreter.get_input_details()
        self._interpreter = interpreter
        self._input_shape = tuple(details["shape"][1:])
        self._input = interpreter.tensor(details["index"])
        self._scale = np.float32(scale)
        self._input()[...] = 0  # fresh memory may hold NaN, which a network with a state would keep
        interpreter.invoke()  # the first run packs the weights

    def run(self, image: Pixels) -> None:
        if image.shape != self._input_shape:  # NumPy would broadcast some shapes
            raise ValueError(f"An image must be of shape {self._input_shape}. Received: {image.shape}.")
        self._scale_into_input(image)
        self._interpreter.invoke()

    def _scale_into_input(self, image: Pixels) -> None:
        """Write directly to the input tensor. No reference to its memory may exist while the network runs."""
        pixels = self._input()[0]
        if image.shape[2] == 1 or image.strides[2] != 0:
            pixels[...] = image
        else:  # all channels are equal
            grey = image[:, :, 0].astype(np.float32)
            for channel in range(image.shape[2]):
                pixels[:, :, channel] = grey
        if self._scale != 1:
            pixels *= self._scale


def _open_network(compiled: bytes, scale: float) -> _Network:
    """Open a compiled model. Raises ArtifactError if it is not a LiteRT model."""
    interpreter = _interpreter_of(compiled)
    kind = _BodyAndHead if "head" in interpreter.get_signature_list() else _Whole
    return kind(interpreter, scale)


def _interpreter_of(content: bytes) -> Any:
    """Raises ArtifactError."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - some warehouses have TensorFlow only

    try:
        return Interpreter(model_content=content, num_threads=1)
    except ValueError as error:
        raise ArtifactError(f"A .tflite must be a LiteRT model: {error}") from None


class GivenTflite:
    """A .tflite with one input and one output, float or quantised, served as it was given.

    NumPy computes what is otherwise compiled into a network. Used by one thread at a time.
    """

    def __init__(self, content: bytes) -> None:
        self._interpreter = _interpreter_of(content)
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ArtifactError(
                "A network must have one input and one output. "
                f"Received: {len(inputs)} inputs and {len(outputs)} outputs."
            )
        self._input, self._output = inputs[0], outputs[0]
        self._allocated: tuple[int, ...] = ()

    @property
    def input_shape(self) -> Shape:
        return _shape_of(self._input)

    @property
    def output_shape(self) -> Shape:
        return _shape_of(self._output)

    def run(self, values: Floats) -> Floats:
        """Outputs (1, k), float32, for one input (1, ...), float32."""
        if values.shape != self._allocated:
            self._interpreter.resize_tensor_input(self._input["index"], values.shape)
            self._interpreter.allocate_tensors()
            self._allocated = values.shape
        self._interpreter.set_tensor(self._input["index"], _quantise(values, self._input))
        self._interpreter.invoke()
        outputs = _dequantise(self._interpreter.get_tensor(self._output["index"]), self._output)
        return outputs.reshape(1, -1)

    def arrange(self, image: Floats) -> Floats:
        """An image (h, w, c) as the input: channels first, no channels, or flat."""
        shape = self.input_shape
        if len(shape) == 4:
            is_channels_first = shape[1] == image.shape[-1] != shape[-1]
            return (np.moveaxis(image, -1, 0) if is_channels_first else image)[np.newaxis]
        return image.reshape(1, *(side or -1 for side in shape[1:]))


def _shape_of(details: dict[str, Any]) -> Shape:
    """(None, ...) with None for every dimension that may change."""
    signature = details.get("shape_signature", details["shape"]).tolist()
    return (None, *(None if side == -1 else int(side) for side in signature[1:]))


def _quantise(values: Floats, details: dict[str, Any]) -> NDArray[Any]:
    kind = details["dtype"]
    scale, zero = details["quantization"]
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        whole = values if not scale else values / np.float32(scale) + zero
        return np.rint(whole).clip(limits.min, limits.max).astype(kind)
    return values.astype(kind)


def _dequantise(values: NDArray[Any], details: dict[str, Any]) -> Floats:
    scale, zero = details["quantization"]
    floats = values.astype(np.float32)
    return (
        (floats - zero) * np.float32(scale) if scale and np.issubdtype(values.dtype, np.integer) else floats
    )


def _preprocess(image: Pixels, preprocessing: Preprocessing) -> Floats:
    ordered = image[..., ::-1] if preprocessing.order == "bgr" else image
    scale, offset = np.array(preprocessing.scale, np.float32), np.array(preprocessing.offset, np.float32)
    values: Floats = ordered.astype(np.float32) * scale + offset
    return values


def _to_probabilities(outputs: Floats, ending: Ending) -> Floats:
    match ending:
        case "logits":
            return softmax(outputs)
        case "logit":
            return softmax(np.concatenate([np.zeros_like(outputs), outputs], axis=1))
        case "sigmoid":
            return np.concatenate([1 - outputs, outputs], axis=1)
        case "multi_label_logits":
            both = softmax(np.concatenate([np.zeros_like(outputs), outputs]), axis=0)
            return both[1:]
        case "probabilities":
            outputs /= outputs.sum(axis=1, keepdims=True)  # quantised ones sum to 1 only nearly
    return outputs
