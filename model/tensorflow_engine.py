"""The reference engine: TensorFlow runs the .h5. It is not installed where the service only serves."""

import keras
import numpy as np
import tensorflow as tf

from model.arrays import Floats, Pixels
from model.artifact import Artifact, ArtifactCard
from model.engines import Answers, Images, join_answers, verify_golden
from model.networks.network import Network, Stages, network_of, open_network, with_stages

# Small enough for the CPU cache, large enough to amortise the overhead of a call.
BATCH_SIZE = 8


class TensorFlowClassifier:
    def __init__(
        self, network: keras.Model | Network, scale: float = 1.0, stages: Stages | None = None
    ) -> None:
        if not isinstance(network, Network):
            network = network_of(network)
        call = with_stages(network, stages)
        self._resources = network.resources
        shape = network.input_shape if stages is None else (None, *stages.shape)
        self._answer = tf.function(
            lambda images: call(tf.cast(images, tf.float32) * scale),
            autograph=False,
            input_signature=[tf.TensorSpec(shape, tf.uint8)],
        )

    def predict(self, images: Pixels) -> Floats:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        batches = np.split(np.asarray(images), range(BATCH_SIZE, len(images), BATCH_SIZE))
        answers = [self._answer_batch(batch, with_features=with_features) for batch in batches]
        return join_answers(answers)

    def _answer_batch(self, batch: Pixels, *, with_features: bool) -> Answers:
        outputs = {name: output.numpy() for name, output in self._answer(batch).items()}
        features = outputs.get("features") if with_features else None
        return Answers(outputs["probabilities"], outputs.get("embedding"), features)


def with_golden_answer(
    card: ArtifactCard, network: keras.Model | Network, stages: Stages | None = None
) -> ArtifactCard:
    """Return the card with this network's probabilities for its golden image. Raises ArtifactError."""
    golden = verify_golden(TensorFlowClassifier(network, card.scale, stages), card)
    return card.model_copy(update={"golden_probabilities": tuple(golden.tolist())})


def open_tensorflow(artifact: Artifact) -> TensorFlowClassifier:
    """Load the artifact's network. Raises ArtifactError if its shapes do not match the card."""
    network, stages = open_network(artifact.h5_path, artifact.card)
    return TensorFlowClassifier(network, artifact.card.scale, stages)
