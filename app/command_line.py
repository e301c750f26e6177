"""What all commands share: how they are added, what their arguments may be, how they end."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

Add: TypeAlias = Callable[[str, Callable[..., None], str], argparse.ArgumentParser]
"""Adds a command: its name, what it runs, and a summary."""

MOST_PORT = 65535
SAMPLES = Path(__file__).parent.parent / "model" / "samples"


class CommandError(Exception):
    """A command cannot be done; the message says why, in a line."""

    exit_code = 1


class Incomplete(CommandError):
    """It is done, but for parts that could not be; 2 is argparse's, for a mistake in the command line."""

    exit_code = 3


def end_well_when_stopped() -> None:
    """To be stopped, or to lose the terminal, is no failure; what stands in a finally is done first."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda *_: sys.exit(0))


def fail_when_stopped() -> None:
    """Work that is to be whole is not done by being stopped: 128 and the signal's number, as shells count."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


def add_json(command: argparse.ArgumentParser, what: str = "for programs") -> None:
    command.add_argument("--json", action="store_true", dest="as_json", help=what)


def read_api_key(path: Path | None) -> str | None:
    """Of a file that holds it alone. Raises CommandError, which tells nothing of what the file holds."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable():
        raise CommandError(f"A file with an API key must hold it alone, in a line of ASCII. Received: {path}")
    return key


def parse_integer(text: str, least: int, most: int) -> int:
    """Raises ArgumentTypeError for anything but an integer within the limits."""
    if not text.isdecimal() or not least <= int(text[:12]) <= most:
        raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}. Received: {text}")
    return int(text)


def parse_port(text: str) -> int:
    return parse_integer(text, 1, MOST_PORT)


def describe_settings_faults(error: ValidationError) -> str:
    """By the names of their variables, without what only follows from another fault."""
    return "; ".join(
        f"{'_'.join(['EXT_CLASSIFY', *map(str, fault['loc'])]).upper()}: {_said(fault['msg'])}"
        for fault in error.errors(include_url=False)
        if fault["type"] != "default_factory_not_called"
    )


def _said(fault: str) -> str:
    return fault.removeprefix("Value error, ")
