"""Both engines agree in every batch and thread, and open only the network of the card."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from model.artifact import (
    Artifact,
    ArtifactCard,
    load_artifact,
    next_to_h5,
    save_card,
    sha256_of,
    write_compiled,
)
from model.compile import compile_artifact
from model.defaults import Engine
from model.engines import Classifier, LiteRtClassifier, open_classifier
from model.errors import ArtifactError
from model.image import ImageSpec
from model.networks.keras_model import save_network
from model.training.fit import save
from model.training.recipe import recipe_cnn
from tests.model.conftest import CLASS_NAMES, SPEC, random_images, tiny_network

pytestmark = pytest.mark.slow

ENGINES = ("litert", "tensorflow")
IMAGES = random_images(32)
every_engine = pytest.mark.parametrize("engine", ENGINES)


def open_engine(artifact: Artifact, engine: Engine, interpreters: int = 1) -> Classifier:
    return open_classifier(artifact, engine, interpreters, artifact.h5_path.parent / "cache")


def artifact_of(network: keras.Model, folder: Path, classes: int = len(CLASS_NAMES)) -> Artifact:
    """A compiled network with a hand-written card that has no golden probabilities."""
    h5_path = folder / "other.h5"
    save_network(network, h5_path)
    card = ArtifactCard(
        class_names=("a", "b", "c", "d")[:classes], image=SPEC, scale=1.0, sha256=sha256_of(h5_path)
    )
    artifact = save_card(h5_path, card)
    if network.output_shape == (None, classes):
        compile_artifact(artifact)
    return artifact


@pytest.fixture(scope="module", params=["pristine", "heavy"])
def served(request: pytest.FixtureRequest) -> Artifact:
    """A network that is compiled whole, and one that is compiled in two parts."""
    artifact: Artifact = request.getfixturevalue(request.param)
    return artifact


@pytest.fixture(scope="module")
def litert(served: Artifact) -> Classifier:
    return open_engine(served, "litert", interpreters=2)


@pytest.fixture(scope="module")
def alone(litert: Classifier) -> np.ndarray:
    """Predictions for IMAGES, with one call per image."""
    return np.concatenate([litert.predict(image[np.newaxis]) for image in IMAGES])


class TestParity:
    def test_engines_agree_on_random_images(self, served: Artifact, litert: Classifier) -> None:
        a, b = litert.predict(IMAGES), open_engine(served, "tensorflow").predict(IMAGES)
        assert np.array_equal(a.argmax(axis=1), b.argmax(axis=1))
        assert np.abs(a - b).max() <= 1e-5
        assert len(set(a.argmax(axis=1))) > 1, "the test requires outputs that differ"

    def test_engines_agree_on_the_recipe(self, tmp_path: Path) -> None:
        spec = ImageSpec(height=200, width=200, channels=3)
        keras.utils.set_random_seed(0)
        names = {"class_names": tuple("abcdef"), "image": spec}
        artifact = save(recipe_cnn(spec, 6), tmp_path / "recipe.h5", names)
        compile_artifact(artifact)
        images = random_images(4, spec)
        a, b = (open_engine(artifact, engine).predict(images) for engine in ENGINES)
        assert np.array_equal(a.argmax(axis=1), b.argmax(axis=1))
        assert np.abs(a - b).max() <= 1e-5

    @every_engine
    def test_probabilities_have_one_row_per_image(self, pristine: Artifact, engine: Engine) -> None:
        classifier = open_engine(pristine, engine)
        for count in (1, 2, 8, 9, 17):
            probabilities = classifier.predict(IMAGES[:count])
            assert probabilities.shape == (count, 3)
            assert probabilities.dtype == np.float32
            assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)

    def test_network_with_a_heavy_head_is_in_two_parts(self, pristine: Artifact, heavy: Artifact) -> None:
        """Otherwise, the tests in this file do not cover such a network."""
        whole, split = (Interpreter(str(next_to_h5(artifact).tflite)) for artifact in (pristine, heavy))
        assert list(whole.get_signature_list()) == ["serving_default"]
        assert list(split.get_signature_list()) == ["body", "head"]

    @every_engine
    def test_rows_are_in_the_order_of_the_images(self, pristine: Artifact, engine: Engine) -> None:
        classifier = open_engine(pristine, engine)
        forward, backward = classifier.predict(IMAGES), classifier.predict(IMAGES[::-1])
        assert np.allclose(forward, backward[::-1], atol=1e-6)
        assert not np.allclose(forward, backward, atol=1e-2)


class TestSameImageSameAnswer:
    def test_in_any_batch_and_position(self, litert: Classifier, alone: np.ndarray) -> None:
        order = np.random.default_rng(0).permutation(len(IMAGES))
        for size in (1, 2, 3, 7, 16, 32):
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                assert np.array_equal(litert.predict(IMAGES[batch]), alone[batch])

    def test_from_eight_threads_at_once(self, litert: Classifier, alone: np.ndarray) -> None:
        """Two interpreters serve eight threads, and none must read another thread's pixels."""
        rng = np.random.default_rng(1)
        batches = [rng.choice(len(IMAGES), size=5) for _ in range(400)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda batch: litert.predict(IMAGES[batch]), batches))
        for batch, answer in zip(batches, answers, strict=True):
            assert np.array_equal(answer, alone[batch])

    def test_answers_are_copies(self, litert: Classifier, alone: np.ndarray) -> None:
        first = litert.predict(IMAGES[:1])
        for image in IMAGES[1:]:
            litert.predict(image[np.newaxis])
        assert np.array_equal(first, alone[:1])

    def test_images_that_are_not_contiguous_give_the_same_output(
        self, litert: Classifier, alone: np.ndarray
    ) -> None:
        stretched = np.repeat(IMAGES, 2, axis=2)[:, :, ::2]
        assert not stretched.flags["C_CONTIGUOUS"]
        assert np.array_equal(litert.predict(stretched), alone)

    def test_interpreter_survives_a_wrong_image(self, served: Artifact, alone: np.ndarray) -> None:
        single = open_engine(served, "litert", interpreters=1)
        for shape in ((1, 5, 5, 3), (1, 200, 200, 1), (1, 1, 200, 3)):
            with pytest.raises(ValueError, match="An image must be"):
                single.predict(np.zeros(shape, np.uint8))
        assert np.array_equal(single.predict(IMAGES), alone)


class TestSelfTest:
    @every_engine
    def test_wrong_scale_is_detected(self, artifact: Artifact, engine: Engine) -> None:
        card = artifact.card.model_copy(update={"scale": 1 / 255})
        with pytest.raises(ArtifactError, match="golden image"):
            open_engine(save_card(artifact.h5_path, card), engine)

    @every_engine
    def test_swapped_golden_answer_is_noticed(self, artifact: Artifact, engine: Engine) -> None:
        assert artifact.card.golden_probabilities is not None
        changes = {"golden_probabilities": artifact.card.golden_probabilities[::-1]}
        with pytest.raises(ArtifactError, match="golden image"):
            open_engine(save_card(artifact.h5_path, artifact.card.model_copy(update=changes)), engine)

    @every_engine
    def test_network_without_a_softmax_is_refused(self, tmp_path: Path, engine: Engine) -> None:
        with pytest.raises(ArtifactError, match="sum to 1"):
            open_engine(artifact_of(tiny_network(activation="linear"), tmp_path), engine)

    @every_engine
    def test_network_that_answers_nan_is_refused(self, tmp_path: Path, engine: Engine) -> None:
        network = tiny_network()
        network.set_weights([np.full_like(weights, np.nan) for weights in network.get_weights()])
        with pytest.raises(ArtifactError, match="probabilities"):
            open_engine(artifact_of(network, tmp_path), engine)

    @every_engine
    def test_network_with_negative_outputs_is_refused(self, tmp_path: Path, engine: Engine) -> None:
        """Its outputs sum to 1 nevertheless."""
        network = keras.Sequential([keras.Input(SPEC.shape), layers.Flatten(), layers.Dense(3)])
        kernel, _ = network.get_weights()
        network.set_weights([np.zeros_like(kernel), np.array([-1.0, 1.0, 1.0])])
        with pytest.raises(ArtifactError, match="probabilities"):
            open_engine(artifact_of(network, tmp_path), engine)

    def test_compiled_model_with_other_classes_than_the_card_is_refused(self, artifact: Artifact) -> None:
        """The card was edited after compilation; the stamp of the compiled model still matches the .h5."""
        changes = {"class_names": ("a", "b"), "golden_probabilities": None}
        edited = save_card(artifact.h5_path, artifact.card.model_copy(update=changes))
        with pytest.raises(ArtifactError, match=r"each of the 2 classes\. Received: outputs of shape \(3,\)"):
            open_engine(edited, "litert")

    def test_h5_with_other_classes_than_the_card_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="must match its card"):
            open_engine(artifact_of(tiny_network(), tmp_path, classes=4), "tensorflow")

    @every_engine
    @pytest.mark.parametrize("changes", [{"height": 17}, {"channels": 1}])
    def test_network_for_other_images_is_refused(
        self, artifact: Artifact, engine: Engine, changes: dict[str, int]
    ) -> None:
        image = artifact.card.image.model_copy(update=changes)
        card = artifact.card.model_copy(update={"image": image})
        with pytest.raises(ArtifactError, match=r"^The network"):
            open_engine(save_card(artifact.h5_path, card), engine)

    def test_compiled_model_that_is_not_litert_is_refused(self, artifact: Artifact) -> None:
        write_compiled(artifact, next_to_h5(artifact), b"not a flatbuffer", {})
        with pytest.raises(ArtifactError):
            open_engine(artifact, "litert")

    def test_card_without_a_golden_answer_is_served(self, artifact: Artifact) -> None:
        card = artifact.card.model_copy(update={"golden_probabilities": None})
        save_card(artifact.h5_path, card)
        classifier = open_engine(load_artifact(artifact.h5_path), "litert")
        assert classifier.predict(IMAGES[:1]).shape == (1, 3)


def test_tensorflow_engine_names_what_to_install(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "model.tensorflow_engine", raising=False)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ArtifactError, match=r"requires keras.* make dev"):
        open_engine(artifact, "tensorflow")


def test_scale_is_applied_to_the_pixels(artifact: Artifact) -> None:
    compiled = next_to_h5(artifact).tflite.read_bytes()
    halved = LiteRtClassifier(compiled, 0.5, 1).predict(IMAGES // 2 * 2)
    assert np.array_equal(halved, LiteRtClassifier(compiled, 1.0, 1).predict(IMAGES // 2))


def test_broadcast_grey_image_gives_the_same_output_as_its_copy(pristine: Artifact) -> None:
    litert = open_engine(pristine, "litert", interpreters=1)
    height, width, channels = pristine.card.image.shape
    grey = np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8)
    shown = np.broadcast_to(grey, (height, width, channels))
    assert shown.strides[2] == 0
    assert np.array_equal(litert.answer([shown]).probabilities, litert.predict(np.stack([shown])))
