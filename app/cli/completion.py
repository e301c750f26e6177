"""ext-classify completion: print a shell completion script."""

import argparse
import importlib
from pathlib import Path

from app.cli import main as cli
from app.cli.command_line import Add
from app.errors import CommandError

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
_FILES = {"FILE", "DIR", "H5", "PATH", "FILE|TABLE"}


def add_commands(add: Add) -> None:
    command = add("completion", completion, "print a completion script for a shell")
    command.add_argument("shell", choices=SHELLS)


def completion(shell: str) -> None:
    """Print a script for the shell to evaluate: `eval "$(ext-classify completion bash)"`."""
    try:
        shtab = importlib.import_module("shtab")
    except ModuleNotFoundError:
        raise CommandError("Completion needs the terminal extra. Install it with: make setup") from None
    parser = cli.parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell))


def _complete_files(parser: argparse.ArgumentParser, file_completion: object) -> None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of actions
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                _complete_files(command, file_completion)
        elif action.type is Path or action.metavar in _FILES:
            action.complete = file_completion  # type: ignore[attr-defined]
