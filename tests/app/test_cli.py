import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from app.client import is_ready
from model.defaults import DEFAULT_MODEL_PATH
from tests.conftest import SAMPLES
from tests.running import CLI, free_port, running_demo, running_service


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


def copy_artifact(folder: Path, *suffixes: str) -> Path:
    for suffix in suffixes:
        shutil.copy(DEFAULT_MODEL_PATH.with_suffix(suffix), folder)
    return folder / DEFAULT_MODEL_PATH.name


def test_classify_prints_a_table(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "--url", url, str(SAMPLES)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:7]] == [
        "image",
        *sorted(p.name for p in SAMPLES.glob("*.png")),
    ]
    assert "1 Crazing" in lines[-1]


def test_classify_prints_json_and_names_what_is_no_image(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    assert main(["classify", "--json", "--url", url, str(tmp_path), str(SAMPLES / "pitted.png")]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["error"]["code"] == "unsupported_format"
    assert second["label"] == "Pitted"


def test_more_images_than_a_batch_are_all_answered(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in range(130):
        shutil.copy(SAMPLES / "rolled.png", tmp_path / f"{number:03}.png")
    assert main(["classify", "--url", url, str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("130 Rolled\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "/nowhere/a.png"], "There is no /nowhere/a.png"),
        (["classify", "--url", "file:///etc", str(SAMPLES)], "must begin with http://"),
        (["classify", "--url", "http://127.0.0.1:1", str(SAMPLES)], "start it with: ext-classify serve"),
        (["serve", "--model", "/nowhere/m.h5"], "Missing: /nowhere/m.h5"),
        (["serve", "--model", ""], "must be an .h5 file"),
        (
            ["classify", "--url", "http://[::1", str(SAMPLES)],
            "and name a host, without a user. Received: http://[::1",
        ),
        (
            ["classify", "--url", "http://ho st", str(SAMPLES)],
            "and name a host, without a user. Received: http://ho st",
        ),
        (["train", "--data", "/nowhere", "--output", "model.keras"], "must be saved as an .h5"),
        (["train", "--data", "/nowhere"], "Missing: /nowhere"),
        (["describe", "/nowhere/m.h5", "--class-names", "a,b", "--scale", "1"], "Missing: /nowhere/m.h5"),
        (["plan", "--images", "0"], "number of images must be more than 0"),
        (["plan", "--rate", "0"], "rate in images a second must be more than 0"),
    ],
)
def test_failure_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    [line] = [line for line in printed.err.splitlines() if line.startswith("ext-classify: ")]
    assert message in line
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--engine", "onnx"],
        ["serve", "--port", "99999"],
        ["demo", "--port", "0"],
        ["train", "--data", ".", "--seeds", "-1"],
        ["train", "--data", ".", "--epochs", "0"],
        ["describe", "a.h5", "--class-names", "a,b", "--scale", "1/0"],
        ["describe", "a.h5", "--class-names", "a,b", "--scale", "much"],
    ],
)
def test_impossible_argument_is_refused_with_the_usage(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: ext-classify" in capsys.readouterr().err


def test_large_photographs_travel_in_smaller_batches(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bitmap = b"BM" + bytes(9_000_000)
    for number in range(12):
        (tmp_path / f"{number}.bmp").write_bytes(bitmap)
    assert main(["classify", "--url", url, str(tmp_path)]) == 3
    assert capsys.readouterr().out.endswith("12 (corrupt_image)\n")


def test_images_of_one_name_are_told_apart(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(SAMPLES / "rolled.png", tmp_path / folder)
    assert main(["classify", "--url", url, str(tmp_path)]) == 0
    assert f"{tmp_path}/b/rolled.png" in capsys.readouterr().out


def test_output_that_nobody_reads_is_no_failure(url: str) -> None:
    command = f"{shlex.join([*CLI, 'classify', '--url', url, *[str(SAMPLES)] * 50])} | head -1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)  # noqa: S607
    assert finished.stderr == ""


def test_serve_refuses_a_tampered_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json", ".tflite", ".tflite.json")
    content = bytearray(h5.read_bytes())
    content[-1] ^= 1
    h5.write_bytes(content)
    assert main(["serve", "--model", str(h5)]) == 1
    assert "must have the sha256 that its card names" in capsys.readouterr().err


def test_serving_environment_names_the_command_that_compiles(tmp_path: Path) -> None:
    """A stand-in for .venv: TensorFlow cannot be found."""
    h5 = copy_artifact(tmp_path, ".h5", ".json")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'tensorflow' else find(name, *more)",
        encoding="utf-8",
    )
    finished = subprocess.run(
        [*CLI, "serve", "--model", str(h5)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)},
    )
    assert finished.returncode == 1
    assert f"ext-classify compile --model {h5}" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_compile_makes_the_twin_that_serve_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json")
    assert main(["compile", "--json", "--model", str(h5)]) == 0
    assert json.loads(capsys.readouterr().out)["h5"] == str(h5)
    assert h5.with_suffix(".tflite").exists()
    with running_service("--model", str(h5)):
        pass


def test_tensorflow_engine_serves_too(capsys: pytest.CaptureFixture[str]) -> None:
    with running_service("--engine", "tensorflow") as url:
        assert main(["classify", "--url", url, str(SAMPLES)]) == 0
    assert "1 Scratches" in capsys.readouterr().out


def test_demo_classifies_the_samples_and_keeps_serving(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with running_demo(port) as (demo, printed):
        assert "1 Crazing, 1 Inclusion, 1 Patches, 1 Pitted, 1 Rolled, 1 Scratches" in printed
        assert main(["classify", "--url", f"http://127.0.0.1:{port}", str(SAMPLES / "crazing.png")]) == 0
        assert "1 Crazing" in capsys.readouterr().out
        demo.send_signal(signal.SIGINT)
        assert demo.wait(20) == 0


def test_stopped_demo_leaves_no_server_behind() -> None:
    port = free_port()
    with running_demo(port) as (demo, _):
        demo.terminate()
        assert demo.wait(20) == 0
    assert not is_ready(f"http://127.0.0.1:{port}")


def test_demo_names_a_taken_port(capsys: pytest.CaptureFixture[str], url: str) -> None:
    port = url.rpartition(":")[2]
    assert main(["demo", "--port", port]) == 1
    assert f"or: make run PORT={int(port) + 1}" in capsys.readouterr().err


def test_serve_names_a_taken_port(capsys: pytest.CaptureFixture[str], url: str) -> None:
    port = int(url.rpartition(":")[2])
    assert main(["serve", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use)" in said
    assert f"another port: --port {port + 1}" in said


def test_verify_says_which_network_would_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"steel_defects [0-9a-f]{12}: Crazing, .*Scratches; 200x200x1, by litert\n", said)


def test_verify_refuses_what_would_not_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json", ".tflite")
    h5.write_bytes(h5.read_bytes()[:-1] + b"?")
    assert main(["verify", str(h5)]) == 1
    assert "must have the sha256 that its card names" in capsys.readouterr().err
