"""ext-classify completion: what lets a shell complete its commands and flags."""

import argparse
import importlib
from pathlib import Path

from app import cli
from app.command_line import Add, CommandError

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
_FILES = {"FILE", "DIR", "H5", "PATH", "FILE|TABLE"}


def add_commands(add: Add) -> None:
    command = add("completion", completion, "print what lets a shell complete commands and flags")
    command.add_argument("shell", choices=SHELLS)


def completion(shell: str) -> None:
    """To be evaluated by the shell, as in `eval "$(ext-classify completion bash)"`."""
    try:
        shtab = importlib.import_module("shtab")
    except ModuleNotFoundError:
        raise CommandError("Completion takes the terminal extra: make setup installs it.") from None
    parser = cli.parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell))


def _complete_files(parser: argparse.ArgumentParser, how: object) -> None:
    for action in parser._actions:  # noqa: SLF001 - there is no other way to all of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                _complete_files(command, how)
        elif action.type is Path or action.metavar in _FILES:
            action.complete = how  # type: ignore[attr-defined]
