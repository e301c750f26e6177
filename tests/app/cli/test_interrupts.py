"""Ctrl-C on a real terminal: exit code 130 and one line, at any moment; the SQL shell stays."""

import argparse
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from app.cli.interrupts import raise_on_interrupt
from app.cli.main import parser
from app.cli.service_process import own_service
from tests.running import CLI, Terminal, free_port

CTRL_C = "\x03"
[_COMMANDS] = [
    action.choices
    for action in parser()._actions  # noqa: SLF001 - argparse has no public list of commands
    if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
]
SLOW = "SELECT COUNT(ext_classify(file_url)) FROM DIRECTORY(@images), TABLE(GENERATOR(ROWCOUNT => 1000000))"
# Of commands that run until they are stopped, what they show once they do.
_RUNNING = {
    "serve": (["serve", "--port"], "Ctrl-C"),
    "serve with workers": (["serve", "--workers", "2", "--port"], "Ctrl-C"),
    "demo": (["demo", "--port"], "in a browser"),
    "sql --serve": (["sql", "--serve", "--port"], "In another terminal"),
}


def refuse_traceback(shown: str) -> None:
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert shown.splitlines()[-1].endswith("ext-classify: interrupted"), shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        *(("pydantic", [command]) for command in _COMMANDS),
        ("uvicorn", ["serve"]),
        ("fakesnow", ["sql", "SELECT 1"]),
        ("keras", ["train", "--data", "."]),
    ],
)
def test_interrupted_import_shows_one_line(module: str, arguments: list[str]) -> None:
    with Terminal(sys.executable, "-c", _STOP_IN_IMPORT, module, *arguments) as terminal:
        terminal.wait_for("importing")
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 130
    refuse_traceback(terminal.shown)


# Stops at the import of a package until the signal is delivered.
_STOP_IN_IMPORT = """
import builtins, sys, time
from app.cli.__main__ import main
find, module = builtins.__import__, sys.argv.pop(1)
def wait_in_import(name, *more, **by_name):
    if name.partition(".")[0] == module:
        print("importing", flush=True)
        try:
            time.sleep(600)
        except BaseException:  # as some packages swallow it
            pass
    return find(name, *more, **by_name)
builtins.__import__ = wait_in_import
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", _RUNNING)
def test_running_command_ends_with_130(name: str) -> None:
    arguments, shown = _RUNNING[name]
    with Terminal(*CLI, *arguments, str(free_port())) as terminal:
        terminal.wait_for(shown)
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 130
    refuse_traceback(terminal.shown)


def test_interrupt_while_a_service_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), raise_on_interrupt(), own_service():
        pass
    assert [service.returncode for service in started] == [-signal.SIGTERM]


@pytest.mark.slow
def test_shell_and_its_service_survive_ctrl_c() -> None:
    with Terminal(*CLI, "sql") as terminal:
        terminal.wait_for("sql> ")
        terminal.type("SELECT 'unfinished")
        terminal.wait_for("'unfinished")
        seen = len(terminal.shown)
        terminal.type(CTRL_C)
        terminal.wait_for("sql> ", seen)
        seen = len(terminal.shown)
        terminal.type(f"{SLOW};\n")
        terminal.wait_for("rows", seen)  # the progress of the calls
        terminal.type(CTRL_C)
        terminal.wait_for("interrupted", seen)
        seen = len(terminal.shown)
        terminal.type("SELECT COUNT(ext_classify(file_url):label) AS labels FROM DIRECTORY(@images);\n")
        terminal.wait_for("6 rows to the service", seen)
        terminal.type("exit\n")
        assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.shown


@pytest.mark.slow
def test_interrupted_statement_ends_with_130() -> None:
    """Without sending the rest of its rows, which takes longer than the test waits."""
    with Terminal(*CLI, "sql", SLOW) as terminal:
        terminal.wait_for("rows")
        terminal.type(CTRL_C)
        assert terminal.exit_code() == 130
    refuse_traceback(terminal.shown)


def test_interruption_of_a_finalizer_is_raised_again() -> None:
    """Python only prints what a finalizer raises."""

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def finalize() -> None:
        with raise_on_interrupt():
            Interrupted()
            time.sleep(600)

    # A background job, in which the tests may run, ignores SIGINT.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finalize()
    finally:
        signal.signal(signal.SIGINT, earlier)
