"""Starts the load process, sends it jobs and reads its reports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.load import Job, Report

ROOT = Path(__file__).parents[2]


class LoadProcess:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, job: Job) -> Report:
        self.begin(job)
        return self.report()

    def begin(self, job: Job) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()

    def report(self) -> Report:
        """Of the job begun, once it is over."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("The load process has died; it says why above.")
        return Report(**json.loads(line))


@contextmanager
def load_process() -> Iterator[LoadProcess]:
    command = [sys.executable, "-m", "tests.benchmarks.load"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield LoadProcess(process)
        finally:
            process.kill()
