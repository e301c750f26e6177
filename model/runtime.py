"""Engines: images in, probabilities out. LiteRT serves; TensorFlow is the reference."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from queue import LifoQueue
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, ArtifactCard, golden_image
from model.compiled import load_compiled
from model.defaults import Engine
from model.errors import ArtifactError

# Stacked, or one by one where stacking would copy them for nothing.
Images: TypeAlias = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]

# The engines agree to about 1e-6 on this; a wrong network or a wrong scale differs by far more.
GOLDEN_TOLERANCE = 1e-4


class Answers(NamedTuple):
    """What one forward pass says of n images."""

    probabilities: NDArray[np.float32]
    """(n, k)."""
    embeddings: NDArray[np.float32] | None = None
    """(n, d), where the network ends in global average pooling."""
    features: NDArray[np.float32] | None = None
    """(n, gh, gw, d), the maps that were pooled; only when asked for."""


class Classifier(Protocol):
    """A network held in memory. It may be called from several threads at once."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (n, h, w, c), uint8 0..255, n >= 1, to probabilities (n, k), float32."""
        ...

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        """Images (n, h, w, c), uint8 0..255, n >= 1, to all that one pass says of them."""
        ...


class LiteRtClassifier:
    """LiteRT with XNNPACK: one single-threaded interpreter a core, each used by one thread at a time.

    Images run one by one: that is as fast as in batches, and no answer depends on its neighbours.
    """

    def __init__(self, compiled: bytes, scale: float, interpreters: int) -> None:
        self._idle: LifoQueue[_OneImage] = LifoQueue()
        for _ in range(interpreters):
            self._idle.put(_OneImage(compiled, scale))

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        one_image = self._idle.get()
        try:
            return join_answers([one_image.answer(image, with_features=with_features) for image in images])
        finally:
            self._idle.put(one_image)


class _OneImage:
    """An interpreter, warmed, with its input and outputs found; releases the GIL while it runs."""

    def __init__(self, compiled: bytes, scale: float) -> None:
        # By name, for TensorFlow must do where this is not installed, as inside some warehouses.
        litert = importlib.import_module("ai_edge_litert.interpreter")
        try:
            self._interpreter = litert.Interpreter(model_content=compiled, num_threads=1)
        except ValueError as error:
            raise ArtifactError(f"The compiled twin must be a LiteRT network: {error}") from None
        self._interpreter.allocate_tensors()
        [details] = self._interpreter.get_input_details()
        self._input_shape = tuple(details["shape"][1:])
        self._input = self._interpreter.tensor(details["index"])
        self._outputs = self._find_outputs()
        self._scale = np.float32(scale)
        self._interpreter.invoke()  # the first run packs the weights

    def answer(self, image: NDArray[np.uint8], *, with_features: bool) -> Answers:
        if image.shape != self._input_shape:  # NumPy would stretch some to fit
            raise ValueError(f"An image must be {self._input_shape}. Received: {image.shape}.")
        self._scale_into_input(image)
        self._interpreter.invoke()
        return Answers(
            probabilities=self._interpreter.get_tensor(self._outputs["probabilities"]),  # (1, k), a copy
            embeddings=self._read("embedding"),
            features=self._read("features") if with_features else None,
        )

    def _scale_into_input(self, image: NDArray[np.uint8]) -> None:
        """Straight into the network's own memory, which nothing may hold on to while it runs."""
        pixels = self._input()[0]
        if image.shape[2] == 1 or image.strides[2] != 0:
            np.multiply(image, self._scale, out=pixels)
            return
        grey = np.multiply(image[:, :, 0], self._scale, dtype=np.float32)  # it is all channels
        for channel in range(image.shape[2]):
            pixels[:, :, channel] = grey

    def _read(self, name: str) -> NDArray[np.float32] | None:
        index = self._outputs.get(name)
        return None if index is None else self._interpreter.get_tensor(index)

    def _find_outputs(self) -> dict[str, int]:
        """Each named output's tensor. A twin of one output may leave it without a name."""
        details = self._interpreter.get_output_details()
        if len(details) == 1:
            return {"probabilities": details[0]["index"]}
        [signature] = self._interpreter.get_signature_list()
        named = self._interpreter.get_signature_runner(signature).get_output_details()
        return {name: detail["index"] for name, detail in named.items()}


def join_answers(answers: Sequence[Answers]) -> Answers:
    """One after the other, in order."""
    if len(answers) == 1:
        return answers[0]
    probabilities, embeddings, features = zip(*answers, strict=True)
    return Answers(np.concatenate(probabilities), _join(embeddings), _join(features))


def _join(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


def open_classifier(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    """Load and warm an engine, and prove it on the golden image. Raises ArtifactError."""
    classifier = _open_engine(artifact, engine, interpreters, cache_dir)
    verify_golden(classifier, artifact.card)
    _verify_shown(classifier, artifact.card)
    return classifier


def verify_golden(classifier: Classifier, card: ArtifactCard) -> NDArray[np.float32]:
    """The engine's probabilities (k,) for the golden image.

    Raises ArtifactError unless they are probabilities, one a class, and the card's if it names them.
    """
    image = golden_image(card.image)[np.newaxis]
    try:
        probabilities: NDArray[np.float32] = classifier.predict(image)[0]
    # LiteRT refuses a wrong shape with ValueError; TensorFlow has errors of its own.
    except Exception as error:
        raise ArtifactError(f"The network must take {card.image.shape} images: {error}") from error
    if probabilities.shape != (len(card.class_names),):
        raise ArtifactError(
            f"The network must have an output for each of the {len(card.class_names)} classes. "
            f"Received: outputs of shape {probabilities.shape}."
        )
    if not np.isclose(probabilities.sum(), 1.0, atol=1e-3) or (probabilities < 0).any():
        raise ArtifactError("The network must end in probabilities that sum to 1, such as a softmax.")
    if card.golden_probabilities is None:
        return probabilities
    difference = float(np.abs(probabilities - np.array(card.golden_probabilities)).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"The engine must give the card's probabilities for the golden image "
            f"within {GOLDEN_TOLERANCE}. Received: a difference of {difference:.2g}."
        )
    return probabilities


def _verify_shown(classifier: Classifier, card: ArtifactCard) -> None:
    """Raise ArtifactError unless the engine shows what the card judges and explains by."""
    if card.class_weights is None:
        return
    shown = classifier.answer(golden_image(card.image)[np.newaxis], with_features=True)
    size = card.class_weights.shape[0]
    for name, array in (("embedding", shown.embeddings), ("features", shown.features)):
        if array is None or array.shape[-1] != size:
            raise ArtifactError(f"The network must show an {name} of {size} numbers, as its card says.")


def _open_engine(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    if engine == "litert":
        compiled = load_compiled(artifact, cache_dir)
        return LiteRtClassifier(compiled, artifact.card.scale, interpreters)
    try:
        tensorflow_engine = importlib.import_module("model.tensorflow_engine")
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"The tensorflow engine needs {error.name}, which serving does without: make dev"
        ) from None
    classifier: Classifier = tensorflow_engine.open_tensorflow(artifact)
    return classifier
