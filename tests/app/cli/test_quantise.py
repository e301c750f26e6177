"""`ext-classify compile --int8`: from an imported file to outcomes of the service."""

import json
from pathlib import Path

import httpx2 as httpx
import pytest

from app.cli.main import main
from model.artifact import load_artifact
from tests.model.known_posterior import NAMES, write_images, write_network
from tests.running import running_service, usage_error

pytestmark = pytest.mark.slow


def test_imported_network_is_quantised_and_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = str(write_network(tmp_path / "mine.h5")), write_images(tmp_path / "data", 30)
    assert main(["import", path, "--class-names", ",".join(NAMES), "--preprocess", "raw"]) == 0
    before = classify_all(path, data)

    capfd.readouterr()
    compiling = ["compile", "--model", path, "--int8", "--images", str(data)]
    assert main([*compiling, "--least-agreement", "90%", "--json"]) == 0
    output = capfd.readouterr()
    printed = json.loads(output.out)
    assert printed["int8"] == load_artifact(Path(path)).card.metrics["int8"]
    assert any("CPU time" in finding for finding in printed["findings"])
    assert "fully_quantize" not in output.err
    assert main(["verify", path]) == 0

    after = classify_all(path, data)
    tolerance = 3 * printed["int8"]["probability_difference"]["largest"]
    assert all(
        abs(a["confidence"] - b["confidence"]) < tolerance
        for a, b in zip(before, after, strict=True)
        if a["label"] == b["label"]
    )
    same = sum(a["label"] == b["label"] for a, b in zip(before, after, strict=True))
    assert same >= 0.9 * len(after)
    assert after[0]["evidence"]
    assert before != after, "int8 is served"


@pytest.mark.parametrize("flags", [["--int8"], ["--images", "photos"], ["--least-agreement", "0.9"]])
def test_flags_need_each_other(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--int8 needs --images" in usage_error(["compile", *flags], capsys)


@pytest.mark.parametrize("share", ["2", "101%", "-0.1", "nan", "x", "%"])
def test_agreement_is_a_share(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", "--int8", "--images", "photos", f"--least-agreement={share}"])
    assert share in capsys.readouterr().err


def classify_all(path: str, data: Path) -> list[dict]:
    files = [("file", file.read_bytes()) for file in sorted(data.rglob("*.png"))]
    with running_service("--model", path) as url:
        return httpx.post(f"{url}/classify?evidence=true", files=files, timeout=120).json()["results"]
