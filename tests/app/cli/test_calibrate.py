"""`ext-classify calibrate`: from an imported file to outcomes of the service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from app.cli.main import main
from app.provisioning.udf_bundle import write_bundle
from model.artifact import load_artifact
from model.image import encode_png
from tests.model.known_posterior import NAMES, SPEC, own_logits, softmax, write_images, write_network
from tests.running import running_service

pytestmark = pytest.mark.slow


def test_imported_network_is_calibrated_and_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(write_network(tmp_path / "mine.h5", 4.0))
    assert main(["import", path, "--class-names", ",".join(NAMES), "--preprocess", "raw"]) == 0
    with running_service("--model", path) as url:
        bare = httpx.get(f"{url}/model").json()
        raw = classify(url, np.full(SPEC.shape, 140, np.uint8))
    assert bare["missing"] == raw["model"]["missing"] == ["calibration", "abstention"]
    assert raw["confidence"] == pytest.approx(confidence(140, 4.0), abs=1e-4)

    capfd.readouterr()
    data = str(write_images(tmp_path / "data", 30))
    assert main(["calibrate", "--model", path, "--data", data, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["calibration"] == load_artifact(Path(path)).card.metrics["calibration"]
    assert any("Temperature" in finding for finding in printed["findings"])
    assert main(["verify", path]) == 0

    grain = np.random.default_rng(0).normal(140, 12, SPEC.shape).clip(0, 255).astype(np.uint8)
    halves = np.full(SPEC.shape, 40, np.uint8)
    halves[:, 12:] = 240
    with running_service("--model", path) as url:
        served = httpx.get(f"{url}/model").json()
        familiar, foreign = classify(url, grain), classify(url, halves)
    assert served["missing"] == []
    assert "missing" not in familiar["model"]
    assert not familiar["abstained"]
    [expected] = softmax(own_logits(grain[np.newaxis], 4.0 / served["temperature"]))
    assert familiar["confidence"] == pytest.approx(expected.max(), abs=1e-4)
    assert (foreign["abstained"], foreign["label"], foreign["reason"]) == (True, None, "out_of_distribution")
    run_in_warehouse(Path(path), tmp_path / "bundle")


def test_shipped_network_is_not_calibrated_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--data", str(tmp_path)]) == 1
    assert "train calibrates its own" in capsys.readouterr().err


def run_in_warehouse(path: Path, bundle: Path) -> None:
    """The self-test passes with the zip of a warehouse that has TensorFlow only."""
    write_bundle(load_artifact(path), bundle)
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from pathlib import Path; import model.artifact, model.engines\n"
        "assert '.zip' in model.engines.__file__\n"
        f"artifact = model.artifact.load_artifact(Path('{path.name}'))\n"
        "model.engines.open_classifier(artifact, 'tensorflow', 1, Path())\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bundle / "ext_classify.zip")}
    command = [sys.executable, "-P", "-c", program]
    finished = subprocess.run(
        command, cwd=bundle, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def classify(url: str, pixels: np.ndarray) -> dict:
    content = encode_png(pixels)
    [outcome] = httpx.post(f"{url}/classify", files={"file": content}, timeout=60).json()["results"]
    return outcome


def confidence(level: int, factor: float) -> float:
    [probabilities] = softmax(own_logits(np.full((1, *SPEC.shape), level), factor))
    return float(probabilities.max())
