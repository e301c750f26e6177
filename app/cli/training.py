"""ext-classify train, evaluate, crossvalidate, compile and describe: create and measure models."""

import argparse
import importlib
import json
import re
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from app.cli.command_line import Add, add_json, parse_integer
from model.artifact import Artifact, load_artifact
from model.defaults import DEFAULT_MODEL_PATH, Engine, user_cache_dir
from model.errors import ArtifactError, TrainingError

ENGINES = get_args(Engine)
NETWORKS = ("texture", "recipe")


def train(
    network: str,
    data: Path,
    output: Path,
    seeds: list[int],
    epochs: int | None,
    size: tuple[int, int] | None,
    accuracy: float | None,
    as_json: bool,
) -> None:
    given: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    _refuse_unused_flags(network, seeds, size, accuracy)
    with _progress_on_stderr(as_json):
        if network == "recipe":
            training = import_training("model.training.recipe")
            artifact = training.train(training.Knobs(**given), data, output, seeds)
        else:
            training = import_training("model.train")
            knobs = training.Knobs(**given, accuracy=accuracy)
            if size is not None:
                knobs = training.resized(knobs, *size)
            artifact = training.train(data, output, knobs, seeds[0])
    print(_as_json(artifact) if as_json else f"Saved {artifact.h5_path}, its card and its compiled model.")


def evaluate(
    data: Path,
    split: str,
    model: Path,
    engine: str,
    foreign: list[Path],
    report: Path | None,
    as_json: bool,
) -> None:
    if foreign and report is None:
        raise TrainingError("--foreign needs --report DIR, because the report holds its results.")
    artifact = load_artifact(model)
    engines = ("tensorflow", "litert") if engine == "both" else (engine,)
    evaluating = importlib.import_module("model.evaluation.evaluate")
    for evaluation in evaluating.evaluate(artifact, data, split, engines):
        print(json.dumps(asdict(evaluation)) if as_json else evaluation)
    if report is not None:
        with _progress_on_stderr(as_json):
            page = import_training("model.evaluation.study").report(artifact, data, split, foreign, report)
            print(f"Wrote {page} and its figures.")


def crossvalidate(
    data: Path, networks: list[str], foreign: list[Path], work: Path, output: Path | None
) -> None:
    text = import_training("model.evaluation.study").crossvalidation(networks, data, foreign, work)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


def compile_model(model: Path, as_json: bool) -> None:
    compiling = import_training("model.compile")
    artifact = load_artifact(model)
    with _progress_on_stderr(as_json):
        paths = compiling.compile_artifact(artifact)
    print(_as_json(artifact) if as_json else f"Compiled {paths.tflite}, with its stamp {paths.stamp}")


def describe(h5: Path, class_names: str, scale: float, as_json: bool) -> None:
    describing = import_training("model.training.describe")
    names = [name.strip() for name in class_names.split(",")]
    artifact = describing.describe(h5, names, scale)
    if as_json:
        print(_as_json(artifact))
        return
    card = artifact.card
    shape = " x ".join(map(str, card.image.shape))
    print(f"Wrote the card of {h5}: {shape} pixels, scale {card.scale:g}, {', '.join(card.class_names)}.")
    print(f"Next: ext-classify compile --model {shlex.quote(str(h5))}")


def _as_json(artifact: Artifact) -> str:
    about = {"h5": str(artifact.h5_path), "name": artifact.name, "version": artifact.version}
    return json.dumps({**about, "class_names": artifact.card.class_names, "shape": artifact.card.image.shape})


def _progress_on_stderr(as_json: bool) -> AbstractContextManager[object]:
    """Redirect progress output to stderr, so that stdout holds only JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def add_commands(add: Add) -> None:
    command = add("train", train, "train a model on a folder with one subfolder per class")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--output", type=Path, default=Path("trained.h5"), metavar="H5")
    command.add_argument(
        "--network",
        default="texture",
        choices=NETWORKS,
        help="(default %(default)s; recipe: the published recipe)",
    )
    command.add_argument("--seeds", type=_seed, nargs="+", default=[0], metavar="SEED", help="(default 0)")
    command.add_argument("--epochs", type=_epochs, help="(default: set by the network)")
    command.add_argument("--size", type=_size, metavar="HxW", help="input size in pixels (default 200x200)")

    command.add_argument(
        "--accuracy",
        type=_share,
        metavar="SHARE",
        help="accuracy from crossvalidate, to calibrate confidence to (default: measured on held-out images)",
    )
    add_json(command)

    command = add("evaluate", evaluate, "measure a model on a labelled folder, and optionally write a report")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--split", default="test", choices=("train", "valid", "test"))
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")
    command.add_argument("--engine", default="litert", choices=(*ENGINES, "both"))
    command.add_argument("--foreign", type=Path, nargs="+", default=[], metavar="DIR", help=_FOREIGN)
    command.add_argument(
        "--report", type=Path, metavar="DIR", help="write an HTML report and its figures to this folder"
    )
    add_json(command)

    command = add("crossvalidate", crossvalidate, "measure networks with grouped 5-fold cross-validation")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    command.add_argument("--foreign", type=Path, nargs="+", default=[], metavar="DIR", help=_FOREIGN)
    command.add_argument("--work", type=Path, default=user_cache_dir() / "crossvalidation", metavar="DIR")
    command.add_argument("--output", type=Path, metavar="MD", help="also write the tables to this file")

    command = add("compile", compile_model, "compile an .h5 file for the LiteRT engine")
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")
    add_json(command)

    command = add("describe", describe, "write the model card of an .h5 file trained elsewhere")
    command.add_argument("h5", type=Path)
    command.add_argument(
        "--class-names", required=True, help="class names in the order of the outputs, separated by commas"
    )
    command.add_argument(
        "--scale",
        type=_scale,
        required=True,
        help="factor for pixel values 0..255: 1/255, or 1 if the network scales its input itself",
    )
    add_json(command)


_FOREIGN = "folders of out-of-distribution images, to measure abstention"


def _refuse_unused_flags(
    network: str, seeds: list[int], size: tuple[int, int] | None, accuracy: float | None
) -> None:
    """Raise TrainingError for flags that the network would ignore."""
    if network == "recipe" and (size is not None or accuracy is not None):
        raise TrainingError("--network recipe does not allow --size and --accuracy.")
    if network == "texture" and len(seeds) > 1:
        raise TrainingError(f"--network texture takes one seed. Received: {len(seeds)}")


def import_training(module: str) -> ModuleType:
    """Import a module that needs TensorFlow. Raises ArtifactError in environments without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"This command needs {error.name}, which the serving environment lacks. In a clone: make dev, "
            f"then .venv-dev/bin/ext-classify"
        ) from None


def _size(text: str) -> tuple[int, int]:
    matched = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if matched is None or not all(32 <= int(side) <= 4096 for side in matched.groups()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, 32 to 4096 each. Received: {text}")
    height, width = matched.groups()
    return int(height), int(width)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1. Received: {text}")
    return share


def _scale(text: str) -> float:
    """Parse a factor such as 0.5 or 1/255."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"must be a number. Received: {text}") from None


def _epochs(text: str) -> int:
    return parse_integer(text, 1, 100_000)


def _seed(text: str) -> int:
    return parse_integer(text, 0, 2**32 - 1)
