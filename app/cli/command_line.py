"""What commands share: argument types, checks of the environment, and signal handling."""

import argparse
import errno
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from pydantic import ValidationError

from app.cli.interrupts import exit_at_once, on_interrupt
from app.errors import CommandError
from app.settings import variable_of

MAX_PORT = 65535
# For each extra, the make target that installs it, and the environment.
_TARGETS = {"sql": ("setup", ".venv"), "terminal": ("setup", ".venv"), "train": ("dev", ".venv-dev")}

Add: TypeAlias = Callable[[str, Callable[..., None], str], argparse.ArgumentParser]
"""Adds a command to the parser, from its name, its function and its help text."""


def end_well_when_stopped() -> None:
    """On SIGTERM and SIGHUP, run `finally` blocks and exit with 0: stopping a server is not a failure."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda *_: sys.exit(0))


def fail_when_stopped() -> None:
    """On SIGTERM and SIGHUP, exit with 128 + the signal number, because the work is incomplete."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Turn a failed import in the block into a CommandError that names the extra to install.

    Only for imports: Ctrl-C in the block exits without any cleanup.
    """
    try:
        with on_interrupt(exit_at_once):
            yield
    except ModuleNotFoundError as error:
        target, environment = _TARGETS[name]
        raise CommandError(
            f"This command needs the {name} extra, which `make {target}` installs into {environment}. "
            f"Missing: {error.name}"
        ) from None


def refuse_taken_port(host: str, port: int) -> None:
    """Raises CommandError, with advice, if nothing can listen on the port. Port 0 is any free port."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        is_taken = error.errno == errno.EADDRINUSE and port < MAX_PORT
        advice = f"; another port: --port {port + 1}" if is_taken else ""
        raise CommandError(f"cannot listen on {host}:{port} ({reason}){advice}") from None


def add_json(command: argparse.ArgumentParser, what: str = "print JSON") -> None:
    command.add_argument("--json", action="store_true", dest="as_json", help=what)


def read_api_key(path: Path | None) -> str | None:
    """Return the API key in a file. Raises CommandError, whose message never contains the file's content."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable():
        raise CommandError(f"An API key file must hold one key on one line of ASCII. Received: {path}")
    return key


def integer(least: int, most: int) -> Callable[[str], int]:
    """Return a function that parses an integer from `least` to `most`. It raises ArgumentTypeError."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text[:12]) <= most:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}. Received: {text}")
        return int(text)

    return parse


def parse_number(text: str, least: float = 0.0) -> float:
    """Return a finite number of at least `least`. Raises ArgumentTypeError for any other text."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least {least}. Received: {text}")
    return number


parse_port = integer(1, MAX_PORT)


def describe_settings_faults(error: ValidationError) -> str:
    """Return one line that names the variable of each invalid setting.

    Leaves out errors that only follow from another error.
    """
    return "; ".join(
        f"{variable_of('_'.join(map(str, fault['loc']))).rstrip('_')}: "
        f"{fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors(include_url=False)
        if fault["type"] != "default_factory_not_called"
    )
