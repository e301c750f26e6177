"""`ext-classify import` makes a network that the service serves as its author's code does."""

import json
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import tf_keras
from PIL import Image, ImageOps

from app.cli.main import main, parse_arguments
from app.cli.models import parse_class_names
from app.errors import CommandError
from app.provisioning.udf_bundle import write_bundle
from model.artifact import load_artifact
from model.engines import open_classifier
from model.errors import ArtifactError
from model.image import ImageSpec
from model.importing import import_network
from model.preprocessing import PRESETS, Preprocessing
from tests.model.conftest import random_images
from tests.model.kinds import KINDS
from tests.running import running_service, usage_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

COLOUR = ImageSpec(height=16, width=16, channels=3)
LABELS = "0 rock\n1 paper\n2 scissors\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b, c", ("a", "b", "c")),
        ('["a", "b"]', ("a", "b")),
        ('{"a": 1, "b": 0}', ("b", "a")),
        ('{"0": "a", "1": "b"}', ("a", "b")),
        ("@0 ROCK\n1 PAPER\n", ("ROCK", "PAPER")),
        ("@ROCK\nPAPER\n\n", ("ROCK", "PAPER")),
        ("@1 euro\n2 euro\n", ("1 euro", "2 euro")),
        ("@a,b,c\n", ("a", "b", "c")),
        ('@["a/x", "b"]', ("a/x", "b")),
    ],
)
def test_class_names_are_read_as_people_have_them(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    if text.startswith("@"):
        (tmp_path / "labels.txt").write_text(text[1:], encoding="utf-8")
        text = f"@{tmp_path / 'labels.txt'}"
    assert parse_class_names(text) == names


@pytest.mark.parametrize("text", ["[1", "{'a': 0}"])
def test_broken_json_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_class_names(text)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--scale", "1./255"], PRESETS["unit"]),
        (["--scale", "1/127.5", "--offset", "-1"], PRESETS["symmetric"]),
        (["--mean", "103.939,116.779,123.68", "--order", "bgr"], PRESETS["caffe"]),
        (
            ["--scale", "1/255", "--mean", "0.5", "--std", "0.5"],
            Preprocessing(scale=(2 / 255,), offset=(-1.0,)),
        ),
    ],
)
def test_explicit_preprocessing_is_parsed(flags: list[str], expected: Preprocessing) -> None:
    from app.cli.models import _preprocessing  # noqa: PLC0415 - only for this test

    options = parse_arguments(["import", "n.h5", *flags])
    names = ("preprocess", "scale", "offset", "mean", "std", "order")
    found = _preprocessing(**{name: options[name] for name in names})
    assert found.order == expected.order
    assert np.allclose(found.scale, expected.scale, rtol=1e-12)
    assert np.allclose(found.offset, expected.offset)


def test_teachable_machine_export_is_served_as_its_own_code_answers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The example code of the export: ImageOps.fit with LANCZOS, then (pixels / 127.5) - 1."""
    [kind] = [kind for kind in KINDS if kind.name == "teachable-machine"]
    path, _ = kind.write(tmp_path)
    (tmp_path / "labels.txt").write_text(LABELS, encoding="utf-8")
    command = ["import", str(path), "--class-names", f"@{tmp_path / 'labels.txt'}"]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "Teachable Machine" in printed
    assert f"ext-classify serve --model {path}" in printed

    photograph = tmp_path / "photograph.png"
    random = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(random).resize((400, 300), Image.Resampling.BICUBIC).save(photograph)
    fitted = ImageOps.fit(Image.open(photograph).convert("RGB"), (224, 224), Image.Resampling.LANCZOS)
    network = tf_keras.models.load_model(path, compile=False)
    expected = network.predict((np.asarray(fitted).astype(np.float32) / 127.5)[None] - 1, verbose=0)[0]
    with running_service("--model", str(path)) as url, photograph.open("rb") as file:
        [outcome] = httpx.post(f"{url}/classify", files={"file": file}).json()["results"]
    assert outcome["label"] == ("rock", "paper", "scissors")[int(expected.argmax())]
    assert np.abs(np.array(list(outcome["probabilities"].values())) - expected).max() <= 1e-5
    assert "preprocessing is right" in capfd.readouterr().err


def test_json_has_the_findings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [kind] = [kind for kind in KINDS if kind.name == "keras-rescaling"]
    path, _ = kind.write(tmp_path)
    assert main(["import", str(path), "--class-names", "a,b,c", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["class_names"] == ["a", "b", "c"]
    assert any("Rescaling" in finding for finding in printed["findings"])
    assert printed["warnings"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--scale", "1/255", "--preprocess", "unit"],
        ["--offset", "1", "--mean", "1"],
    ],
)
def test_flags_that_contradict_are_refused(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = usage_error(["import", str(tmp_path / "n.h5"), "--class-names", "a,b", *flags], capsys)
    assert flags[0] in refused
    assert flags[2] in refused


@pytest.mark.parametrize("name", ["keras-keras-file", "tflite-sigmoid", "tf_keras-hdf5"])
def test_bundle_for_a_warehouse_takes_every_file(tmp_path: Path, name: str) -> None:
    [kind] = [kind for kind in KINDS if kind.name == name]
    path, own_answer = kind.write(tmp_path)
    artifact = import_network(path, kind.request).artifact
    write_bundle(artifact, tmp_path / "bundle")
    bundled = load_artifact(tmp_path / "bundle" / "network.h5")
    images = random_images(2, COLOUR)
    for engine in ("litert",) if kind.suffix == ".tflite" else ("litert", "tensorflow"):
        classifier = open_classifier(bundled, engine, 1, tmp_path)  # type: ignore[arg-type]
        assert np.allclose(classifier.predict(images), own_answer(images), atol=1e-5)


def test_folder_is_not_bundled(tmp_path: Path) -> None:
    [kind] = [kind for kind in KINDS if kind.name == "keras-saved-model"]
    path, _ = kind.write(tmp_path)
    with pytest.raises(ArtifactError, match="one file"):
        write_bundle(import_network(path, kind.request).artifact, tmp_path / "bundle")
