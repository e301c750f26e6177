"""What is published, and what is run before it is."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_targets_that_there_are(workflow: Path) -> None:
    run = [step["run"] for step in steps_of(workflow) if "run" in step]
    targets = {match[1] for command in run if (match := re.match(r"(?:sudo )?make ([a-z-]+)", command))}
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_all_is_checked() -> None:
    run = {step.get("run", "") for step in steps_of(ROOT / ".github" / "workflows" / "checks.yml")}
    assert {"make lint", "make test", "make container-test", "make audit"} <= run


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_a_limit_and_few_rights(workflow: Path) -> None:
    document = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert all("timeout-minutes" in job for job in document["jobs"].values())
    assert set(document["permissions"]) == {"contents"}


def test_version_stands_in_one_place() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [version] = re.findall(r'^version = "(.*)"', pyproject, re.MULTILINE)
    assert version == __version__
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "script", sorted((ROOT / "infra" / "container").glob("*.sh")), ids=lambda path: path.name
)
def test_script_is_of_any_shell(script: Path) -> None:
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)  # noqa: S607


def test_image_is_built_of_nothing_but_what_the_wheel_is_made_of() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = re.findall(
        r"^COPY (?!--)(.*) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    for path in {path for line in copied for path in line.split()}:
        assert any(path == allowed or Path(path).match(allowed) for allowed in sent), path
