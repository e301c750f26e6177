"""ext-classify: the service and the model from a terminal."""

import argparse
import functools
import gc
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from app import __version__
from app.client import DEFAULT_URL, ClientError, classify_files, find_images, print_outcomes
from app.demo import demonstrate
from app.own_service import end_well_when_stopped
from app.plan.command import add_plan_command
from app.plan.figures import PlanError
from app.settings import Settings
from app.snowflake_commands import add_snowflake_commands
from app.sql_command import add_sql_command
from app.training_commands import add_training_commands, import_training, parse_integer
from model.artifact import DEFAULT_MODEL_PATH, load_artifact
from model.errors import ModelError
from model.runtime import Engine

SAMPLES = Path(__file__).parent.parent / "model" / "samples"
ENGINES = get_args(Engine)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 when it is done, 1 with one line on stderr when it cannot be."""
    options = parse_arguments(arguments)
    run: Callable[..., None] = options.pop("run")
    try:
        run(**options)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ModelError, ClientError, PlanError, OSError) as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(_describe_settings_faults(error))
    except KeyboardInterrupt:
        return _fail("interrupted") + 129  # 128 + SIGINT, as shells count
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> dict[str, Any]:
    """The command to run, as `run`, and what it is to be given."""
    return vars(_parser().parse_args(arguments))


def serve(**given: Any) -> None:
    settings = _settings(given)
    end_well_when_stopped()  # uvicorn stops gracefully, then raises the signal once more
    gc.disable()  # a start makes hardly any garbage, and to look for it takes a tenth of the time
    try:
        importlib.import_module("app.serving").serve(settings, _said(given))
    finally:
        gc.enable()


def classify(paths: list[Path], url: str, as_json: bool) -> None:
    images = find_images(paths)
    print_outcomes(images, classify_files(images, url), as_json=as_json)


def demo(images: Path, port: int | None) -> None:
    settings = _settings({"port": port})
    end_well_when_stopped()
    demonstrate(settings.port, images, SAMPLES / "scratches.png")


def compile_model(model: Path) -> None:
    compiling = import_training("model.compile")
    paths = compiling.compile_artifact(load_artifact(model))
    print(f"Compiled {paths.tflite}, and its stamp {paths.stamp}")


def describe(h5: Path, class_names: str, scale: float) -> None:
    describing = import_training("model.describe")
    names = [name.strip() for name in class_names.split(",")]
    card = describing.describe(h5, names, scale).card
    shape = " x ".join(map(str, card.image.shape))
    print(f"Described {h5}: {shape} pixels, multiplied by {card.scale:g}; {', '.join(card.class_names)}.")
    print(f"Next: ext-classify compile --model {shlex.quote(str(h5))}")


def _settings(given: dict[str, Any]) -> Settings:
    """What flags say goes before the environment."""
    return Settings(**_said(given))


def _said(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("ext-classify", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = _add(commands, "serve", serve, "answer POST /classify")
    command.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=_port, help="port to listen on (default 8000)")
    command.add_argument("--workers", type=_workers, help="processes, which share the cores (default 1)")
    command.add_argument("--model", type=Path, dest="model_path", help="the network's .h5")
    command.add_argument("--engine", choices=ENGINES, help="(default: litert)")

    command = _add(commands, "classify", classify, "classify image files through a running service")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="images, or folders of them")
    command.add_argument("--url", default=DEFAULT_URL, help="the service (default %(default)s)")
    command.add_argument("--json", action="store_true", dest="as_json", help="one outcome a line")

    command = _add(commands, "demo", demo, "serve, classify sample images by SQL, and keep serving")
    command.add_argument("--port", type=_port, help="port to listen on (default 8000)")
    command.add_argument("--images", type=Path, default=SAMPLES, help="a folder (default: the samples)")

    add_sql_command(functools.partial(_add, commands), SAMPLES)
    add_snowflake_commands(functools.partial(_add, commands), SAMPLES)
    add_plan_command(functools.partial(_add, commands), SAMPLES)

    add_training_commands(functools.partial(_add, commands))
    command = _add(commands, "compile", compile_model, "compile an .h5 to its LiteRT twin")
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")

    command = _add(commands, "describe", describe, "write the card of a foreign .h5")
    command.add_argument("h5", type=Path)
    command.add_argument("--class-names", required=True, help="in the order of the outputs, by commas")
    command.add_argument(
        "--scale",
        type=_scale,
        required=True,
        help="what pixels 0..255 are multiplied by before the network: 1/255, or 1 if it scales them itself",
    )
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


def _scale(text: str) -> float:
    """A factor, as a decimal or a fraction."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"must be a number. Received: {text}") from None


def _workers(text: str) -> int:
    return parse_integer(text, 1, 1024)


def _port(text: str) -> int:
    return parse_integer(text, 1, 65535)


def _describe_settings_faults(error: ValidationError) -> str:
    return "; ".join(
        f"{'_'.join(['EXT_CLASSIFY', *map(str, fault['loc'])]).upper()}: {fault['msg']}"
        for fault in error.errors(include_url=False)
    )


def _fail(message: str) -> int:
    print(f"ext-classify: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
