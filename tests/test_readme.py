"""The README is held to what it says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.main import main, parse_arguments
from app.settings import Settings
from model.errors import InputError
from tests.running import free_port, running_demo, running_service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- runs -->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert f"| `{name.upper()}` |" in README
    assert " ".join(description.split()).rstrip(".") in README


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)
    assert [name.lower() for name in documented] == list(Settings.model_fields)


def test_every_row_error_is_documented() -> None:
    def codes(kind: type[InputError]) -> set[str]:
        own = {kind.code} if "code" in vars(kind) else set()
        return own.union(*map(codes, kind.__subclasses__()))

    assert codes(InputError) == set(re.findall(r"^\| `([a-z_0-9]+)` \|", README, re.MULTILINE))


def test_both_commands_stand_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    assert "make run" in first_screen
    assert "make test" in first_screen


def test_first_output_is_what_make_run_prints() -> None:
    port = free_port()
    with running_demo(port) as (_, printed):
        assert printed.replace(str(port), "8000").partition("\n\nServing")[0].strip() in README


@pytest.mark.parametrize("table", sorted((ROOT / "tests" / "benchmarks" / "results").rglob("*.md")))
def test_benchmarks_are_quoted_as_measured(table: Path) -> None:
    assert table.read_text(encoding="utf-8").strip() in README


@pytest.mark.parametrize("page", ["README.md", "model/saved/README.md"])
def test_cross_validation_is_quoted_as_measured(page: str) -> None:
    measured = (ROOT / "model" / "saved" / "crossvalidation.md").read_text(encoding="utf-8")
    overview = measured.split("\n\n")[1].splitlines()[2:]
    assert len(overview) > 10
    assert "\n".join(overview) in (ROOT / page).read_text(encoding="utf-8")


def test_curl_examples_work_when_pasted() -> None:
    assert len(EXAMPLES) == 3
    with running_service() as url:
        answers = [
            json.loads(
                subprocess.run(
                    ["bash", "-c", example.replace("http://127.0.0.1:8000", url)],  # noqa: S607
                    cwd=ROOT,
                    capture_output=True,
                    check=True,
                ).stdout
            )
            for example in EXAMPLES
        ]
    batch, image, files = answers
    assert [number for number, _ in batch["data"]] == [0, 1, 2]
    assert batch["data"][0][1]["label"] == image["label"] == "Scratches"
    assert [result["label"] for result in files["results"]] == ["Patches", "Pitted"]


def test_python_example_works_when_pasted() -> None:
    [example] = re.findall(r"<!-- runs -->\n```python\n(.*?)```", README, re.DOTALL)
    with running_service() as url:
        finished = subprocess.run(
            [sys.executable, "-c", example.replace("http://127.0.0.1:8000", url)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    lines = finished.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "Crazing",
        "Inclusion",
        "Patches",
        "Pitted",
        "Rolled",
        "Scratches",
    ]


def test_plan_is_quoted_as_worked_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rate", "700", "--cores", "2"]) == 0
    assert capsys.readouterr().out.partition("\n\nOne instance")[0] in README


def test_commands_of_the_readme_parse() -> None:
    commands = re.findall(r"^ext-classify ((?:.*\\\n)*.*)$", README, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        parse_arguments([word for word in words if word != "…"])


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
