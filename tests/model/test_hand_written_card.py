"""An .h5 saved by the published script can be served once it has a card."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from model.artifact import Artifact, card_path, load_artifact, save_card, sha256_of
from model.compile import compile_artifact
from model.defaults import Engine
from model.engines import Classifier, LiteRtClassifier, open_classifier
from model.errors import ArtifactError
from model.image import ImageSpec
from model.networks.keras_model import save_network
from model.training.save import describe
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
def test_described_network_predicts_as_keras_does(
    published: tuple[Path, np.ndarray], h5_path: Path, engine: Engine
) -> None:
    artifact = describe(h5_path, NAMES, 1 / 255)
    probabilities = serve(artifact, engine).predict(IMAGES)
    assert np.abs(probabilities - published[1]).max() <= 1e-5


def test_wrong_scale_changes_the_predictions(published: tuple[Path, np.ndarray], h5_path: Path) -> None:
    compiled = compile_artifact(describe(h5_path, NAMES, 1 / 255)).tflite.read_bytes()
    unscaled = LiteRtClassifier(compiled, 1.0, 1).predict(IMAGES)
    assert np.abs(unscaled - published[1]).max() > 0.01


def test_card_contains_classes_size_and_scale(h5_path: Path) -> None:
    artifact = describe(h5_path, NAMES, 1 / 255)
    assert load_artifact(h5_path) == artifact
    assert artifact.card.class_names == NAMES
    assert artifact.card.image == SPEC
    assert artifact.card.scale == 1 / 255
    assert artifact.card.golden_probabilities is not None


@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
def test_scale_changed_after_describing_is_detected(h5_path: Path, engine: Engine) -> None:
    artifact = describe(h5_path, NAMES, 1 / 255)
    card = artifact.card.model_copy(update={"scale": 1.0})
    with pytest.raises(ArtifactError, match="golden image"):
        serve(save_card(h5_path, card), engine)


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


def test_existing_card_is_not_overwritten(h5_path: Path) -> None:
    describe(h5_path, NAMES, 1 / 255)
    before = card_path(h5_path).read_bytes()
    with pytest.raises(ArtifactError, match=r"Received: .*published\.json"):
        describe(h5_path, NAMES, 1.0)
    assert card_path(h5_path).read_bytes() == before


def test_missing_h5_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Missing: .*none\.h5"):
        describe(tmp_path / "none.h5", NAMES, 1.0)


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (NAMES[:2], 1.0),
        ((*NAMES, "Rolled"), 1.0),
        (("Crazing", "Crazing", "Patches"), 1.0),
        (("Crazing", "", "Patches"), 1.0),
        (NAMES, 0.0),
        (NAMES, float("inf")),
    ],
    ids=["too-few", "too-many", "twice", "empty-name", "zero-scale", "infinite-scale"],
)
def test_invalid_description_is_refused_and_no_card_written(
    h5_path: Path, names: tuple[str, ...], scale: float
) -> None:
    with pytest.raises(ArtifactError):
        describe(h5_path, names, scale)
    assert not card_path(h5_path).exists()


@pytest.mark.parametrize("activation", [None, "sigmoid"], ids=["logits", "sigmoid"])
def test_network_without_probabilities_is_refused_before_it_is_served(
    tmp_path: Path, activation: str | None
) -> None:
    # Constant weights, because with random ones the three sigmoids may happen to sum to 1.
    dense = keras.layers.Dense(3, activation=activation, kernel_initializer="ones")
    network = keras.Sequential([keras.Input(SPEC.shape), keras.layers.Flatten(), dense])
    path = tmp_path / "network.h5"
    save_network(network, path)
    with pytest.raises(ArtifactError, match="sum to 1"):
        describe(path, NAMES, 1.0)
    assert not card_path(path).exists()


@pytest.mark.parametrize("shape", [(24, 20, 4), (None, None, 3), (50,)])
def test_network_without_a_fixed_image_shape_is_refused(
    tmp_path: Path, shape: tuple[int | None, ...]
) -> None:
    pooling = [layers.GlobalAveragePooling2D()] if len(shape) == 3 else []
    network = keras.Sequential([keras.Input(shape), *pooling, layers.Dense(3, activation="softmax")])
    network.save(tmp_path / "odd.h5")
    with pytest.raises(ArtifactError, match="must take images"):
        describe(tmp_path / "odd.h5", NAMES, 1.0)


def test_describing_does_not_change_the_h5(published: tuple[Path, np.ndarray], h5_path: Path) -> None:
    artifact = describe(h5_path, NAMES, 1 / 255)
    assert h5_path.read_bytes() == published[0].read_bytes()
    assert artifact.version == sha256_of(h5_path)[:12]
