"""The README's examples and output."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.main import parse_arguments
from tests.running import free_port, running_demo, running_service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- runs -->\n```sh\n(.*?)```", README, re.DOTALL)


def test_both_commands_are_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:20])
    assert "make run" in first_screen
    assert "make test" in first_screen


def test_first_output_is_what_make_run_prints() -> None:
    port = free_port()
    with running_demo(port) as (_, printed):
        assert printed.replace(str(port), "8000").partition("\n\nServing")[0].strip() in README


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
            timeout=180,
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


def test_commands_parse() -> None:
    commands = re.findall(r"^ *ext-classify ((?:.*\\\n)*.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        parse_arguments([word for word in words if word != "…"])


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220
