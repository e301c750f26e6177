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
    """Work that is to be whole is not done by being stopped: 128 + SIGTERM, as shells count."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def add_json(command: argparse.ArgumentParser, what: str = "for programs") -> None:
    command.add_argument("--json", action="store_true", dest="as_json", help=what)


def parse_integer(text: str, least: int, most: int) -> int:
    """Raises ArgumentTypeError for anything but an integer within the limits."""
    if not text.isdecimal() or not least <= int(text[:12]) <= most:
        raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}. Received: {text}")
    return int(text)


def parse_port(text: str) -> int:
    return parse_integer(text, 1, 65535)


def describe_settings_faults(error: ValidationError) -> str:
    """By the names of their variables, without what only follows from another fault."""
    return "; ".join(
        f"{'_'.join(['EXT_CLASSIFY', *map(str, fault['loc'])]).upper()}: {fault['msg']}"
        for fault in error.errors(include_url=False)
        if fault["type"] != "default_factory_not_called"
    )
