"""The reference engine: TensorFlow runs the .h5. It is not installed where the service only serves."""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.artifact import Artifact, ArtifactCard
from model.engines import Answers, Images, join_answers, verify_golden
from model.networks.keras_model import load_network, named_outputs, refuse_mismatch

# Small enough for the CPU cache, large enough to amortise the overhead of a call.
BATCH_SIZE = 8


class TensorFlowClassifier:
    """A Keras network as a Classifier."""

    def __init__(self, network: keras.Model, scale: float = 1.0) -> None:
        named = keras.Model(network.inputs, named_outputs(network))
        self._answer = tf.function(
            lambda images: named(tf.cast(images, tf.float32) * scale, training=False),
            input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)],
        )

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        batches = np.split(np.asarray(images), range(BATCH_SIZE, len(images), BATCH_SIZE))
        answers = [self._answer_batch(batch, with_features=with_features) for batch in batches]
        return join_answers(answers)

    def _answer_batch(self, batch: NDArray[np.uint8], *, with_features: bool) -> Answers:
        outputs = {name: output.numpy() for name, output in self._answer(batch).items()}
        features = outputs.get("features") if with_features else None
        return Answers(outputs["probabilities"], outputs.get("embedding"), features)


def with_golden_answer(card: ArtifactCard, network: keras.Model) -> ArtifactCard:
    """Return the card with this network's probabilities for its golden image. Raises ArtifactError."""
    golden = verify_golden(TensorFlowClassifier(network, card.scale), card)
    return card.model_copy(update={"golden_probabilities": tuple(golden.tolist())})


def open_tensorflow(artifact: Artifact) -> TensorFlowClassifier:
    """Load the artifact's .h5. Raises ArtifactError if its shapes do not match the card."""
    network = load_network(artifact.h5_path)
    refuse_mismatch(network, artifact.card)
    return TensorFlowClassifier(network, artifact.card.scale)
