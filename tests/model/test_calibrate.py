"""Calibration of networks trained elsewhere, against networks whose true posterior is known."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from app.workers.classify import ImageClassifier
from model.artifact import Artifact, WrittenArtifact, load_artifact, save_card
from model.calibrate import calibrate
from model.compile import compile_artifact
from model.engines import open_classifier
from model.errors import ArtifactError, DatasetError
from model.evaluation.hard_images import out_of_distribution_sets
from model.image import ImageSpec, encode_png
from model.image_limits import ImageLimits
from model.importing import Request, import_network
from model.networks import pretrained_blocks
from model.networks.pretrained_blocks import detector_network
from model.novelty import Novelty, reasons_to_abstain
from model.training.calibration import fit_novelty
from tests.model.conftest import random_images
from tests.model.kinds import KINDS, Kind, convert
from tests.model.known_posterior import LEVELS, NAMES, SPEC, own_logits, softmax, write_images, write_network

pytestmark = pytest.mark.slow


def make(folder: Path, factor: float = 1.0, outputs: str = "softmax") -> Artifact:
    request = Request(NAMES, "raw", is_multi_label=outputs == "sigmoid")
    return import_network(write_network(folder / "network.h5", factor, outputs), request).artifact


@pytest.fixture(scope="module", autouse=True)
def _small_detector() -> Iterator[None]:
    """Most of a calibration's time is the detector's, which grows with its pixels and its calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained_blocks, "DETECTOR_SIDE", 48)
        patch.setattr("model.calibrate.BATCH_SIZE", 1000)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def sure(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WrittenArtifact:
    """A network whose logits are four times too large, calibrated. Read-only."""
    return calibrate(make(tmp_path_factory.mktemp("sure"), 4.0), folder)


class TestConfidence:
    def test_temperature_undoes_the_scale_of_logits(self, sure: WrittenArtifact) -> None:
        """Within the sampling error of the accuracy on 120 images."""
        assert sure.artifact.card.temperature == pytest.approx(4.0, rel=0.4)

    def test_calibration_error_falls_on_held_out_images(self, sure: WrittenArtifact) -> None:
        measured = sure.artifact.card.metrics["calibration"]
        errors = measured["expected_calibration_error"]
        assert errors["after"] < errors["before"]
        means = measured["mean_confidence"]
        assert abs(means["after"] - measured["accuracy"]) < abs(means["before"] - measured["accuracy"]) / 2
        assert measured["images"]["held_out"] == 120
        assert 0.7 < measured["accuracy"] < 0.95

    @pytest.mark.parametrize("engine", ["litert", "tensorflow"])
    def test_served_probabilities_are_those_of_divided_logits(
        self, sure: WrittenArtifact, engine: Any, tmp_path: Path
    ) -> None:
        images = random_images(4, SPEC) // np.arange(1, 5, dtype=np.uint8)[:, None, None, None]
        served = open_classifier(sure.artifact, engine, 1, tmp_path).predict(images)
        temperature = sure.artifact.card.temperature
        assert temperature is not None
        assert np.allclose(served, softmax(own_logits(images, 4.0) / temperature), atol=1e-4)

    def test_logits_thousands_apart_keep_their_order(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The network's own softmax has only zeros and ones."""
        monkeypatch.setattr("model.calibrate._fit_abstention", lambda *_: None)
        artifact = calibrate(make(tmp_path, 200.0), folder).artifact
        assert artifact.card.temperature == pytest.approx(20.0, rel=0.01), "the largest"
        images = np.stack([np.full(SPEC.shape, level, np.uint8) for level in (130, 140, 150)])
        served = open_classifier(artifact, "litert", 1, tmp_path).predict(images)
        assert np.allclose(served, softmax(own_logits(images, 10.0)), atol=1e-3)


class TestHonesty:
    def test_test_images_are_measured_and_not_fitted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second calibration starts from the network again, not from the first."""
        monkeypatch.setattr("model.calibrate._save", save_card)  # the fits need no compiled network
        data = tmp_path / "data"
        for seed, name in enumerate(("train", "valid", "test")):
            write_images(data / name, 12, seed)
        artifact = make(tmp_path, 4.0)
        first = calibrate(artifact, data).artifact.card
        shutil.rmtree(data / "test")
        write_images(data / "test", 9, 7)
        second = calibrate(artifact, data).artifact.card
        assert first.metrics["calibration"]["measured_on"] == "test"
        assert first.temperature == pytest.approx(second.temperature, rel=1e-4)
        assert first.golden_novelty == pytest.approx(second.golden_novelty, rel=1e-3)
        assert first.sha256 == second.sha256 == artifact.card.sha256
        assert first.metrics["calibration"] != second.metrics["calibration"]
        assert second.metrics["calibration"]["images"] == {"fitted": 36, "held_out": 27}

    def test_abstention_is_measured_as_it_is_served(self, sure: WrittenArtifact, tmp_path: Path) -> None:
        card = sure.artifact.card
        classifier = open_classifier(sure.artifact, "litert", 1, tmp_path)
        for name, images in out_of_distribution_sets(card.image, []).items():
            reasons = reasons_to_abstain(card.novelty, classifier.answer(images).embeddings, len(images))
            share = sum(reason is not None for reason in reasons) / len(images)
            assert share == pytest.approx(card.metrics["calibration"]["abstained"][name], abs=1e-4)
        assert card.metrics["calibration"]["abstained"]["shapes"] > 0.5

    def test_few_images_and_independent_outputs_are_said(self, tmp_path: Path) -> None:
        artifact = make(tmp_path, 1.0, "sigmoid")
        calibrated = calibrate(artifact, write_images(tmp_path / "few", 3))
        card = calibrated.artifact.card
        assert card.metrics["calibration"]["images"] == {"fitted": 9, "held_out": 9}
        assert any("rough" in warning for warning in calibrated.warnings)
        assert card.temperature is None
        assert "calibration" in card.missing
        assert any("no temperature" in warning for warning in calibrated.warnings)

    def test_detector_that_abstains_on_its_own_classes_is_left_out(self, tmp_path: Path) -> None:
        """As with another camera: the test images have stripes, those of the fit have grain."""
        data = tmp_path / "data"
        for seed, name in enumerate(("train", "valid")):
            write_images(data / name, 8, seed)
        stripes = np.where(np.arange(24) % 8 < 4, 45, -45)[np.newaxis, :, np.newaxis]
        for name, level in LEVELS.items():
            (data / "test" / name).mkdir(parents=True)
            for number in range(5):
                pixels = np.broadcast_to(level + number + stripes, SPEC.shape).astype(np.uint8)
                (data / "test" / name / f"{number}.png").write_bytes(encode_png(pixels))
        calibrated = calibrate(make(tmp_path), data)
        card = calibrated.artifact.card
        assert card.metrics["calibration"]["abstained"]["held_out"] > 0.9
        assert card.novelty is None
        assert card.missing == ["abstention"]
        assert any("does not abstain" in warning for warning in calibrated.warnings)


def test_tflite_is_calibrated_as_it_is(folder: Path, tmp_path: Path) -> None:
    network = keras.models.load_model(write_network(tmp_path / "network.h5", 4.0))
    path = tmp_path / "given.tflite"
    path.write_bytes(convert(network, is_quantised=False))
    given = path.read_bytes()
    calibrated = calibrate(import_network(path, Request(NAMES, "raw")).artifact, folder)
    card = load_artifact(path).card
    assert path.read_bytes() == given
    assert card.temperature == pytest.approx(4.0, rel=0.4)
    assert card.missing == ["abstention"]
    assert any("without abstention" in warning for warning in calibrated.warnings)
    served = open_classifier(load_artifact(path), "litert", 1, tmp_path / "cache").predict(
        random_images(3, SPEC)
    )
    expected = softmax(own_logits(random_images(3, SPEC), 4.0 / (card.temperature or 1)))
    assert np.allclose(served, expected, atol=1e-4)
    assert not (tmp_path / "cache").exists()


class TestRefusals:
    """Each leaves the artifact as it was."""

    def check(self, artifact: Artifact, data: Path, error: type[Exception], match: str) -> None:
        before = {path: path.read_bytes() for path in artifact.h5_path.parent.glob("network.*")}
        with pytest.raises(error, match=match):
            calibrate(artifact, data)
        assert {path: path.read_bytes() for path in before} == before

    def test_network_that_ignores_these_images(self, folder: Path, tmp_path: Path) -> None:
        """As with pixels that a wrong preprocessing has clipped."""
        inputs = keras.Input(SPEC.shape)
        clipped = keras.layers.ReLU(max_value=255.0, threshold=254.5)(inputs)
        pooled = keras.layers.GlobalMaxPooling2D()(keras.layers.AveragePooling2D(24)(clipped))
        network = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(pooled))
        network.save(tmp_path / "network.h5")
        artifact = import_network(tmp_path / "network.h5", Request(NAMES, "raw")).artifact
        dark, random = tmp_path / "dark", np.random.default_rng(0)
        for source in folder.rglob("*.png"):
            target = dark / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode_png(random.integers(0, 200, SPEC.shape, dtype=np.uint8)))
        self.check(artifact, dark, ArtifactError, "depend on the image")

    def test_names_in_the_wrong_order(self, folder: Path, tmp_path: Path) -> None:
        path = write_network(tmp_path / "network.h5")
        artifact = import_network(path, Request((*NAMES[1:], NAMES[0]), "raw")).artifact
        self.check(artifact, folder, ArtifactError, "right on more images")

    def test_folder_without_a_class(self, folder: Path, tmp_path: Path) -> None:
        data = shutil.copytree(folder, tmp_path / "two")
        shutil.rmtree(data / "mid")
        self.check(make(tmp_path), data, DatasetError, "must contain the classes")

    def test_two_images_of_a_class(self, tmp_path: Path) -> None:
        self.check(make(tmp_path), write_images(tmp_path / "two", 2), DatasetError, "at least 3 images")

    def test_network_that_training_has_calibrated(self, folder: Path, tmp_path: Path) -> None:
        artifact = make(tmp_path)
        trained = artifact.card.model_copy(update={"training": {"temperature": 1.5}})
        self.check(save_card(artifact.h5_path, trained), folder, ArtifactError, "train calibrates its own")


class TestArtifact:
    def test_nothing_is_missing(self, sure: WrittenArtifact) -> None:
        assert sure.artifact.card.missing == []

    @pytest.mark.parametrize("change", [{"temperature": 3.0}, {"novelty": None}, {"temperature": None}])
    def test_changed_calibration_does_not_use_the_compiled_network(
        self, sure: WrittenArtifact, change: dict[str, Any]
    ) -> None:
        card = sure.artifact.card
        assert card.model_copy(update=change).stages_sha256 != card.stages_sha256

    def test_self_test_finds_another_detector(self, sure: WrittenArtifact, tmp_path: Path) -> None:
        folder = shutil.copytree(sure.artifact.h5_path.parent, tmp_path / "changed")
        card = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        card["golden_novelty"] *= 1.1
        (folder / "network.json").write_text(json.dumps(card), encoding="utf-8")
        with pytest.raises(ArtifactError, match="novelty of the golden image"):
            open_classifier(load_artifact(folder / "network.h5"), "litert", 1, tmp_path)


WITH_DETECTOR = ("keras-heavy-head", "keras-grey", "keras-saved-model", "tf_keras-nested")
CHOSEN = (*WITH_DETECTOR, "keras-logits", "keras-sigmoid", "keras-operations", "tflite", "tflite-quantised")


@pytest.fixture(scope="module")
def detector() -> Callable[[ImageSpec], tuple[Novelty, keras.Model]]:
    found: dict[ImageSpec, tuple[Novelty, keras.Model]] = {}

    def make(spec: ImageSpec) -> tuple[Novelty, keras.Model]:
        if spec not in found:
            network = detector_network(spec)
            described = np.asarray(network(random_images(12, spec).astype(np.float32))["statistics"])
            fitted = fit_novelty(described, np.arange(12) % 2, np.arange(12))
            found[spec] = fitted.model_copy(update={"embedding": "pretrained"}), network
        return found[spec]

    return make


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in CHOSEN], ids=lambda kind: kind.name)
def test_every_kind_of_network_takes_a_temperature_and_a_detector(
    kind: Kind, detector: Callable[[ImageSpec], tuple[Novelty, keras.Model]], tmp_path: Path
) -> None:
    """Probabilities are the own answers to the power of 1 / temperature, normalised."""
    path, own_answer = kind.write(tmp_path)
    card = import_network(path, kind.request).artifact.card
    changes: dict[str, Any] = {"temperature": 2.5, "golden_probabilities": None}
    novelty, network = detector(card.image) if kind.name in WITH_DETECTOR else (None, None)
    compile_artifact(save_card(path, card.model_copy(update={**changes, "novelty": novelty})))
    images = random_images(3, card.image, 1)
    powers = own_answer(images) ** (1 / 2.5)
    expected = powers / powers.sum(axis=1, keepdims=True)
    for engine in ("litert",) if card.is_given_tflite else ("litert", "tensorflow"):
        classifier = open_classifier(load_artifact(path), engine, 1, tmp_path)  # type: ignore[arg-type]
        answers = classifier.answer(images)
        assert np.abs(answers.probabilities - expected).max() <= kind.tolerance
        if network is not None:
            assert answers.embeddings is not None
            described = np.asarray(network(images.astype(np.float32))["statistics"])
            assert np.allclose(answers.embeddings, described, rtol=1e-3, atol=1e-4)


def test_network_without_pooling_shows_evidence_by_occlusion(tmp_path: Path) -> None:
    """A network that compares the left half with the right one."""
    network = keras.Sequential(
        [keras.Input((32, 32, 1)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    )
    side = np.where(np.arange(32) < 16, 1.0, -1.0)
    kernel = np.tile(side, 32).reshape(-1, 1) * np.array([[1.0, -1.0]]) / 5000
    network.layers[-1].set_weights([kernel, np.zeros(2)])
    network.save(tmp_path / "network.h5")
    artifact = import_network(tmp_path / "network.h5", Request(("left", "right"), "raw")).artifact
    artifact = save_card(artifact.h5_path, artifact.card.model_copy(update={"shows_occlusion": True}))
    classifier = ImageClassifier(artifact, open_classifier(artifact, "litert", 1, tmp_path), ImageLimits())
    images = []
    for left in (4, 20):
        pixels = np.random.default_rng(0).integers(90, 110, (32, 32), dtype=np.uint8)
        pixels[12:20, left : left + 8] = 220
        images.append(encode_png(pixels))
    outcomes = classifier.classify([*images, images[0]], [True, True, False]).outcomes
    assert [outcome and outcome["label"] for outcome in outcomes] == ["left", "right", "left"]
    boxes = [outcome["evidence"]["box"] if outcome and outcome["evidence"] else None for outcome in outcomes]
    assert boxes[2] is None
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0][2] <= 20
    assert boxes[1][0] >= 12
