"""An .h5 saved by the published script can be served once it has a card."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from model.artifact import Artifact, card_path, load_artifact, sha256_of
from model.compile import compile_artifact
from model.defaults import Engine
from model.engines import Classifier, open_classifier
from model.image import ImageSpec
from tests.model.conftest import random_images

# The published script passes an input_shape to its first layer, of which Keras 3 warns.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`:UserWarning:keras"),
]

NAMES = ("Crazing", "Inclusion", "Patches")
SPEC = ImageSpec(height=24, width=20, channels=3)
IMAGES = random_images(20, SPEC)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A network trained as in the published script: pixels divided by 255 outside, saved with its optimizer.

    Returns the .h5, and Keras's own predictions for IMAGES.
    """
    keras.utils.set_random_seed(5)
    network = keras.Sequential(
        [
            layers.Conv2D(16, 2, strides=2, activation="elu", input_shape=SPEC.shape),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 2, dilation_rate=2, activation="elu"),
            layers.Flatten(),
            layers.Dense(32, activation="elu"),
            layers.Dropout(0.3),
            layers.Dense(len(NAMES), activation="softmax"),
        ]
    )
    network.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    labels = np.eye(3, dtype=np.float32)[np.arange(len(IMAGES)) % 3]
    network.fit(IMAGES / 255.0, labels, epochs=3, verbose=0)
    h5_path = tmp_path_factory.mktemp("published") / "published.h5"
    network.save(h5_path)
    return h5_path, network.predict(IMAGES / 255.0, verbose=0)


@pytest.fixture
def h5_path(published: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    """A copy of the published h5, alone in its folder."""
    path = tmp_path / "elsewhere" / "published.h5"
    path.parent.mkdir()
    path.write_bytes(published[0].read_bytes())
    return path


def serve(artifact: Artifact, engine: Engine) -> Classifier:
    compile_artifact(artifact)
    return open_classifier(artifact, engine, interpreters=1, cache_dir=artifact.h5_path.parent / "cache")


@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
def test_hand_written_card_of_four_fields_is_enough(
    published: tuple[Path, np.ndarray], h5_path: Path, engine: Engine
) -> None:
    card = {
        "class_names": NAMES,
        "image": {"height": 24, "width": 20, "channels": 3},
        "scale": 1 / 255,
        "sha256": sha256_of(h5_path),
    }
    card_path(h5_path).write_text(json.dumps(card), encoding="utf-8")
    probabilities = serve(load_artifact(h5_path), engine).predict(IMAGES)
    assert np.abs(probabilities - published[1]).max() <= 1e-5
