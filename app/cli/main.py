"""ext-classify: run the classification service and manage its model from a terminal."""

import argparse
import difflib
import functools
import gc
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from app import __version__
from app.cli.command_line import (
    Add,
    add_json,
    describe_settings_faults,
    end_well_when_stopped,
    integer,
    needs_extra,
    parse_port,
    refuse_taken_port,
)
from app.cli.interrupts import EXIT_CODE, exit_at_once, on_interrupt, raise_on_interrupt
from app.errors import CommandError, UsageError
from app.settings import Settings
from model.defaults import Engine
from model.errors import ModelError

ENGINES = get_args(Engine)
SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
# The commands in the order of the help, each with an example.
_GROUPS = {
    "Serve": {
        "serve": "serve --model model/saved/steel_defects.h5 --port 9000",
        "doctor": "doctor --url http://127.0.0.1:8000",
        "key": "key mill --file keys.txt",
        "plan": "plan --images 5000000 --deadline-minutes 120 --provider spcs",
    },
    "Classify": {
        "classify": "classify photos/ --out outcomes.csv",
        "sql": 'sql --images photos/ "SELECT relative_path, ext_classify(file_url) FROM DIRECTORY(@images)"',
        "demo": "demo --images photos/",
    },
    "Snowflake": {
        "register": "register --provider spcs --database plant --service plant.steel.classifier_service",
        "unregister": "unregister --database plant --schema steel",
        "upload": "upload photos/ --stage plant.steel.images",
    },
    "Networks": {
        "train": "train --data photos/ --output ours.h5",
        "evaluate": "evaluate --data photos/ --model ours.h5 --report report/",
        "crossvalidate": "crossvalidate --data photos/ --output tables.md",
        "import": "import theirs.keras --class-names good,bad --try photos/",
        "compile": "compile --model ours.h5",
        "calibrate": "calibrate --model my.h5 --data held-out/",
        "verify": "verify ours.h5",
    },
    "Shell": {"completion": "completion bash >> ~/.bash_completion"},
}
_EXAMPLES = {name: example for group in _GROUPS.values() for name, example in group.items()}
_FILES = {"FILE", "DIR", "H5", "PATH", "FILE|TABLE"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 for failure, 3 for partial failure.

    A failure prints one line on stderr. Raises SystemExit with 2 after the usage for unacceptable arguments.
    """
    options = parse_arguments(arguments)
    run: Callable[..., None] = options.pop("run")
    try:
        with raise_on_interrupt():
            run(**options)
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except (ModelError, OSError) as error:
        return _fail(str(error).removeprefix(f"[Errno {getattr(error, 'errno', None)}] "))
    except ValidationError as error:
        return _fail(describe_settings_faults(error))
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_CODE)
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return the command's function as `run`, and its keyword arguments. Raises SystemExit.

    Without arguments, print the help.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    program = parser(only_serve=arguments[:1] == ["serve"])
    if not arguments:
        program.print_help()
        sys.exit()
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    known = [*_EXAMPLES, "-h", "--help", "--version"]
    if arguments[0] not in known:
        program.error(f"no such command: {arguments[0]}{_similar(arguments[0], known)}")
    options = vars(program.parse_args(arguments))
    if "command" in options:  # a report says how to make it again
        options["command"] = shlex.join(["ext-classify", *arguments])
    return options


def _similar(word: str, known: Iterable[str]) -> str:
    # Without dashes, by which all flags are similar.
    names = {one.lstrip("-"): one for one in known if one.startswith("-") == word.startswith("-")}
    similar = difflib.get_close_matches(word.lstrip("-"), names, 1)
    return f"; did you mean {names[similar[0]]}?" if similar else ""


class _Program(argparse.ArgumentParser):
    def format_help(self) -> str:
        """Commands in groups, which argparse cannot show."""
        [commands] = [one for one in self._actions if isinstance(one, argparse._SubParsersAction)]  # noqa: SLF001
        summaries = {choice.dest: choice.help for choice in commands._choices_actions}  # noqa: SLF001
        lines = [self.format_usage(), self.description or "", ""]
        for title, examples in _GROUPS.items():
            lines += [f"{title}:", *(f"  {name:<14} {summaries[name]}" for name in examples), ""]
        return "\n".join([*lines, "`ext-classify COMMAND --help` shows its flags and an example.\n"])


class _Command(argparse.ArgumentParser):
    def parse_known_args(self, *arguments: Any, **by_name: Any) -> Any:
        """Report unknown arguments here, where the usage is the command's and not the program's."""
        known, unknown = super().parse_known_args(*arguments, **by_name)
        if unknown:
            similar = _similar(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{similar}")
        return known, unknown


def parser(*, only_serve: bool = False) -> argparse.ArgumentParser:
    """Build the parser for all commands, or for `serve` alone, which imports less and starts faster."""
    parser = _Program("ext-classify", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Command)
    add = functools.partial(_add, commands)
    _add_serve(add)
    if not only_serve:
        _add_other_commands(add)
    return parser


def _add_serve(add: Add) -> None:
    command = add("serve", serve, "run the classification service")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=parse_port, help="port to listen on (default 8000)")
    workers = "server processes, which share the cores (default 1)"
    command.add_argument("--workers", type=integer(1, 1024), help=workers)
    command.add_argument("--model", type=Path, dest="model_path", help="the model's .h5 file")
    command.add_argument("--engine", choices=ENGINES, help="(default: litert)")


def _add_other_commands(add: Add) -> None:
    # `serve` starts faster without these imports.
    from app.cli import classify, doctor, models, plan, register, sql  # noqa: PLC0415

    classify.add_commands(add)
    command = add("completion", completion, "print a completion script for a shell")
    command.add_argument("shell", choices=SHELLS)
    doctor.add_commands(add)
    command = add("key", key, "create an API key, and the line for the service's file of keys")
    command.add_argument("name", help="name of the client that gets the key")
    file = "append the line to this file of keys (default: print the line)"
    command.add_argument("--file", type=Path, help=file)
    add_json(command)
    sql.add_commands(add)
    register.add_commands(add)
    plan.add_commands(add)
    models.add_commands(add)


def _add(
    commands: "argparse._SubParsersAction[_Command]", name: str, run: Callable[..., None], summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  ext-classify {_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=functools.partial(_refuse_with_usage, command, run))
    return command


def _refuse_with_usage(command: argparse.ArgumentParser, run: Callable[..., None], /, **options: Any) -> None:
    """Run a command. Raises SystemExit, as argparse does, for flags that only the command can refuse."""
    try:
        run(**options)
    except UsageError as error:
        command.error(str(error))


def serve(**given: Any) -> None:
    flags = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**flags)  # flags take precedence over the environment
    is_for_people = sys.stderr.isatty() and "log_level" not in settings.model_fields_set
    if is_for_people:
        flags["log_level"] = "warning"  # for the workers too
        settings = Settings(**flags)
    end_well_when_stopped()  # after a graceful shutdown, uvicorn raises the signal again
    gc.disable()  # collecting garbage takes 10% of the startup time and frees almost nothing
    try:
        with on_interrupt(exit_at_once):
            from app.server.run import serve as serve_http  # noqa: PLC0415 - other commands need no server

        refuse_taken_port(settings.host, settings.port)
        serve_http(settings, flags, announces=is_for_people)
    finally:
        gc.enable()


def key(name: str, file: Path | None, as_json: bool) -> None:
    """Print a new key once; only its hash is stored."""
    from app.api.auth import NAME, line_of, make_key  # noqa: PLC0415 - other commands need no HTTP

    if not NAME.fullmatch(name):
        raise UsageError(
            f"A key's name must consist of letters, digits, dots, dashes and underscores. Received: {name!r}"
        )
    made = make_key()
    line = line_of(name, made)
    if file is not None:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n" if text.endswith("\n") or not text else f"\n{line}\n")
    if as_json:
        print(json.dumps({"name": name, "key": made, "line": line, "file": file and str(file)}))
        return
    print(made)
    if file is None:
        print(f"Add this line to the file in EXT_CLASSIFY_API_KEYS_FILE:\n{line}", file=sys.stderr)


def completion(shell: str) -> None:
    """Print a script for the shell to evaluate: `eval "$(ext-classify completion bash)"`."""
    with needs_extra("terminal"):
        import shtab  # noqa: PLC0415 - optional
    commands = parser()
    _complete_files(commands, shtab.FILE)
    print(shtab.complete(commands, shell))


def _complete_files(parser: argparse.ArgumentParser, file_completion: object) -> None:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of actions
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                _complete_files(command, file_completion)
        elif action.type is Path or action.metavar in _FILES:
            action.complete = file_completion  # type: ignore[attr-defined]


def _fail(message: str, exit_code: int = 1) -> int:
    print(f"ext-classify: {message}", file=sys.stderr)
    return exit_code
