"""A network that was trained elsewhere answers as its own Keras does, whatever its kind."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from model import importing
from model.artifact import Artifact, load_artifact, next_to_h5, read_compiled, sha256_of
from model.contact_sheet import TrialImages
from model.defaults import find_samples
from model.engines import open_classifier
from model.errors import ArtifactError
from model.image import ImageSpec, encode_png
from model.importing import Request, check_preprocessing, import_network
from model.preprocessing import PRESETS, Preset
from tests.model.conftest import random_images
from tests.model.kinds import (
    KINDS,
    NAMES,
    PAIR,
    SIZE,
    Kind,
    any_size,
    arithmetic,
    classifier,
    rescaling,
    teachable_machine,
)

COLOUR = ImageSpec(height=16, width=16, channels=3)

# Keras 2 warns of its own formats, and TensorFlow of its own converters.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes half of an import's time: for tests that do not read the compiled network."""
    monkeypatch.setattr(importing, "_compile", lambda *_: b"")
    monkeypatch.setattr(importing, "_with_tolerance", lambda card, _: card)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_imported_network_answers_as_its_writer_does(kind: Kind, tmp_path: Path) -> None:
    path, own_answer = kind.write(tmp_path)
    artifact = import_network(path, kind.request).artifact
    assert load_artifact(path) == artifact
    assert artifact.card.sha256 == sha256_of(path)
    assert artifact.card.image.shape == kind.shape
    height, width, channels = kind.shape
    images = random_images(3, ImageSpec(height=height, width=width, channels=channels))  # type: ignore[arg-type]
    expected = own_answer(images)
    for engine in ("litert",) if kind.suffix == ".tflite" else ("litert", "tensorflow"):
        classifier = open_classifier(artifact, engine, 1, tmp_path / "cache")  # type: ignore[arg-type]
        assert np.abs(classifier.predict(images) - expected).max() <= kind.tolerance


class TestEndings:
    @pytest.mark.parametrize("library", [keras, tf_keras])
    def test_several_sigmoids_are_refused_without_the_flag(self, tmp_path: Path, library: Any) -> None:
        path = save(classifier(3, "sigmoid")(library), tmp_path)
        with pytest.raises(ArtifactError, match="--multi-label"):
            import_network(path, Request(NAMES, "unit"))
        assert not path.with_suffix(".json").exists()

    def test_softmax_is_not_multi_label(self, tmp_path: Path) -> None:
        path = save(classifier()(keras), tmp_path)
        with pytest.raises(ArtifactError, match="--multi-label"):
            import_network(path, Request(NAMES, "unit", is_multi_label=True))

    @pytest.mark.parametrize("logit", [-60.0, -20.0, 20.0, 60.0])
    def test_sure_sigmoid_keeps_the_small_probability(self, tmp_path: Path, logit: float) -> None:
        """From the logit: 1 - p would be 0 or 6e-8."""
        network = classifier(1, "sigmoid")(keras)
        network.layers[-1].bias.assign([logit])
        artifact = import_network(save(network, tmp_path), Request(PAIR, "unit")).artifact
        served = open_classifier(artifact, "litert", 1, tmp_path).predict(random_images(4, COLOUR))
        assert (served > 0).all()
        assert np.allclose(served.sum(axis=1), 1)
        least = served.min(axis=1)
        assert np.allclose(least, np.exp(-abs(logit)), rtol=5)


class TestRefusals:
    @pytest.mark.parametrize("names", [NAMES[:2], (*NAMES, "more")])
    def test_another_number_of_names_is_refused(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        with pytest.raises(ArtifactError, match="3 classes"):
            import_network(save(classifier()(keras), tmp_path), Request(names, "unit"))

    def test_softmax_over_one_output_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="always 1"):
            import_network(save(classifier(1)(keras), tmp_path), Request(PAIR, "unit"))

    def test_network_whose_state_litert_keeps_is_refused(self, tmp_path: Path) -> None:
        layers = [tf_keras.layers.LSTM(8), tf_keras.layers.Dense(3, activation="softmax")]
        path = save(tf_keras.Sequential([tf_keras.Input((28, 28)), *layers]), tmp_path)
        with pytest.raises(ArtifactError, match="LSTM"):
            import_network(path, Request(NAMES, "unit"))
        assert not path.with_suffix(".json").exists()

    def test_answer_for_each_pixel_is_refused(self, tmp_path: Path) -> None:
        inputs = keras.Input(SIZE)
        network = keras.Model(inputs, keras.layers.Conv2D(3, 1, activation="softmax")(inputs))
        with pytest.raises(ArtifactError, match="segmentation"):
            import_network(save(network, tmp_path), Request(NAMES, "unit"))

    @pytest.mark.parametrize("library", [keras, tf_keras])
    def test_several_outputs_are_refused_by_name(self, tmp_path: Path, library: Any) -> None:
        inputs = library.Input(SIZE)
        x = library.layers.Flatten()(inputs)
        outputs = [library.layers.Dense(3, name=name)(x) for name in ("breed", "age")]
        with pytest.raises(ArtifactError, match="outputs breed, age"):
            import_network(save(library.Model(inputs, outputs), tmp_path), Request(NAMES, "unit"))

    def test_preprocessing_is_not_guessed(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="--preprocess"):
            import_network(save(classifier()(keras), tmp_path), Request(NAMES))

    def test_network_that_ignores_the_image_is_refused(self, tmp_path: Path) -> None:
        network = classifier()(keras)
        network.layers[-1].kernel.assign(np.zeros((8, 3)))
        with pytest.raises(ArtifactError, match="depend on the image"):
            import_network(save(network, tmp_path), Request(NAMES, "unit"))

    def test_existing_card_is_replaced_only_by_force(self, tmp_path: Path) -> None:
        path = save(classifier()(keras), tmp_path)
        import_network(path, Request(NAMES, "unit"))
        with pytest.raises(ArtifactError, match="--force"):
            import_network(path, Request(NAMES, "raw"))
        artifact = import_network(path, Request(NAMES, "raw", force=True)).artifact
        assert open_classifier(artifact, "litert", 1, tmp_path) is not None

    def test_operation_that_litert_lacks_is_named(self, tmp_path: Path) -> None:
        @tf.function(input_signature=[tf.TensorSpec((None, *SIZE), tf.float32)])
        def serve(images: tf.Tensor) -> tf.Tensor:
            return tf.nn.softmax(tf.linalg.svd(images[..., 0], compute_uv=False)[:, :3])

        signatures = {"serving_default": serve}
        tf.saved_model.save(tf.Module(), str(tmp_path / "folder"), signatures=signatures)
        with pytest.raises(ArtifactError, match=r"LiteRT has.*Svd"):
            import_network(tmp_path / "folder", Request(NAMES, "unit"))
        assert not (tmp_path / "folder.json").exists()

    def test_network_of_any_size_needs_a_size(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="--size"):
            import_network(save(any_size(keras), tmp_path), Request(NAMES, "raw"))

    @pytest.mark.parametrize("shape", [(24, 20, 4), (50,)])
    def test_input_that_is_no_image_is_refused(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        flat = keras.layers.Flatten() if len(shape) == 3 else keras.layers.Identity()
        outputs = keras.layers.Dense(3, activation="softmax")
        path = save(keras.Sequential([keras.Input(shape), flat, outputs]), tmp_path)
        with pytest.raises(ArtifactError, match="must take images"):
            import_network(path, Request(NAMES, "unit"))

    def test_changed_preprocessing_does_not_use_the_compiled_network(self, tmp_path: Path) -> None:
        artifact = import_network(save(classifier()(keras), tmp_path), Request(NAMES, "unit")).artifact
        changed = artifact.card.model_copy(update={"preprocessing": PRESETS["symmetric"]})
        assert read_compiled(artifact, next_to_h5(artifact)) is not None
        assert read_compiled(Artifact(artifact.h5_path, changed), next_to_h5(artifact)) is None

    @pytest.mark.usefixtures("_uncompiled")
    def test_file_with_another_suffix_is_copied(self, tmp_path: Path) -> None:
        path = save(classifier()(keras), tmp_path).rename(tmp_path / "mask_detector.model")
        with pytest.raises(ArtifactError, match=r"--output mask_detector\.h5"):
            import_network(path, Request(NAMES, "unit"))
        output = tmp_path / "mask_detector.h5"
        assert import_network(path, Request(NAMES, "unit", output=output)).artifact == load_artifact(output)

    @pytest.mark.usefixtures("_uncompiled")
    def test_output_is_a_copy(self, tmp_path: Path) -> None:
        path, output = save(classifier()(keras), tmp_path), tmp_path / "served" / "mine.h5"
        artifact = import_network(path, Request(NAMES, "unit", output=output)).artifact
        assert artifact.h5_path == output
        assert output.read_bytes() == path.read_bytes()
        assert not path.with_suffix(".json").exists()


class TestFindings:
    @pytest.mark.usefixtures("_uncompiled")
    @pytest.mark.parametrize(
        ("build", "found"),
        [(rescaling, "raw"), (arithmetic, "raw"), (teachable_machine, "teachable-machine")],
    )
    @pytest.mark.parametrize("library", [keras, tf_keras])
    def test_preprocessing_that_the_file_shows_is_used(
        self, tmp_path: Path, build: Callable[[Any], Any], found: Preset, library: Any
    ) -> None:
        imported = import_network(save(build(library), tmp_path), Request(NAMES))
        assert imported.artifact.card.preprocessing == PRESETS[found]
        assert imported.artifact.card.is_unchecked
        assert imported.artifact.card.preprocessing_check == "no images"
        assert imported.warnings

    @pytest.mark.usefixtures("_uncompiled")
    def test_teachable_machine_crops_with_lanczos(self, tmp_path: Path) -> None:
        image = import_network(
            save(teachable_machine(tf_keras), tmp_path), Request(NAMES)
        ).artifact.card.image
        assert (image.fit, image.resample, image.shape) == ("crop", "lanczos", (224, 224, 3))

    def test_evidence_of_one_sigmoid_is_for_two_classes(self, tmp_path: Path) -> None:
        artifact = import_network(
            save(classifier(1, "sigmoid")(keras), tmp_path), Request(PAIR, "unit")
        ).artifact
        weights = artifact.card.class_weights
        assert weights is not None
        assert weights.shape == (8, 2)
        answers = open_classifier(artifact, "litert", 1, tmp_path).answer(
            random_images(2, COLOUR), with_features=True
        )
        assert answers.features is not None


@pytest.mark.parametrize("size", [16, 224])
def test_file_of_keras_before_2_3_is_read(tmp_path: Path, size: int) -> None:
    """A Sequential is a list of layers, initialisers have a dtype, and nothing has a module."""
    layers = [
        tf_keras.layers.Conv2D(4, 3, input_shape=(size, size, 3), name="block1/conv"),
        tf_keras.layers.GlobalAveragePooling2D(),
        tf_keras.layers.Dense(3, activation="softmax"),
    ]
    network = tf_keras.Sequential(layers)
    path = save(network, tmp_path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"] = [
            layer for layer in config["config"]["layers"] if layer["class_name"] != "InputLayer"
        ]
        for layer in config["config"]:
            for name, part in layer["config"].items():
                if name.endswith("_initializer"):
                    part["config"]["dtype"] = "float32"
                    layer["config"][name] = {key: part[key] for key in ("class_name", "config")}
        config["config"][0]["config"]["batch_input_shape"] = [None, size, size, 3]
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = np.bytes_("2.1.6")
    imported = import_network(path, Request(NAMES, "unit"))
    assert imported.findings[0].startswith("Written by Keras 2.1.6.")
    images = random_images(2, ImageSpec(height=size, width=size, channels=3))
    served = open_classifier(imported.artifact, "litert", 1, tmp_path).predict(images)
    assert np.allclose(served, network(images / np.float32(255)), atol=1e-5)


@pytest.mark.parametrize("backend", ["theano", "tensorflow"])
def test_kernels_of_theano_are_flipped(tmp_path: Path, backend: str) -> None:
    """Theano convolved with the kernels that it stored, where TensorFlow correlates."""
    random = tf_keras.initializers.RandomNormal(stddev=0.3)
    inputs = tf_keras.Input(SIZE)
    base = tf_keras.Model(inputs, tf_keras.layers.Conv2D(8, 3, kernel_initializer=random)(inputs))
    network = tf_keras.Sequential([base, tf_keras.layers.Flatten(), tf_keras.layers.Dense(3, "softmax")])
    images = random_images(3, COLOUR)
    expected = network.predict(images / np.float32(255), verbose=0)
    if backend == "theano":
        layer = base.layers[-1]
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel[::-1, ::-1], bias])
    path = save(network, tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["backend"] = np.bytes_(backend)
    artifact = import_network(path, Request(NAMES, "unit")).artifact
    served = open_classifier(artifact, "litert", 1, tmp_path).predict(images)
    assert np.allclose(served, expected, atol=1e-5)


@pytest.mark.usefixtures("_uncompiled")
class TestContactSheet:
    """A network that tells textures apart by their contrast, trained with one preprocessing."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Twelve images of three brightnesses, in a folder for each class."""
        folder, random = tmp_path_factory.mktemp("try"), np.random.default_rng(0)
        for name, level in zip(NAMES, (40, 128, 215), strict=True):
            (folder / name).mkdir()
            for number in range(12):
                pixels = random.normal(level, 25, (20, 24, 3)).clip(0, 255).astype(np.uint8)
                (folder / name / f"{number}.png").write_bytes(encode_png(pixels))
        return folder

    @pytest.fixture(scope="class", params=["raw", "unit", "symmetric"])
    def trained(
        self, request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Preset]:
        keras.utils.set_random_seed(0)
        preset: Preset = request.param
        images = TrialImages.of(folder, NAMES)
        pixels, labels = images.decode(COLOUR)
        given = np.asarray(
            pixels * np.float32(PRESETS[preset].scale[0]) + np.float32(PRESETS[preset].offset[0])
        )
        layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
        network = keras.Sequential([keras.Input(SIZE), *layers])
        means = given.mean(axis=(1, 2))
        centres = np.stack([means[np.array(labels) == label].mean(axis=0) for label in range(3)])
        unit = np.ptp(centres) / 20
        # Logits are minus the squared distance to each class's centre, without the term that all share.
        network.layers[-1].set_weights([2 * centres.T / unit**2, -(centres**2).sum(axis=1) / unit**2])
        return save(network, tmp_path_factory.mktemp("trained")), preset

    def test_images_choose_the_preprocessing(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        path, preset = trained
        imported = import_network(path, Request(NAMES, try_dir=folder, output=tmp_path / "n.h5"))
        assert imported.artifact.card.preprocessing == PRESETS[preset]
        assert not imported.artifact.card.is_unchecked
        assert imported.artifact.card.preprocessing_check == f"36 of 36 images right with {preset}"
        assert imported.sheet is not None
        assert [row[0] for row in imported.sheet.table()][1:] == list(PRESETS)[:-1]

    def test_wrong_preprocessing_is_reported(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        path, preset = trained
        wrong: Preset = "unit" if preset == "symmetric" else "symmetric"
        request = Request(NAMES, wrong, try_dir=folder, output=tmp_path / "n.h5")
        if preset == "raw":  # with the wrong one, this network answers the same for all images
            with pytest.raises(ArtifactError, match="--preprocess raw"):
                import_network(path, request)
            return
        imported = import_network(path, request)
        assert imported.artifact.card.is_unchecked
        assert f"--preprocess {preset}" in imported.warnings[0]

    @pytest.mark.parametrize("trained", ["unit"], indirect=True)
    def test_images_are_the_samples_of_the_network(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        request = Request(NAMES, trained[1], try_dir=folder, output=tmp_path / "n.h5")
        path = import_network(trained[0], request).artifact.h5_path
        samples = find_samples(path)
        assert samples is not None
        assert sorted(image.name for image in samples.iterdir()) == [
            f"{number:02}-{name}.png" for number, name in enumerate(NAMES)
        ]

    @pytest.mark.parametrize("trained", ["unit"], indirect=True)
    def test_images_check_an_artifact_later(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        path, preset = trained
        request = Request(NAMES, PRESETS[preset], output=tmp_path / "n.h5")
        artifact = import_network(path, request).artifact
        assert artifact.card.is_unchecked
        checked = check_preprocessing(artifact, folder)
        assert checked.warnings == ()
        assert len(checked.sheet.rows) == len(PRESETS) - 1
        card = load_artifact(artifact.h5_path).card
        assert not card.is_unchecked
        assert card.preprocessing_check == f"36 of 36 images right with {preset}"

    def test_images_contradict_an_artifact_later(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        path, preset = trained
        wrong: Preset = "unit" if preset == "raw" else "raw"
        with suppress(ArtifactError):  # with the wrong one, a network may answer the same for all images
            artifact = import_network(path, Request(NAMES, wrong, output=tmp_path / "n.h5")).artifact
            assert f"--preprocess {preset}" in check_preprocessing(artifact, folder).warnings[0]
            assert load_artifact(artifact.h5_path).card.is_unchecked

    @pytest.mark.parametrize("trained", ["unit"], indirect=True)
    def test_folder_names_are_the_classes(
        self, trained: tuple[Path, Preset], folder: Path, tmp_path: Path
    ) -> None:
        """In sorted order, as Keras has them, in which this network's classes are not."""
        path, preset = trained
        request = Request((), preset, try_dir=folder, output=tmp_path / "n.h5")
        imported = import_network(path, request)
        assert imported.artifact.card.class_names == tuple(sorted(NAMES))
        assert imported.sheet is not None
        assert imported.sheet.rows[0].right < 36


def save(network: Any, folder: Path) -> Path:
    network.save(folder / "network.h5")
    return folder / "network.h5"
