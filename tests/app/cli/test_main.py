"""The commands of ext-classify, with the real service."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.main import main, parse_arguments, parser
from app.client import is_ready
from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH, SHIPPED_MODELS
from tests.conftest import SAMPLES
from tests.running import CLI, TIMEOUT_SECONDS, free_port, running_demo, running_service, usage_error

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NETWORK = f"{DEFAULT_MODEL_PATH.stem} {load_artifact(DEFAULT_MODEL_PATH).version}"


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
    assert "1 Crazing" in lines[-2]
    assert lines[-1] == f"Answered by {NETWORK}"


def test_classify_prints_json_with_errors_as_outcomes(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    assert main(["classify", "--json", "--url", url, str(tmp_path), str(SAMPLES / "pitted.png")]) == 3
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["error"]["code"] == "unsupported_format"
    assert second["label"] == "Pitted"


def test_images_beyond_one_batch_are_classified(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in range(130):
        shutil.copy(SAMPLES / "rolled.png", tmp_path / f"{number:03}.png")
    assert main(["classify", "--url", url, str(tmp_path)]) == 0
    assert "\n130 Rolled\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "/nowhere/a.png"], "/nowhere/a.png"),
        (["classify", "--url", "file:///etc", str(SAMPLES)], "file:///etc"),
        (["classify", "--url", "http://127.0.0.1:1", str(SAMPLES)], "ext-classify serve"),
        (["serve", "--model", "/nowhere/m.h5"], "/nowhere/m.h5"),
        (["serve", "--model", ""], ".h5"),
        (["classify", "--url", "http://[::1", str(SAMPLES)], "Received: http://[::1"),
        (["classify", "--url", "http://ho st", str(SAMPLES)], "Received: http://ho st"),
        (["train", "--data", "/nowhere", "--output", "model.keras"], "model.keras"),
        (["train", "--data", "/nowhere"], "/nowhere"),
        (["train", "--data", "/nowhere", "--size", "64x96"], "/nowhere"),
        (["train", "--data", "/nowhere", "--network", "recipe"], "/nowhere"),
        (["import", "/nowhere/m.h5", "--class-names", "a,b", "--scale", "1"], "/nowhere/m.h5"),
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
        ["import", "a.h5", "--class-names", "a,b", "--scale", "1/0"],
        ["import", "a.h5", "--class-names", "a,b", "--scale", "much"],
        ["doctor", "--js"],
    ],
)
def test_invalid_argument_prints_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "usage: ext-classify" in capsys.readouterr().err


def test_program_alone_is_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([])
    assert not raised.value.code
    shown = capsys.readouterr().out
    groups = re.findall(r"^(\w+):\n", shown, re.MULTILINE)
    assert groups == ["Serve", "Classify", "Snowflake", "Networks", "Shell"]
    assert set(re.findall(r"^  (\w+) ", shown, re.MULTILINE)) == set(commands())


@pytest.mark.parametrize(
    ("arguments", "usage"), [(["help"], "ext-classify [-h]"), (["help", "train"], "ext-classify train")]
)
def test_help_is_a_command_too(arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert not raised.value.code
    assert capsys.readouterr().out.startswith(f"usage: {usage}")


def commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [one.choices for one in parser()._actions if isinstance(one, argparse._SubParsersAction)]  # noqa: SLF001
    return dict(found)


@pytest.mark.parametrize("name", commands())
def test_help_of_a_command_ends_with_an_example_of_it(name: str) -> None:
    [example] = re.findall(r"^  ext-classify (.*)\n\Z", commands()[name].format_help(), re.MULTILINE)
    words = shlex.split(example.partition(" >> ")[0])
    assert words[0] == name
    parse_arguments(words)


@pytest.mark.parametrize(
    ("arguments", "usage", "similar"),
    [
        (["clasify", "photos"], "ext-classify ", "classify"),
        (["evalute"], "ext-classify ", "evaluate"),
        (["sever"], "ext-classify ", "serve"),
        (["frobnicate"], "ext-classify ", ""),
        (["--verison"], "ext-classify ", "--version"),
        (["--port", "9000", "serve"], "ext-classify ", ""),
        (["help", "trian"], "ext-classify ", "train"),
        (["serve", "--prot", "9000"], "ext-classify serve ", "--port"),
        (["train", "--data", "d", "--epoch=3"], "ext-classify train ", "--epochs"),
        (["upload", "photos"], "ext-classify upload ", ""),
        (["verify", "a.h5", "b.h5"], "ext-classify verify ", ""),
        (["verify", "--model", "a.h5"], "ext-classify verify ", ""),
        (["verify", "--hlep"], "ext-classify verify ", "--help"),
    ],
)
def test_mistyped_argument_shows_the_right_usage(
    arguments: list[str], usage: str, similar: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: {usage}")
    assert re.findall(r"did you mean (\S+)\?", printed) == ([similar] if similar else [])


def test_large_images_are_sent_in_smaller_batches(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bitmap = b"BM" + bytes(9_000_000)
    for number in range(12):
        (tmp_path / f"{number}.bmp").write_bytes(bitmap)
    assert main(["classify", "--url", url, str(tmp_path)]) == 3
    assert "\n12 (unsupported_format)\n" in capsys.readouterr().out


def test_images_with_the_same_name_are_shown_with_their_folders(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(SAMPLES / "rolled.png", tmp_path / folder)
    assert main(["classify", "--url", url, str(tmp_path)]) == 0
    assert f"{tmp_path}/b/rolled.png" in capsys.readouterr().out


def test_closed_output_pipe_is_not_an_error(url: str, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.png").symlink_to(SAMPLES / "rolled.png")
    command = f"{shlex.join([*CLI, 'classify', '--url', url, str(tmp_path)])} | head -1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)  # noqa: S607
    assert finished.stderr == ""


def test_file_names_are_escaped_in_a_locale_without_their_letters(url: str, tmp_path: Path) -> None:
    image = Path(shutil.copy(SAMPLES / "rolled.png", tmp_path / "Blech ä😀.png"))
    printed = [
        subprocess.run(
            [*CLI, "classify", "--url", url, str(tmp_path), *flags],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONIOENCODING": "latin-1"},
            encoding="latin-1",
        ).stdout
        for flags in ([], ["--json"])
    ]
    assert "Blech ä\\ud83d\\ude00.png  Rolled" in printed[0]
    assert json.loads(printed[1])["image"] == str(image)


def test_closed_standard_streams_are_not_an_error(url: str) -> None:
    command = shlex.join([*CLI, "classify", "--url", url, str(SAMPLES / "rolled.png")])
    for closed, printed in (("<&- 2>&-", "Rolled"), (">&-", "")):
        finished = subprocess.run(
            ["bash", "-c", f"{command} {closed}"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed in finished.stdout
        assert finished.stderr == ""


def test_serve_refuses_a_tampered_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json", ".tflite", ".tflite.json")
    content = bytearray(h5.read_bytes())
    content[-1] ^= 1
    h5.write_bytes(content)
    assert main(["serve", "--model", str(h5)]) == 1
    assert "sha256" in capsys.readouterr().err


def test_serving_environment_names_the_compile_command(tmp_path: Path) -> None:
    """Simulates .venv, where TensorFlow is not installed."""
    h5 = copy_artifact(tmp_path, ".h5", ".json")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'tensorflow' else find(name, *more)",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [*CLI, "serve", "--model", str(h5)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
        env={"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path},
    )
    assert finished.returncode == 1
    assert f"ext-classify compile --model {h5}" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_compile_creates_the_model_that_serve_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json")
    assert main(["compile", "--json", "--model", str(h5)]) == 0
    assert json.loads(capsys.readouterr().out)["h5"] == str(h5)
    assert h5.with_suffix(".tflite").exists()
    with running_service("--model", str(h5)):
        pass


def test_tensorflow_engine_serves(capsys: pytest.CaptureFixture[str]) -> None:
    with running_service("--engine", "tensorflow") as url:
        assert main(["classify", "--url", url, str(SAMPLES)]) == 0
    assert "1 Scratches" in capsys.readouterr().out


def test_demo_classifies_the_samples_and_serves_until_it_is_stopped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    port, folder = free_port(), shutil.copytree(SAMPLES, tmp_path / "coil's 7")
    with running_demo(port, "--images", str(folder)) as (demo, printed):
        assert "1 Crazing, 1 Inclusion, 1 Patches, 1 Pitted, 1 Rolled, 1 Scratches" in printed
        for command in re.findall("^  (curl .*)", printed, re.MULTILINE):
            assert b"Scratches" in subprocess.check_output(["sh", "-c", command])  # noqa: S607
        assert main(["classify", "--url", f"http://127.0.0.1:{port}", str(SAMPLES / "crazing.png")]) == 0
        assert "1 Crazing" in capsys.readouterr().out
        demo.terminate()
        assert demo.wait(TIMEOUT_SECONDS) == 0
    assert not is_ready(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", str(SAMPLES)],
        ["sql", "SELECT ext_classify(file_url):model.name::string AS n FROM DIRECTORY(@images)"],
    ],
)
def test_model_serves_the_command_and_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_artifact(SHIPPED_MODELS["recipe"])
    assert main([*arguments, "--model", str(recipe.h5_path)]) == 0
    printed = "".join(capsys.readouterr())
    assert f"nswered by {recipe.name} {recipe.version}" in printed
    assert "No service" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", str(SAMPLES), "--url", "http://127.0.0.1:1"],
        ["sql", "SELECT 1", "--url", "http://127.0.0.1:1"],
        ["sql", "SELECT 1", "--local"],
        ["plan", "--url", "http://127.0.0.1:1"],
        ["plan", "--rate", "100"],
    ],
)
def test_model_is_refused_where_no_service_starts(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "`--model`" in usage_error([*arguments, "--model", str(DEFAULT_MODEL_PATH)], capsys)


def test_errors_of_the_system_are_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "mill", "--file", "/nowhere/keys"]) == 1
    assert capsys.readouterr().err == "ext-classify: No such file or directory: '/nowhere/keys'\n"


@pytest.mark.parametrize("flags", [["--images", "."], ["--url", "http://127.0.0.1:1"], ["--chaos"]])
def test_flags_of_an_own_emulator_are_refused_with_a_running_one(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"Received: {flags[0]}." in usage_error(["sql", "--local", *flags], capsys)


@pytest.mark.parametrize("command", ["sql", "demo", "plan"])
def test_another_network_is_not_shown_the_samples_of_steel(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_artifact(tmp_path, ".h5", ".json")
    assert main([command, "--model", str(model)]) == 1
    assert "has no samples" in capsys.readouterr().err


def test_demo_reports_a_port_in_use(capsys: pytest.CaptureFixture[str], url: str) -> None:
    port = url.rpartition(":")[2]
    assert main(["demo", "--port", port]) == 1
    assert f"make run PORT={int(port) + 1}" in capsys.readouterr().err


def test_serve_reports_a_port_in_use(capsys: pytest.CaptureFixture[str], url: str) -> None:
    port = int(url.rpartition(":")[2])
    assert main(["serve", "--port", str(port)]) == 1
    printed = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in printed
    assert "Address already in use" in printed
    assert f"--port {port + 1}" in printed


def test_verify_describes_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"steel_defects [0-9a-f]{12}: Crazing, .*Scratches; 200x200x1, .*litert\n", printed)


def test_verify_refuses_a_tampered_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5 = copy_artifact(tmp_path, ".h5", ".json", ".tflite")
    h5.write_bytes(h5.read_bytes()[:-1] + b"?")
    assert main(["verify", str(h5)]) == 1
    assert "sha256" in capsys.readouterr().err
