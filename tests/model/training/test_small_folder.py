"""A folder of few images ships the frozen network, measured by folds, and ends in a verdict."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.cli.main import main
from app.main import create_app
from app.settings import Settings
from model.artifact import Artifact, load_artifact
from model.evaluation.hard_images import blank
from model.image import encode_png
from model.training.fit import Training
from tests.model.pictures import CLASSES, draw_class

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_statistics")]

IMAGES = 12
SIZE = ("--size", "48x48")


class Run(NamedTuple):
    artifact: Artifact
    data_dir: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("small")
    random = np.random.default_rng(0)
    for class_name in CLASSES:
        (folder / class_name).mkdir()
        (folder / class_name / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        for number in range(IMAGES):
            (folder / class_name / f"{number}.png").write_bytes(encode_png(draw_class(class_name, random)))
    h5 = tmp_path_factory.mktemp("output") / "n.h5"
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        assert main(["train", "--data", str(folder), "--output", str(h5), *SIZE]) == 0
    return Run(load_artifact(h5), folder, stdout.getvalue(), stderr.getvalue())


def test_frozen_network_ships_measured_by_folds(run: Run) -> None:
    card = run.artifact.card
    assert card.training["network"] == "frozen"
    assert card.metrics["folds"]["images"] == IMAGES * len(CLASSES)
    assert card.metrics["folds"]["accuracy"] >= 0.9
    assert 0 < card.metrics["test"]["images"] < 30
    assert "valid" not in card.metrics, "the network is fitted to these images"
    assert card.training["baseline"] in run.stderr


def test_command_notes_skipped_files_and_ends_in_the_verdict(run: Run) -> None:
    assert "Thumbs.db (3 times)" in run.stderr
    last = run.stdout.splitlines()[-1]
    assert last == run.artifact.card.metrics["verdict"]
    correct, images = run.artifact.card.metrics["folds"]["correct"], IMAGES * len(CLASSES)
    assert last.startswith(f"Verdict: right on {correct} of {images} unseen images")
    page = run.artifact.h5_path.with_name("n-report") / "report.html"
    text = page.read_text(encoding="utf-8")
    assert last in text
    assert f"{images} images, by 5 folds" in text
    assert f"<dd>{correct} of {images}, " in text


def test_network_is_served_with_evidence_and_abstains(run: Run) -> None:
    spec = run.artifact.card.image
    own = encode_png(draw_class("striped", np.random.default_rng(7)))
    foreign = [encode_png(image) for image in blank(spec)]
    with TestClient(create_app(Settings(model_path=run.artifact.h5_path))) as client:

        def classify(picture: bytes) -> dict[str, object]:
            headers = {"Content-Type": "image/png"}
            found: dict[str, object] = client.post(
                "/classify?evidence=true", content=picture, headers=headers
            ).json()
            return found

        answer, answers = classify(own), [classify(picture) for picture in foreign]
    assert (answer["label"] or answer["nearest_label"]) == "striped"
    assert answer["evidence"]
    assert sum(found["abstained"] is True for found in answers) >= 0.9 * len(foreign)


def test_existing_network_is_replaced_only_with_force_by_the_better_of_two(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--epochs`, a network is trained too; its few steps take less time than tracing a graph."""
    monkeypatch.setattr(Training, "step", Training.step.python_function)
    for not_read in ("compile_artifact", "write_report"):
        monkeypatch.setattr(f"model.train.{not_read}", lambda *_: None)
    h5 = tmp_path / "n.h5"
    h5.write_bytes(b"another network")
    command = ["train", "--data", str(run.data_dir), "--output", str(h5), *SIZE]
    for network in (["texture"], ["recipe"]):
        size = [] if network == ["recipe"] else list(SIZE)
        assert main([*command[:5], "--network", *network, *size]) == 1
        assert "--force" in capsys.readouterr().err
    assert h5.read_bytes() == b"another network"
    assert main([*command, "--epochs", "1", "--force", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdict"].startswith("Verdict: ")
    assert "the trained network is right on" in printed.err
    assert load_artifact(h5).card.training["network"] == "frozen"
