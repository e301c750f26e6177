"""ext-classify train, evaluate, crossvalidate, compile and describe: for whoever makes a network."""

import argparse
import importlib
import re
import shlex
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from app.command_line import Add, parse_integer
from model.artifact import load_artifact
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
) -> None:
    given: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    _refuse_idle_flags(network, seeds, size, accuracy)
    if network == "recipe":
        training = import_training("model.train_recipe")
        artifact = training.train(training.Knobs(**given), data, output, seeds)
    else:
        training = import_training("model.train")
        knobs = training.Knobs(**given, accuracy=accuracy)
        if size is not None:
            knobs = training.resized(knobs, *size)
        artifact = training.train(data, output, knobs, seeds[0])
    print(f"Saved {artifact.h5_path}, its card and its compiled twin.")


def evaluate(
    data: Path, split: str, model: Path, engine: str, foreign: list[Path], report: Path | None
) -> None:
    if foreign and report is None:
        raise TrainingError("Foreign images are measured in the report: say where, with --report DIR.")
    artifact = load_artifact(model)
    engines = ("tensorflow", "litert") if engine == "both" else (engine,)
    importlib.import_module("model.evaluate").print_report(artifact, data, split, engines)
    if report is not None:
        page = import_training("model.study").report(artifact, data, split, foreign, report)
        print(f"Wrote {page} and its figures.")


def crossvalidate(
    data: Path, networks: list[str], foreign: list[Path], work: Path, output: Path | None
) -> None:
    text = import_training("model.study").crossvalidation(networks, data, foreign, work)
    print(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


def compile_twin(model: Path) -> None:
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


def add_commands(add: Add) -> None:
    command = add("train", train, "train a network on a folder of class folders")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--output", type=Path, default=Path("trained.h5"), metavar="H5")
    command.add_argument(
        "--network", default="texture", choices=NETWORKS, help="(default %(default)s; recipe: as published)"
    )
    command.add_argument("--seeds", type=_seed, nargs="+", default=[0], metavar="SEED", help="(default 0)")
    command.add_argument("--epochs", type=_epochs, help="(default: the network's own)")
    command.add_argument("--size", type=_size, metavar="HxW", help="pixels the network sees (200x200)")

    command.add_argument(
        "--accuracy",
        type=_share,
        metavar="SHARE",
        help="accuracy by crossvalidate, which confidence is scaled to (default: told from held-out images)",
    )

    command = add("evaluate", evaluate, "measure an artifact on a labelled folder, and write a report")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--split", default="test", choices=("train", "valid", "test"))
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")
    command.add_argument("--engine", default="litert", choices=(*ENGINES, "both"))
    command.add_argument("--foreign", type=Path, nargs="+", default=[], metavar="DIR", help=_FOREIGN)
    command.add_argument("--report", type=Path, metavar="DIR", help="write a page and its figures there")

    command = add("crossvalidate", crossvalidate, "measure networks by grouped 5-fold cross-validation")
    command.add_argument("--data", type=Path, required=True, metavar="DIR")
    command.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    command.add_argument("--foreign", type=Path, nargs="+", default=[], metavar="DIR", help=_FOREIGN)
    command.add_argument("--work", type=Path, default=user_cache_dir() / "crossvalidation", metavar="DIR")
    command.add_argument("--output", type=Path, metavar="MD", help="write the tables there too")

    command = add("compile", compile_twin, "compile an .h5 to its LiteRT twin")
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")

    command = add("describe", describe, "write the card of a foreign .h5")
    command.add_argument("h5", type=Path)
    command.add_argument("--class-names", required=True, help="in the order of the outputs, by commas")
    command.add_argument(
        "--scale",
        type=_scale,
        required=True,
        help="what pixels 0..255 are multiplied by before the network: 1/255, or 1 if it scales them itself",
    )


_FOREIGN = "folders of images that are none of the classes, to measure abstention"


def _refuse_idle_flags(
    network: str, seeds: list[int], size: tuple[int, int] | None, accuracy: float | None
) -> None:
    """Raise TrainingError for what the network would ignore."""
    if network == "recipe" and (size is not None or accuracy is not None):
        raise TrainingError("The recipe is trained as published: without --size and --accuracy.")
    if network == "texture" and len(seeds) > 1:
        raise TrainingError(f"This network is trained from one seed. Received: {len(seeds)}")


def import_training(module: str) -> ModuleType:
    """Import what needs TensorFlow, which the serving environment does not have."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"This command needs {error.name}, which serving does without. In a clone: make dev, "
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
    """A factor, as a decimal or a fraction."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f"must be a number. Received: {text}") from None


def _epochs(text: str) -> int:
    return parse_integer(text, 1, 100_000)


def _seed(text: str) -> int:
    return parse_integer(text, 0, 2**32 - 1)
