"""Open an engine and run its self-test. LiteRT is for serving; TensorFlow is the reference."""

import importlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, ArtifactCard, golden_image
from model.classifier import Classifier
from model.compiled import load_compiled
from model.defaults import Engine
from model.errors import ArtifactError
from model.litert_engine import LiteRtClassifier

# The engines agree to about 1e-6; a wrong network or scale causes a far larger difference.
GOLDEN_TOLERANCE = 1e-4


def open_classifier(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    """Load and warm up an engine, and run its self-test on the golden image. Raises ArtifactError."""
    classifier = _open_engine(artifact, engine, interpreters, cache_dir)
    verify_golden(classifier, artifact.card)
    _verify_outputs(classifier, artifact.card)
    return classifier


def verify_golden(classifier: Classifier, card: ArtifactCard) -> NDArray[np.float32]:
    """Return the engine's probabilities (k,) for the golden image.

    Raises ArtifactError unless there is one probability per class and they match the card's, if it has any.
    """
    image = golden_image(card.image)[np.newaxis]
    try:
        probabilities: NDArray[np.float32] = classifier.predict(image)[0]
    # For a wrong shape, LiteRT raises ValueError, TensorFlow its own exceptions.
    except Exception as error:
        raise ArtifactError(f"The network must take {card.image.shape} images: {error}") from error
    if probabilities.shape != (len(card.class_names),):
        raise ArtifactError(
            f"The network must have an output for each of the {len(card.class_names)} classes. "
            f"Received: outputs of shape {probabilities.shape}."
        )
    if not np.isclose(probabilities.sum(), 1.0, atol=1e-3) or (probabilities < 0).any():
        raise ArtifactError("The network must output probabilities that sum to 1, such as a softmax does.")
    if card.golden_probabilities is None:
        return probabilities
    difference = float(np.abs(probabilities - np.array(card.golden_probabilities)).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"The engine's probabilities for the golden image must match the card's "
            f"within {GOLDEN_TOLERANCE}. Received: a difference of {difference:.2g}."
        )
    return probabilities


def _verify_outputs(classifier: Classifier, card: ArtifactCard) -> None:
    """Raise ArtifactError if the engine lacks the outputs that the card needs for abstention and evidence."""
    if card.class_weights is None:
        return
    outputs = classifier.answer(golden_image(card.image)[np.newaxis], with_features=True)
    size = card.class_weights.shape[0]
    for name, array in (("embedding", outputs.embeddings), ("features", outputs.features)):
        if array is None or array.shape[-1] != size:
            raise ArtifactError(f"The network must have the output `{name}` of size {size}, as in its card.")


def _open_engine(artifact: Artifact, engine: Engine, interpreters: int, cache_dir: Path) -> Classifier:
    if engine == "litert":
        compiled = load_compiled(artifact, cache_dir)
        return LiteRtClassifier(compiled, artifact.card.scale, interpreters)
    try:
        tensorflow_engine = importlib.import_module("model.tensorflow_engine")
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"The tensorflow engine requires {error.name}, which is not installed for serving. Run: make dev"
        ) from None
    classifier: Classifier = tensorflow_engine.open_tensorflow(artifact)
    return classifier
