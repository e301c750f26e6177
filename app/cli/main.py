"""ext-classify: run the classification service and manage its model from a terminal."""

import argparse
import functools
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from app import __version__
from app.cli.command_line import describe_settings_faults, end_well_when_stopped, parse_integer, parse_port
from app.errors import CommandError
from app.settings import Settings
from model.defaults import Engine
from model.errors import ModelError

ENGINES = get_args(Engine)
# Modules that add the other commands. `serve` does not import them, because they slow down its start.
FURTHER_COMMANDS = (
    "app.cli.classify",
    "app.cli.completion",
    "app.cli.demo",
    "app.cli.doctor.command",
    "app.cli.key",
    "app.cli.sql",
    "app.cli.register",
    "app.cli.plan.command",
    "app.cli.training",
    "app.cli.verify",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 for failure, 3 for partial failure.

    A failure prints one line on stderr.
    """
    options = parse_arguments(arguments)
    run: Callable[..., None] = options.pop("run")
    try:
        run(**options)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except (ModelError, OSError) as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(describe_settings_faults(error))
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)  # the exit code that shells use
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return the command's function as `run`, and its keyword arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return vars(parser(only_serve=arguments[:1] == ["serve"]).parse_args(arguments))


def serve(**given: Any) -> None:
    settings = _settings(given)
    end_well_when_stopped()  # after a graceful shutdown, uvicorn raises the signal again
    gc.disable()  # collecting garbage takes 10% of the startup time and frees almost nothing
    try:
        from app.server.run import serve as serve_http  # noqa: PLC0415 - other commands need no server

        serve_http(settings, _without_none(given))
    finally:
        gc.enable()


def _settings(given: dict[str, Any]) -> Settings:
    """Settings from flags and the environment; flags take precedence."""
    return Settings(**_without_none(given))


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def parser(*, only_serve: bool = False) -> argparse.ArgumentParser:
    """Build the parser for all commands, or for `serve` alone, which imports less and starts faster."""
    parser = argparse.ArgumentParser("ext-classify", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "serve", serve, "run the classification service")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=parse_port, help="port to listen on (default 8000)")
    command.add_argument(
        "--workers", type=_workers, help="server processes, which share the cores (default 1)"
    )
    command.add_argument("--model", type=Path, dest="model_path", help="the model's .h5 file")
    command.add_argument("--engine", choices=ENGINES, help="(default: litert)")

    for module in () if only_serve else FURTHER_COMMANDS:
        importlib.import_module(module).add_commands(functools.partial(_add, commands))
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[..., None],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    return command


def _workers(text: str) -> int:
    return parse_integer(text, 1, 1024)


def _fail(message: str, exit_code: int = 1) -> int:
    print(f"ext-classify: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
