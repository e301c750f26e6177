"""`model.quantise`: int8 models, what is measured of them, and which are refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

from model.artifact import Artifact, load_artifact, load_compiled, next_to_h5, save_card
from model.calibrate import calibrate
from model.compile import compile_artifact
from model.contact_sheet import TrialImages
from model.engines import open_classifier
from model.errors import ArtifactError, DatasetError
from model.image import ImageSpec, encode_png
from model.importing import Request, import_network
from model.networks import pretrained_blocks
from model.quantise import quantise
from model.training.calibration import fit_novelty
from tests.model.conftest import CLASS_NAMES, random_images
from tests.model.conftest import SPEC as TINY
from tests.model.known_posterior import NAMES, SPEC, write_images, write_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _small_detector() -> Iterator[None]:
    """Most of a calibration's time is the detector's, which grows with its pixels and its calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained_blocks, "DETECTOR_SIDE", 48)
        patch.setattr("model.calibrate.BATCH_SIZE", 1000)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "data", 30)


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Read-only."""
    return make(tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def quantised(float32: Artifact, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Read-only."""
    own = copied(float32, tmp_path_factory.mktemp("int8") / "own")
    return quantise(own, folder, 0.9).artifact


@pytest.fixture(scope="module")
def tiny(pristine: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A convolution, in int8. Read-only."""
    own = tmp_path_factory.mktemp("tiny")
    return quantise(copied(pristine, own / "own"), write_noise(own / "images", 40), 0.0).artifact


@pytest.fixture(scope="module")
def calibrated(float32: Artifact, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """With a temperature and a detector: in float32, in int8, and calibrated again. Read-only."""
    own = tmp_path_factory.mktemp("calibrated")
    first = calibrate(copied(float32, own / "first"), folder).artifact
    second = quantise(copied(first, own / "second"), folder, 0.9).artifact
    with pytest.MonkeyPatch.context() as patch:  # nothing reads its detector or its compiled network
        patch.setattr("model.calibrate._fit_abstention", lambda *_: None)
        patch.setattr("model.calibrate._save", save_card)
        third = calibrate(copied(second, own / "third"), folder).artifact
    return [first, second, third]


def make(folder: Path, outputs: str = "softmax") -> Artifact:
    path = write_network(folder / "mine.h5", 4.0, outputs)
    return import_network(path, Request(NAMES, "raw", is_multi_label=outputs == "sigmoid")).artifact


def copied(artifact: Artifact, folder: Path) -> Artifact:
    shutil.copytree(artifact.h5_path.parent, folder)
    return load_artifact(folder / artifact.h5_path.name)


def write_noise(folder: Path, count: int, spec: ImageSpec = TINY) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(random_images(count, spec)):
        (folder / f"{number:03}.png").write_bytes(encode_png(image))
    return folder


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in artifact.h5_path.parent.iterdir() if path.is_file()}


class TestModel:
    def test_weights_have_a_scale_per_channel_and_activations_are_int8(self, tiny: Artifact) -> None:
        reference = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(str(next_to_h5(tiny).tflite), experimental_op_resolver_type=reference)
        details = interpreter.get_tensor_details()
        [kernel] = [each for each in details if tuple(each["shape"]) == (8, 3, 3, 3)]
        assert kernel["dtype"] is np.int8
        assert len(kernel["quantization_parameters"]["scales"]) == 8
        # ELU has no kernel for int8.
        activations = [each for each in details if tuple(each["shape"]) == (1, 7, 9, 8)]
        assert {each["dtype"] for each in activations} == {np.int8, np.float32}
        assert interpreter.get_input_details()[0]["dtype"] is np.float32

    def test_probabilities_are_finer_than_int8(self, tiny: Artifact, tmp_path: Path) -> None:
        probabilities = open_classifier(tiny, "litert", 1, tmp_path).predict(random_images(20))
        steps = probabilities * 256
        assert np.abs(steps - np.rint(steps)).max() > 0.1
        assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)

    def test_heavy_head_is_quantised_too(self, heavy: Artifact, tmp_path: Path) -> None:
        own = copied(heavy, tmp_path / "heavy")
        before = len(next_to_h5(own).tflite.read_bytes())
        float32 = open_classifier(own, "litert", 1, tmp_path).predict(random_images(30))
        served = quantise(own, write_noise(tmp_path / "images", 40), 0.0).artifact
        assert len(next_to_h5(own).tflite.read_bytes()) < 0.3 * before
        int8 = open_classifier(served, "litert", 1, tmp_path).predict(random_images(30))
        assert np.abs(int8 - float32).max() < 0.1

    def test_outputs_for_evidence_are_there(
        self, float32: Artifact, quantised: Artifact, tmp_path: Path
    ) -> None:
        images = random_images(5, SPEC)
        before, after = (
            open_classifier(each, "litert", 1, tmp_path).answer(images, with_features=True)
            for each in (float32, quantised)
        )
        for a, b in ((before.embeddings, after.embeddings), (before.features, after.features)):
            assert a is not None
            assert b is not None
            assert np.abs(a - b).max() < 2, "grey levels"

    @pytest.mark.parametrize("outputs", ["sigmoid", "linear"])
    def test_other_endings_are_quantised(self, outputs: str, folder: Path, tmp_path: Path) -> None:
        own = make(tmp_path, outputs)
        float32 = open_classifier(own, "litert", 1, tmp_path).predict(random_images(9, SPEC))
        served = quantise(own, folder, 0.9).artifact
        int8 = open_classifier(served, "litert", 1, tmp_path).predict(random_images(9, SPEC))
        assert np.abs(int8 - float32).max() < 0.2

    def test_saved_model_is_quantised(self, folder: Path, tmp_path: Path) -> None:
        network = keras.models.load_model(write_network(tmp_path / "network.h5"))
        network.export(tmp_path / "saved", verbose=False)
        imported = import_network(tmp_path / "saved", Request(NAMES, "raw")).artifact
        served = quantise(imported, folder, 0.9).artifact
        open_classifier(served, "litert", 1, tmp_path)


class TestCalibrated:
    def test_pretrained_blocks_stay_float32(self, calibrated: list[Artifact], tmp_path: Path) -> None:
        images = random_images(5, SPEC)
        before, after = (
            open_classifier(each, "litert", 1, tmp_path).answer(images).embeddings for each in calibrated[:2]
        )
        assert before is not None
        assert after is not None
        assert np.allclose(after, before, rtol=1e-3, atol=1e-4)
        assert calibrated[1].card.metrics["int8"]["abstention_agreement"] == 1.0

    def test_confidence_stays_calibrated(self, calibrated: list[Artifact]) -> None:
        """The end of int8 has the temperature that its card names."""
        figures = calibrated[1].card.metrics["int8"]
        confidence = figures["mean_confidence"]
        assert confidence["int8"] == pytest.approx(confidence["float32"], abs=0.02)
        assert figures["temperature"] == calibrated[1].card.temperature
        assert figures["temperature"] == pytest.approx(calibrated[0].card.temperature, rel=0.2)

    def test_calibration_starts_from_float32(self, calibrated: list[Artifact]) -> None:
        first, second, third = (each.card for each in calibrated)
        assert second.float32.model_dump_json() == first.model_dump_json()
        assert third.int8 is None
        assert "int8" not in third.metrics
        assert third.temperature == pytest.approx(first.temperature, rel=1e-4)


class TestCard:
    def test_measured_on_images_that_were_not_fitted(self, quantised: Artifact) -> None:
        figures = quantised.card.metrics["int8"]
        assert figures["images"] == {"fitted": 45, "held_out": 45}
        assert figures["labelled"] == 45
        assert figures["accuracy"]["float32"] == pytest.approx(figures["accuracy"]["int8"], abs=0.05)
        assert figures["agreement"] >= 0.9
        assert 0 < figures["probability_difference"]["mean"] < 0.05
        assert set(figures["cpu_ms"]) == {"float32", "int8"}

    def test_folder_test_is_measured_only(self, pristine: Artifact, tmp_path: Path) -> None:
        for name, count in (("train", 12), ("valid", 9), ("test", 7)):
            write_noise(tmp_path / "data" / name, count)
        own = copied(pristine, tmp_path / "own")
        figures = quantise(own, tmp_path / "data", 0.0).artifact.card.metrics["int8"]
        assert figures["images"] == {"fitted": 21, "held_out": 7}
        assert "accuracy" not in figures, "no folder names a class"

    def test_both_engines_pass_their_self_test(self, quantised: Artifact, tmp_path: Path) -> None:
        served = load_artifact(quantised.h5_path)
        images = random_images(5, SPEC) // np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
        int8 = open_classifier(served, "litert", 1, tmp_path).predict(images)
        float32 = open_classifier(served, "tensorflow", 1, tmp_path).predict(images)
        assert 1e-9 < np.abs(int8 - float32).max() < 0.2

    def test_self_test_notices_another_answer(self, quantised: Artifact, tmp_path: Path) -> None:
        own = copied(quantised, tmp_path / "own")
        golden = tuple(np.roll(own.card.golden_probabilities or (), 1).tolist())
        other = save_card(own.h5_path, own.card.model_copy(update={"golden_probabilities": golden}))
        with pytest.raises(ArtifactError, match="golden image"):
            open_classifier(other, "litert", 1, tmp_path)

    def test_compile_returns_to_float32(self, float32: Artifact, quantised: Artifact, tmp_path: Path) -> None:
        own = copied(quantised, tmp_path / "own")
        compile_artifact(own)
        assert load_artifact(own.h5_path).card == float32.card
        open_classifier(load_artifact(own.h5_path), "litert", 1, tmp_path)

    def test_quantised_again_starts_from_float32(
        self, float32: Artifact, quantised: Artifact, folder: Path, tmp_path: Path
    ) -> None:
        again = quantise(copied(quantised, tmp_path / "own"), folder, 0.9).artifact.card
        assert again.golden_probabilities == pytest.approx(quantised.card.golden_probabilities, abs=1e-3)
        assert again.float32 == float32.card


class TestRefused:
    def test_too_low_agreement_leaves_all_files(self, tmp_path: Path) -> None:
        """Classes that differ by less than a step of int8."""
        (tmp_path / "own").mkdir()
        own, data = make_fine(tmp_path / "own"), write_fine(tmp_path / "data")
        before = contents(own)
        with pytest.raises(ArtifactError, match=r"label .* 99\.50%.*--least-agreement"):
            quantise(own, data)
        assert contents(own) == before
        assert quantise(own, data, 0.0).artifact.card.metrics["int8"]["agreement"] < 0.9

    def test_too_low_agreement_of_abstention(self, float32: Artifact, folder: Path, tmp_path: Path) -> None:
        """A threshold below every image's score in int8, for features of the network itself."""
        own = copied(float32, tmp_path / "own")
        pixels, labels = TrialImages.of(folder, NAMES).decode(SPEC)
        embeddings = open_classifier(own, "litert", 1, tmp_path).answer(pixels).embeddings
        assert embeddings is not None
        novelty = fit_novelty(embeddings, np.array(labels, np.int64), np.arange(len(labels)))
        # An image's score moves by a few hundredths in int8.
        threshold = float(np.median(novelty.score(embeddings)))
        card = own.card.model_copy(update={"novelty": novelty.model_copy(update={"threshold": threshold})})
        with pytest.raises(ArtifactError, match="on the abstention of"):
            quantise(save_card(own.h5_path, card), folder, 0.9)

    def test_too_few_images(self, pristine: Artifact, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="Received: 19"):
            quantise(pristine, write_noise(tmp_path / "images", 19))

    @pytest.mark.parametrize("name", ["missing", "empty"])
    def test_no_images(self, name: str, pristine: Artifact, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ArtifactError, match="--images"):
            quantise(pristine, tmp_path / name)

    def test_given_tflite(self, pristine: Artifact, tmp_path: Path) -> None:
        path = tmp_path / "given.tflite"
        shutil.copyfile(next_to_h5(pristine).tflite, path)
        given = import_network(path, Request(CLASS_NAMES, "raw")).artifact
        with pytest.raises(ArtifactError, match="converted from"):
            quantise(given, write_noise(tmp_path / "images", 20))

    def test_compiled_model_of_float32_is_not_served_as_int8(
        self, float32: Artifact, quantised: Artifact, tmp_path: Path
    ) -> None:
        own = copied(quantised, tmp_path / "own")
        paths, former = next_to_h5(own), next_to_h5(float32)
        shutil.copyfile(former.tflite, paths.tflite)
        shutil.copyfile(former.stamp, paths.stamp)
        with pytest.raises(ArtifactError, match="compile --int8"):
            load_compiled(own, tmp_path / "cache")


def make_fine(folder: Path) -> Artifact:
    """The mean of an image above or below 128."""
    network = keras.Sequential(
        [keras.Input(SPEC.shape), layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")]
    )
    weights = np.array([[-1, 1]] * 3, np.float32)
    network.layers[-1].set_weights([weights, np.array([384, -384], np.float32)])
    network.save(folder / "fine.h5")
    return import_network(folder / "fine.h5", Request(("low", "high"), "raw")).artifact


def write_fine(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for name, shift in (("low", -20), ("high", 20)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.full(SPEC.shape, 128, np.int64).ravel()
            changed = random.permutation(pixels.size)[: abs(shift) * (number + 1)]
            pixels[changed] += np.sign(shift)
            content = encode_png(pixels.reshape(SPEC.shape).astype(np.uint8))
            (folder / name / f"{number}.png").write_bytes(content)
    white = encode_png(np.full(SPEC.shape, 255, np.uint8))
    for number in range(2):  # one to quantise on, so that a step of the mean is a grey level
        (folder / "high" / f"white{number}.png").write_bytes(white)
    return folder
