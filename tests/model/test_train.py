"""Any folder can be trained to a calibrated artifact that abstains; an interrupted training resumes."""

import io
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import model.train
from app.cli.main import main
from app.main import create_app
from app.settings import Settings
from model.artifact import Artifact, load_artifact
from model.defaults import find_samples, usable_cores
from model.errors import DatasetError, TrainingError
from model.image import ImageSpec, encode_png
from model.networks.keras_model import count_macs, load_network
from model.train import train
from model.training import fit as fitting
from model.training.fit import Fitted, Knobs, TextureStatistics, Training, run, with_image
from model.training.folder import LabelledImages
from tests.model.pictures import CLASSES, draw_class
from tests.running import usage_error

pytestmark = pytest.mark.slow

SPEC = ImageSpec(height=48, width=48, channels=1)
KNOBS = Knobs(image=SPEC, epochs=3, batch_size=12)


@pytest.fixture(scope="module", autouse=True)
def _trained_network_is_chosen(
    shared_statistics: Callable[[ImageSpec, int], TextureStatistics],
) -> Iterator[None]:
    """Few images are tested, yet the folder counts as large, and the trained network as the better one."""
    shared_statistics(SPEC, usable_cores())  # before any seed is set, because it draws random numbers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.train, "FEW_TEST_IMAGES", 6)
        patch.setattr(model.train, "_compare", lambda *_: (1, 0))
        yield


@pytest.fixture
def _untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run without a graph: tracing one takes longer than a few steps."""
    monkeypatch.setattr(fitting.Training, "step", fitting.Training.step.python_function)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without a split, with unbalanced classes and images of several sizes."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for class_name, count in zip(CLASSES, (40, 24, 32), strict=True):
        (folder / class_name).mkdir()
        for number in range(count):
            side = int(random.choice((48, 60, 75)))
            picture = encode_png(draw_class(class_name, random, side))
            (folder / class_name / f"{number}.png").write_bytes(picture)
    return folder


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    h5 = tmp_path_factory.mktemp("trained") / "deep" / "textures.h5"
    assert main(train_command(data_dir, h5)) == 0
    return load_artifact(h5)


def train_command(data_dir: Path, h5: Path) -> list[str]:
    return ["train", "--data", str(data_dir), "--output", str(h5), "--epochs", "40", "--size", "48x48"]


def labelled(data_dir: Path) -> LabelledImages:
    random = np.random.default_rng(1)
    labels = np.arange(24) % 3
    images = np.stack([draw_class(CLASSES[label], random, 48) for label in labels])[..., None]
    return LabelledImages(images, labels, tuple(Path(str(n)) for n in range(24)))


@pytest.fixture(scope="module")
def training(data_dir: Path) -> Training:
    """Before its first step. Read-only."""
    return Training(labelled(data_dir), 3, KNOBS, 5)


def fit(data: LabelledImages, knobs: Knobs, seed: int, checkpoint: Path) -> Fitted:
    return run(Training(data, 3, knobs, seed), checkpoint)


def test_classes_are_learned(trained: Artifact) -> None:
    assert trained.card.class_names == CLASSES
    assert trained.card.image == SPEC
    assert trained.card.metrics["test"]["accuracy"] >= 0.8
    assert trained.card.metrics["test"]["images"] + trained.card.metrics["valid"]["images"] < 40


def test_card_describes_the_training(trained: Artifact) -> None:
    facts = trained.card.training
    network = load_network(trained.h5_path)
    assert facts["network"] == "texture"
    assert facts["parameters"] == network.count_params()
    assert facts["macs"] == count_macs(network)
    assert sum(facts["images"].values()) == 96
    assert len(facts["loss_by_epoch"]) == len(facts["accuracy_by_epoch"]) == 40
    assert facts["loss_by_epoch"][-1] < facts["loss_by_epoch"][0]
    assert facts["knobs"]["epochs"] == 40
    names = {path.name for path in trained.h5_path.parent.iterdir()}
    files = {f"textures.{suffix}" for suffix in ("h5", "json", "tflite", "tflite.json")}
    assert names == {*files, "textures-report", "textures.samples"}
    assert (trained.h5_path.parent / "textures-report" / "report.html").is_file()


def test_one_test_image_of_each_class_is_a_sample_of_the_playground(trained: Artifact) -> None:
    folder = find_samples(trained.h5_path)
    assert folder is not None
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{label:02}-{name}.png" for label, name in enumerate(trained.card.class_names)]
    with TestClient(create_app(Settings(model_path=trained.h5_path))) as client:
        assert client.get("/playground/samples").json() == names
        picture = client.get(f"/playground/samples/{names[0]}").content
        outcome = client.post("/classify", content=picture, headers={"Content-Type": "image/png"}).json()
    assert outcome["error"] is None


def test_artifact_is_served_and_shows_evidence(trained: Artifact) -> None:
    picture = encode_png(draw_class("striped", np.random.default_rng(7)))
    with TestClient(create_app(Settings(model_path=trained.h5_path))) as client:
        answer = client.post(
            "/classify?evidence=true", content=picture, headers={"Content-Type": "image/png"}
        )
    outcome = answer.json()
    assert set(outcome["probabilities"]) == set(CLASSES)
    assert (outcome["label"] or outcome["nearest_label"]) == "striped"
    assert set(outcome["evidence"]) == {"box", "heatmap_png"}


@pytest.mark.usefixtures("_untraced")
def test_only_equal_seeds_give_equal_weights(data_dir: Path, tmp_path: Path) -> None:
    data = labelled(data_dir)
    knobs = replace(KNOBS, epochs=1)
    first, again, other = (fit(data, knobs, seed, tmp_path / "c.npz") for seed in (1, 1, 2))
    weights = [fitted.network.get_weights() for fitted in (first, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


def test_resumed_training_has_the_same_batches(training: Training) -> None:
    whole = list(training.batches(0))
    resumed = list(training.batches(1))
    assert len(whole) == KNOBS.epochs * training.steps_per_epoch
    assert len(whole) - len(resumed) == training.steps_per_epoch
    for batch, again in zip(whole[training.steps_per_epoch :], resumed, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not list(training.batches(KNOBS.epochs))


def test_order_of_images_depends_on_seed_and_epoch(data_dir: Path, training: Training) -> None:
    data = labelled(data_dir)
    labels = np.concatenate([labels for _, labels, _ in training.batches(0)])
    orders = [np.random.default_rng((5, epoch)).permutation(len(data)) for epoch in range(KNOBS.epochs)]
    assert np.array_equal(labels, data.labels[np.concatenate(orders)])


@pytest.mark.usefixtures("_untraced")
def test_resumed_training_equals_an_uninterrupted_one(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = replace(KNOBS, epochs=2)
    data, checkpoint = labelled(data_dir), tmp_path / "deep" / "c.npz"
    whole = fit(data, knobs, 5, tmp_path / "other.npz")
    save = fitting.Training.save

    def save_and_stop(self: object, path: Path, finished_epochs: int) -> None:
        save(self, path, finished_epochs)
        if finished_epochs == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting.Training, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit(data, knobs, 5, checkpoint)
    monkeypatch.setattr(fitting.Training, "save", save)
    assert checkpoint.is_file()
    with redirect_stderr(io.StringIO()) as bar:
        resumed = fit(data, knobs, 5, checkpoint)
    assert "50%" in bar.getvalue(), "training must resume after the first epoch"
    pairs = zip(whole.network.get_weights(), resumed.network.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert resumed.loss == whole.loss


@pytest.mark.usefixtures("_untraced")
def test_interrupted_command_says_how_to_resume(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    h5 = tmp_path / "n.h5"
    command = ["train", "--data", str(data_dir), "--output", str(h5), "--epochs", "2", "--size", "48x48"]
    monkeypatch.setattr(fitting.Training, "use_best", interrupt)
    assert main(command) == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["n.checkpoint.npz"]


@pytest.mark.usefixtures("_untraced")
def test_training_stops_early_and_uses_the_best_weights(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "EPOCHS", 1)
    monkeypatch.setattr(fitting, "PATIENCE", 1)
    data = labelled(data_dir)
    training = fitting.Training(data, 3, replace(KNOBS, epochs=None), 5)
    untrained = training.network.get_weights()
    assert training.epochs * training.steps_per_epoch >= fitting.LEAST_STEPS
    training.best_epoch.assign(0)
    training.best_loss.assign(-1.0)  # no epoch is better
    fitted = fitting.run(training, tmp_path / "c.npz", data)
    assert len(fitted.loss) == len(fitted.accuracy) == 2
    pairs = zip(fitted.network.get_weights(), untrained, strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.usefixtures("_untraced")
def test_better_weights_are_kept(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled(data_dir)
    training = fitting.Training(data, 3, KNOBS, 5)
    batches = training.batches(0)
    training.step(*next(batches))
    current = training.network.get_weights()
    training.keep_best(0, data)
    assert (int(training.best_epoch), float(training.best_loss) < 100) == (0, True)
    pairs = zip(training.network.get_weights(), current, strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs), "training must continue from its own weights"
    training.best_loss.assign(0.0)
    training.keep_best(1, data)
    assert int(training.best_epoch) == 0


def test_checkpoint_of_another_training_is_ignored(
    data_dir: Path, training: Training, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "c.npz"
    training.save(checkpoint, 2)
    assert training.load(checkpoint) == 2
    assert fitting.Training(labelled(data_dir), 3, KNOBS, 6).load(checkpoint) == 0


def test_rare_classes_weigh_more() -> None:
    weights = fitting.class_weights(np.array([0] * 90 + [1] * 10), 2)
    assert weights[1] == pytest.approx(3 * weights[0])
    assert (0.9 * weights[0] + 0.1 * weights[1]) == pytest.approx(1.0)


def test_class_of_one_group_is_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    for class_name in CLASSES[:2]:
        (folder / class_name).mkdir(parents=True)
        for number in range(3):
            picture = encode_png(draw_class(class_name, np.random.default_rng(number)))
            (folder / class_name / f"{number}.png").write_bytes(picture)
    rows = [f"{name}/{number}.png,{name}" for name in CLASSES[:2] for number in range(3)]
    (folder / "manifest.csv").write_text("\n".join(["path,group_id", *rows]) + "\n")
    with pytest.raises(DatasetError, match="Too few: checked, grainy"):
        train(folder, tmp_path / "n.h5", KNOBS)


def test_output_must_be_a_file_that_can_be_written(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    for output, fault in (
        (tmp_path / "n.keras", r"as an \.h5"),
        (tmp_path / "folder.h5", "where a file can be written"),
        (data_dir / "n.h5", "outside the folder of images"),
    ):
        with pytest.raises(TrainingError, match=fault):
            train(data_dir, output, KNOBS)


@pytest.mark.usefixtures("_untraced")
def test_diverged_training_is_an_error(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="must be finite"):
        fit(labelled(data_dir), replace(KNOBS, distillation=float("nan")), 0, tmp_path / "c.npz")


def test_damaged_checkpoint_is_ignored(training: Training, tmp_path: Path) -> None:
    for damaged in (b"PK\x03\x04 cut off", b""):
        (tmp_path / "c.npz").write_bytes(damaged)
        assert training.load(tmp_path / "c.npz") == 0


@pytest.mark.parametrize("flags", [["--network", "recipe", "--size", "64x64"], ["--seeds", "0", "1"]])
def test_flags_that_would_be_ignored_are_refused(
    data_dir: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(data_dir), "--output", str(tmp_path / "n.h5"), *flags]
    assert flags[0] in usage_error(arguments, capsys)
    assert not (tmp_path / "n.h5").exists()


def test_with_image_changes_the_image_spec() -> None:
    assert with_image(KNOBS, height=64, width=96).image.shape == (64, 96, 1)


def test_command_reports(
    data_dir: Path, trained: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    command = ["evaluate", "--data", str(data_dir), "--model", str(trained.h5_path)]
    assert main([*command, "--report", str(report)]) == 0
    page = (report / "report.html").read_text(encoding="utf-8")
    names = {path.stem for path in report.glob("*.png")}
    assert names >= {"training", "confusion", "reliability", "risk_coverage", "novelty", "robustness"}
    assert "worst" in names
    assert page.count("data:image/png;base64,") == len(names - {"worst"})
    assert "<dt>epochs</dt><dd>40 " in page
    own = trained.h5_path.with_name("textures-report") / "report.html"
    assert trained.card.metrics["verdict"] in own.read_text(encoding="utf-8")
    command = shlex.join(train_command(data_dir, trained.h5_path))
    assert f"<code>ext-classify {command} --force</code>" in own.read_text(encoding="utf-8")
    assert "http://" not in page
    assert "https://" not in page
    assert "Wrote" in capsys.readouterr().out
