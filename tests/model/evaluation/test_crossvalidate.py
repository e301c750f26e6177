"""Each image is predicted once, by a network not trained on its group; the predictions are saved."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.cli.main import main
from model.evaluation import crossvalidate
from model.evaluation.crossvalidate import (
    FoldNetwork,
    Predictions,
    cross_calibrated,
    cross_validate,
    robust_accuracy,
    tables,
)
from model.image import ImageSpec, encode_png
from model.networks.texture_cnn import EMBEDDING, texture_cnn
from model.training.calibration import fit_novelty
from model.training.folder import Folder
from tests.model.test_train import CLASSES, KNOBS, draw_class

pytestmark = pytest.mark.slow

GROUPS = 10


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten groups of three images per class, stated in a manifest."""
    folder = tmp_path_factory.mktemp("grouped")
    random = np.random.default_rng(0)
    lines = ["path,group_id"]
    for class_name in CLASSES:
        (folder / class_name).mkdir()
        for number in range(3 * GROUPS):
            picture = encode_png(draw_class(class_name, random))
            (folder / class_name / f"{number}.png").write_bytes(picture)
            lines.append(f"{class_name}/{number}.png,{class_name}-{number // 3}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Folder, np.ndarray]]:
    """Records the folds, and trains none: one network, as initialised, answers for all."""
    calls: list[tuple[Folder, np.ndarray]] = []
    embeddings = np.random.default_rng(0).normal(size=(60, EMBEDDING)).astype(np.float32)
    novelty = fit_novelty(embeddings, np.arange(60) % len(CLASSES), np.arange(60))
    fitted = FoldNetwork(texture_cnn(KNOBS.image, len(CLASSES)), novelty)

    def record(folder: Folder, splits: np.ndarray, fold: int, checkpoint: Path) -> FoldNetwork:
        calls.append((folder, splits))
        return fitted

    candidate = replace(crossvalidate.NETWORKS["texture"], knobs=KNOBS, fit_fold=record)
    monkeypatch.setitem(crossvalidate.NETWORKS, "texture", candidate)
    return calls


def test_folds_share_no_group_and_are_trained_once(
    data_dir: Path,
    fitted: list[tuple[Folder, np.ndarray]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = cross_validate("texture", data_dir, [], tmp_path)
    assert len(fitted) == 5
    for folder, splits in fitted:
        groups = [set(folder.groups[splits == name].tolist()) for name in ("train", "valid", "test")]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
    tested = np.stack([splits == "test" for _, splits in fitted])
    assert (tested.sum(axis=0) == 1).all()
    assert np.allclose(found.clean.sum(axis=1), 1, atol=1e-4)
    assert found.novelty is not None

    again = cross_validate("texture", data_dir, [], tmp_path)
    assert len(fitted) == 5, "saved predictions must be reused"
    assert np.array_equal(again.clean, found.clean)

    output = tmp_path / "tables.md"
    command = ["crossvalidate", "--data", str(data_dir), "--networks", "texture", "--work", str(tmp_path)]
    report = tmp_path / "report"
    assert main([*command, "--output", str(output), "--report", str(report)]) == 0
    assert len(fitted) == 5
    written = output.read_text(encoding="utf-8")
    printed = capsys.readouterr()
    assert written in printed.out
    assert " groups: " in printed.err, "the number of groups must be printed"
    for heading in ("Grouped 5-fold", "Recall by class", "Robust accuracy", "Abstention", "Confusion"):
        assert heading in written
    page = (report / "report.html").read_text(encoding="utf-8")
    right = int((found.clean.argmax(axis=1) == found.labels).sum())
    assert f"Verdict: right on {right} of {len(found.labels)} unseen images, by 5 folds" in page
    assert page.count("data:image/jpeg;base64,") == 12
    assert "<dt>epochs</dt><dd>3 " in page
    for name in ("confusion", "reliability", "risk_coverage", "novelty", "robustness", "worst"):
        assert (report / f"{name}.png").is_file()


def predictions_of(
    clean: np.ndarray, labels: np.ndarray, corrupted: dict[tuple[str, str], np.ndarray]
) -> Predictions:
    return Predictions(
        network="made up",
        parameters=10,
        macs=2_000_000,
        labels=labels,
        groups=np.arange(len(labels)),
        folds=np.arange(len(labels)) % 5,
        clean=clean,
        corrupted=corrupted,
        novelty=None,
        out_of_distribution={},
    )


def test_robust_accuracy_is_the_mean_of_kinds_not_of_severities() -> None:
    labels = np.arange(10) % 2
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    # A mean over severities would count blur three times.
    corrupted = {("noise", "1"): right, ("blur", "1"): wrong, ("blur", "2"): wrong, ("blur", "3"): right}
    result = predictions_of(right, labels, corrupted)
    assert robust_accuracy(result) == pytest.approx((1 + 1 / 3) / 2)
    overview, *_ = tables([result], ("a", "b"))
    assert "| errors | 0 of 10 |" in overview
    assert "| robust accuracy, mean | 66.67% |" in overview


def test_cross_calibration_uses_the_temperature_of_other_folds() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 4000)
    predicted = np.where(random.random(4000) < 0.8, labels, 1 - labels)
    clean = np.where(np.eye(2)[predicted] == 1, 0.99, 0.01).astype(np.float32)
    found = cross_calibrated(predictions_of(clean, labels, {}))
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.max(axis=1).mean() == pytest.approx(0.8, abs=0.02)
    assert np.array_equal(found.argmax(axis=1), clean.argmax(axis=1))


def test_errors_among_confident_predictions_are_counted() -> None:
    labels = np.arange(1000) // 500
    clean = np.where(np.eye(2)[labels] == 1, 0.98, 0.02)
    clean[:20] = [0.02, 0.98]
    clean[20:320] = [0.6, 0.4]
    clean[20:140] = [0.4, 0.6]
    overview, *_ = tables([predictions_of(clean, labels, {("noise", "1"): clean})], ("a", "b"))
    assert "and errors among them | 70.0%, 20 |" in overview


def test_recipe_is_measured_at_its_own_size() -> None:
    assert crossvalidate.NETWORKS["recipe"].knobs.image == ImageSpec(height=200, width=200, channels=3)
