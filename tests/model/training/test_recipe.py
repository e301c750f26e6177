"""Training ends in one artifact with correct metrics, even if Ctrl-C ends it early."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import keras
import numpy as np
import pytest

from model.artifact import Artifact, load_artifact, next_to_h5, read_compiled
from model.engines import open_classifier
from model.errors import ModelError
from model.image import ImageSpec, encode_png
from model.networks.keras_model import load_network
from model.training import recipe as training
from model.training.augmentation import RecipeAugmentation
from model.training.folder import LabelledImages, load_part
from model.training.metrics import Metrics, measure
from model.training.recipe import Knobs, ProgressBar, TrainedNetwork, train

pytestmark = pytest.mark.slow

CLASSES = ("bright", "dark", "striped")
# The recipe's layers need images of at least 61 pixels.
SPEC = ImageSpec(height=64, width=64, channels=1)
KNOBS = Knobs(image=SPEC, epochs=2, batch_size=8)
SEEDS = (0, 1)
DEADLINE_SECONDS = 300


def draw_class(class_name: str, side: int, rng: np.random.Generator) -> np.ndarray:
    picture = rng.integers(0, 60, (side, side))
    if class_name == "bright":
        picture += 190
    elif class_name == "striped":
        picture[::2] += 190
    return picture.astype(np.uint8)


def draw_folder(data_dir: Path, train_images: int, side: int) -> Path:
    """A labelled folder of classes that are easy to distinguish."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train_images), ("valid", 2), ("test", 3)):
        for class_name in CLASSES:
            folder = data_dir / split / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                png = encode_png(draw_class(class_name, side, rng))
                (folder / f"{number}.png").write_bytes(png)
    return data_dir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data"), train_images=12, side=64)


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train(KNOBS, data_dir, tmp_path_factory.mktemp("trained") / "deep" / "net.h5", SEEDS)


@pytest.fixture(scope="module")
def trained_again(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, str, str]:
    """The same training after other random draws, with its stdout and stderr, and not compiled."""
    keras.utils.set_random_seed(99)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "compile_artifact", lambda _: None)
        artifact = train(KNOBS, data_dir, tmp_path_factory.mktemp("again") / "net.h5", SEEDS)
    return artifact, out.getvalue(), err.getvalue()


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes as long as training for a few epochs."""
    monkeypatch.setattr(training, "compile_artifact", lambda _: None)


@pytest.fixture
def _trained_before(trained: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends at once, with a network that is trained already."""
    metrics = Metrics(**trained.card.metrics["valid"])
    result = TrainedNetwork(
        network=load_network(trained.h5_path),
        seed=0,
        best_epoch=1,
        finished_epochs=2,
        train_seconds=0.1,
        interrupted=False,
        valid=metrics,
        test=metrics,
    )
    monkeypatch.setattr(training, "train_one_seed", lambda *_: result)


class TestArtifact:
    def test_defaults_are_those_of_the_recipe(self) -> None:
        assert Knobs() == Knobs(
            image=ImageSpec(height=200, width=200, channels=3, resample="bilinear"),
            epochs=20,
            batch_size=16,
            learning_rate=0.001,
            augmentation=RecipeAugmentation(shear_degrees=0.2, zoom=0.2, horizontal_flip=True),
        )

    def test_artifact_and_compiled_model_are_written_and_match(self, trained: Artifact) -> None:
        assert sorted(path.name for path in trained.h5_path.parent.iterdir()) == [
            "net.h5",
            "net.json",
            "net.samples",
            "net.tflite",
            "net.tflite.json",
        ]
        assert load_artifact(trained.h5_path) == trained
        assert read_compiled(trained, next_to_h5(trained)) is not None

    @pytest.mark.parametrize("engine", ["litert", "tensorflow"])
    def test_card_metrics_equal_those_measured_again(
        self, trained: Artifact, data_dir: Path, tmp_path: Path, engine: str
    ) -> None:
        classifier = open_classifier(trained, engine, 1, tmp_path)
        for split in ("valid", "test"):
            data = load_part(data_dir, split, trained.card.class_names, trained.card.image)
            again = measure(classifier.predict(data.images), data.labels)
            stated = trained.card.metrics[split]
            assert stated["images"] == again.images == len(data)
            assert stated["correct"] == again.correct
            assert stated["accuracy"] == again.accuracy
            assert stated["loss"] == pytest.approx(again.loss, abs=1e-5)

    def test_card_describes_the_training(self, trained: Artifact) -> None:
        card = trained.card
        assert card.class_names == CLASSES
        assert card.image == SPEC
        assert card.scale == 1.0
        assert {"ext-classify", "keras", "python", "tensorflow"} == set(card.versions)
        facts = card.training
        assert facts["images"] == {"train": 36, "valid": 6, "test": 9}
        assert facts["network"] == "recipe"
        assert facts["parameters"] == load_network(trained.h5_path).count_params()
        assert (facts["epochs"], facts["finished_epochs"], facts["batch_size"]) == (2, 2, 8)
        assert facts["best_epoch"] in (1, 2)
        assert facts["augmentation"] == {"shear_degrees": 0.2, "zoom": 0.2, "horizontal_flip": True}

    def test_card_reports_every_seed_and_keeps_one(self, trained: Artifact) -> None:
        metrics = trained.card.metrics
        assert set(metrics["test_accuracy_by_seed"]) == set(metrics["test_loss_by_seed"]) == {"0", "1"}
        kept = str(trained.card.training["seed"])
        assert metrics["test_accuracy_by_seed"][kept] == metrics["test"]["accuracy"]
        assert metrics["test_loss_by_seed"][kept] == metrics["test"]["loss"]
        assert len(set(metrics["test_loss_by_seed"].values())) == 2

    def test_same_seeds_train_the_same_network(
        self, trained: Artifact, trained_again: tuple[Artifact, str, str]
    ) -> None:
        again, _, _ = trained_again
        assert again.card.metrics == trained.card.metrics
        assert again.card.golden_probabilities == trained.card.golden_probabilities

    @pytest.mark.usefixtures("_uncompiled")
    def test_easy_classes_are_learned(self, data_dir: Path, tmp_path: Path) -> None:
        knobs = Knobs(image=SPEC, epochs=8, batch_size=8)
        artifact = train(knobs, data_dir, tmp_path / "net.h5", [0])
        assert artifact.card.metrics["test"]["accuracy"] == 1.0


class TestBatches:
    @pytest.fixture
    def data(self) -> LabelledImages:
        images = np.random.default_rng(0).integers(0, 256, (11, 20, 24, 3), dtype=np.uint8)
        return LabelledImages(images, np.arange(11) % 3, tuple(Path(str(n)) for n in range(11)))

    def two_epochs(self, data: LabelledImages, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        batches = training.training_batches(data, 3, Knobs(batch_size=4), seed)
        return [(images.numpy(), labels.numpy()) for images, labels in batches.take(6)]

    def test_only_equal_seeds_give_equal_batches(self, data: LabelledImages) -> None:
        first, again, other = (self.two_epochs(data, seed) for seed in (1, 1, 2))
        assert [len(images) for images, _ in first] == [4, 4, 3, 4, 4, 3]
        for one, two in zip(first, again, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        assert not np.array_equal(first[0][0], other[0][0])
        assert not np.array_equal(first[0][0], first[3][0])

    def test_grey_images_are_warped_as_coloured_ones_are(self, data: LabelledImages) -> None:
        grey = LabelledImages(np.repeat(data.images[..., :1], 3, axis=-1), data.labels, data.paths)
        mixed_images = grey.images.copy()
        mixed_images[..., 1:] = data.images[..., 1:]
        mixed = LabelledImages(mixed_images, data.labels, data.paths)
        for (ours, _), (coloured, _) in zip(self.two_epochs(grey, 1), self.two_epochs(mixed, 1), strict=True):
            assert ours.shape == coloured.shape
            for channel in range(3):
                assert np.array_equal(ours[..., channel], coloured[..., 0])


class TestTerminal:
    def test_bar_shows_loss_and_time_left(self, trained_again: tuple[Artifact, str, str]) -> None:
        _, _, err = trained_again
        assert re.search(r"seed 0: .*\d+/10 \[\d\d:\d\d<\d\d:\d\d, .*step.*, loss \d\.\d{3}", err)
        assert re.search(r"seed 1: 100%.* 10/10 .*after epoch 1 valid accuracy \d\.\d{3}", err)

    def test_results_are_a_line_per_seed_and_a_summary(
        self, trained_again: tuple[Artifact, str, str]
    ) -> None:
        artifact, out, err = trained_again
        seeds = [line for line in re.split("[\r\n]", err) if ": test accuracy" in line]
        [spread] = out.splitlines()
        assert len(seeds) == len(SEEDS)
        for seed, line in zip(SEEDS, seeds, strict=True):
            accuracy = artifact.card.metrics["test_accuracy_by_seed"][str(seed)]
            assert line.startswith(f"seed {seed}: test accuracy {accuracy:.1%}, loss ")
            assert re.search(r"\(epoch \d of 2, \d+ s\)$", line)
        assert spread.startswith("2 seed(s): test accuracy mean ")


@pytest.mark.usefixtures("_trained_before")
def test_network_is_saved_even_if_stdout_is_closed(data_dir: Path, tmp_path: Path) -> None:
    class ClosedStdout(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with redirect_stdout(ClosedStdout()), pytest.raises(BrokenPipeError):
        train(KNOBS, data_dir, tmp_path / "net.h5", SEEDS[:1])
    artifact = load_artifact(tmp_path / "net.h5")
    assert read_compiled(artifact, next_to_h5(artifact)) is not None


def test_diverged_training_raises_a_model_error(data_dir: Path, tmp_path: Path) -> None:
    """With a loss of NaN in every epoch, there is no best epoch to save."""
    knobs = Knobs(image=SPEC, epochs=1, learning_rate=1e38)
    with pytest.raises(ModelError):
        train(knobs, data_dir, tmp_path / "net.h5", [0])
    assert not list(tmp_path.iterdir())


class InterruptingBar(ProgressBar):
    """A progress bar that simulates Ctrl-C after `steps_left` more steps, counted over all seeds."""

    steps_left = 0

    def on_train_batch_end(self, step: int, logs: dict[str, float]) -> None:
        super().on_train_batch_end(step, logs)
        type(self).steps_left -= 1
        if self.steps_left == 0:
            raise KeyboardInterrupt


class TestInterruptedSeeds:
    """36 images in batches of 8 give 5 steps per epoch, and 10 per seed."""

    @pytest.fixture
    def interrupted_after(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(InterruptingBar, "steps_left", request.param)
        monkeypatch.setattr(training, "ProgressBar", InterruptingBar)

    @pytest.mark.usefixtures("interrupted_after")
    @pytest.mark.parametrize("interrupted_after", [3], indirect=True)
    def test_interruption_in_the_very_first_epoch_saves_nothing(self, data_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            train(KNOBS, data_dir, tmp_path / "net.h5", SEEDS)
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("interrupted_after", "_uncompiled")
    @pytest.mark.parametrize(
        ("interrupted_after", "seeds_reported", "finished_epochs"),
        [(7, {"0"}, 1), (12, {"0"}, 2), (17, {"0", "1"}, None)],
        indirect=["interrupted_after"],
        ids=["first-seed", "second-seed-first-epoch", "second-seed-second-epoch"],
    )
    def test_later_interruption_keeps_finished_epochs_and_starts_no_further_seed(
        self, data_dir: Path, tmp_path: Path, seeds_reported: set[str], finished_epochs: int | None
    ) -> None:
        artifact = train(KNOBS, data_dir, tmp_path / "net.h5", (*SEEDS, 2))
        assert load_artifact(artifact.h5_path) == artifact
        assert set(artifact.card.metrics["test_accuracy_by_seed"]) == seeds_reported
        if finished_epochs is not None:
            assert artifact.card.training["finished_epochs"] == finished_epochs


class TerminalTraining:
    """`ext-classify train --network recipe` in a subprocess, with its stderr read while it runs."""

    def __init__(self, data_dir: Path, h5_path: Path) -> None:
        command = [sys.executable, "-m", "app.cli", "train", "--network", "recipe", "--epochs", "500"]
        paths = ["--data", str(data_dir), "--output", str(h5_path)]
        self.process = subprocess.Popen(
            [*command, *paths],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        self.stderr = ""
        self.deadline = time.monotonic() + DEADLINE_SECONDS

    def interrupt_at(self, shown: str) -> None:
        """Press Ctrl-C once stderr matches a pattern, then read until the process ends."""
        while not re.search(shown, self.stderr):
            assert time.monotonic() < self.deadline, self.stderr
            self._read() or pytest.fail(f"the process ended before it was interrupted: {self.stderr}")
        self.process.send_signal(signal.SIGINT)
        while self._read():
            assert time.monotonic() < self.deadline, self.stderr
        self.process.wait(timeout=DEADLINE_SECONDS)

    def _read(self) -> bytes:
        assert self.process.stderr is not None
        piece = os.read(self.process.stderr.fileno(), 65536)
        self.stderr += piece.decode(errors="replace")
        return piece


@contextmanager
def training_in_terminal(data_dir: Path, h5_path: Path) -> Iterator[TerminalTraining]:
    run = TerminalTraining(data_dir, h5_path)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        assert run.process.stderr is not None
        run.process.stderr.close()


class TestControlC:
    def test_interruption_after_an_epoch_saves_the_best_epoch(self, tmp_path: Path) -> None:
        data_dir = draw_folder(tmp_path / "data", train_images=3, side=16)
        h5_path = tmp_path / "out" / "net.h5"
        with training_in_terminal(data_dir, h5_path) as run:
            run.interrupt_at(r"after epoch \d")
        assert run.process.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
        assert "Warning" not in run.stderr
        artifact = load_artifact(h5_path)
        facts = artifact.card.training
        assert 1 <= facts["best_epoch"] <= facts["finished_epochs"] < facts["epochs"] == 500
        classifier = open_classifier(artifact, "litert", 1, tmp_path / "cache")
        data = load_part(data_dir, "test", artifact.card.class_names, artifact.card.image)
        measured = measure(classifier.predict(data.images), data.labels)
        assert measured.accuracy == artifact.card.metrics["test"]["accuracy"]
        assert not (tmp_path / "cache").exists()
        page = (h5_path.parent / "net-report" / "report.html").read_text(encoding="utf-8")
        assert artifact.card.metrics["verdict"] in page
        kept = f"{facts['finished_epochs']}, of which number {facts['best_epoch']} is kept"
        assert f"<dt>epochs</dt><dd>{kept} " in page


def test_output_must_be_an_h5(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\.h5\. Received: .*net\.keras"):
        train(KNOBS, data_dir, tmp_path / "net.keras", [0])


@pytest.mark.usefixtures("_trained_before", "_uncompiled")
def test_folder_without_a_split_is_split_at_random(data_dir: Path, tmp_path: Path) -> None:
    knobs = Knobs(image=SPEC, epochs=1, batch_size=8)
    artifact = train(knobs, data_dir / "train", tmp_path / "net.h5", [0])
    images = artifact.card.training["images"]
    assert sum(images.values()) == 36
    assert all(images.values())
