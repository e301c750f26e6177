"""Commands that make and measure models, from ext-classify train to ext-classify verify."""

import argparse
import functools
import json
import logging
import re
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from app.cli.command_line import Add, add_json, integer, needs_extra
from app.cli.terminal import PlainScreen
from app.errors import UsageError
from model.artifact import Artifact, WrittenArtifact, card_path, load_artifact
from model.defaults import DEFAULT_MODEL_PATH, Engine, Network, user_cache_dir
from model.engines import open_classifier
from model.image import Alpha, Fit, Resample
from model.model_file import refuse_unusable
from model.native_log import without_native_log
from model.preprocessing import PRESETS, Preprocessing, parse_number, standardised

ENGINES = get_args(Engine)
NETWORKS = get_args(Network)


@without_native_log()
def train(
    network: str,
    data: Path,
    output: Path,
    seeds: list[int],
    epochs: int | None,
    size: tuple[int, int] | None,
    accuracy: float | None,
    force: bool,
    as_json: bool,
    command: str,
) -> None:
    _refuse_unused_flags(network, seeds, size, accuracy)
    command = command if force else f"{command} --force"  # made again, it replaces the network
    with needs_extra("train"):
        from model import train as training  # noqa: PLC0415 - optional
        from model.training import fit, recipe  # noqa: PLC0415
    with _progress_on_stderr(as_json):
        if network == "recipe":
            knobs = recipe.Knobs() if epochs is None else recipe.Knobs(epochs=epochs)
            artifact = training.train_recipe(data, output, knobs, seeds, force=force, command=command)
        else:
            options = fit.Knobs(accuracy=accuracy, epochs=epochs)
            if size is not None:
                options = fit.with_image(options, height=size[0], width=size[1])
            artifact = training.train(data, output, options, seeds[0], force=force, command=command)
    found = artifact.card.metrics["verdict"]
    if as_json:
        print(json.dumps({**_facts_of(artifact), "verdict": found}))
        return
    print(f"Saved {artifact.h5_path}, its card and its compiled model.")
    print(found)


@without_native_log()
def evaluate(
    data: Path,
    split: str,
    model: Path,
    engine: Engine | Literal["both"],
    out_of_distribution: list[Path],
    report: Path | None,
    as_json: bool,
    command: str,
) -> None:
    if out_of_distribution and report is None:
        raise UsageError("--out-of-distribution needs --report DIR, because the report holds its results.")
    artifact = load_artifact(model)
    engines: tuple[Engine, ...] = ("tensorflow", "litert") if engine == "both" else (engine,)
    from model.evaluation import evaluate as evaluation_of  # noqa: PLC0415 - slow to import

    identity = {"name": artifact.name, "version": artifact.version}
    if not as_json:
        print(f"{artifact.name} {artifact.version} on the {split} images of {data}")
    for evaluation in evaluation_of.evaluate(artifact, data, split, engines):
        print(json.dumps({"model": identity, **asdict(evaluation)}) if as_json else evaluation)
    if report is not None:
        with _progress_on_stderr(as_json):
            with needs_extra("train"):
                from model.evaluation.report import report_on  # noqa: PLC0415 - optional
                from model.training.folder import load_part  # noqa: PLC0415
            images = load_part(data, split, artifact.card.class_names, artifact.card.image)
            page = report_on(
                artifact, images, data, split, report,
                out_of_distribution_dirs=out_of_distribution, command=command,
            )  # fmt: skip
            print(f"Wrote {page} and its figures.")


@without_native_log()
def crossvalidate(
    data: Path,
    networks: list[Network],
    out_of_distribution: list[Path],
    work: Path,
    output: Path | None,
    report: Path | None,
    command: str,
) -> None:
    with needs_extra("train"):
        from model.evaluation.crossvalidate import crossvalidation  # noqa: PLC0415 - optional
        from model.evaluation.report import report_folds  # noqa: PLC0415
    text, studied, folder = crossvalidation(networks, data, out_of_distribution, work)
    print(text)
    if report is not None:
        for result in studied:
            report_dir = report if len(studied) == 1 else report / result.network
            print(f"Wrote {report_folds(result, folder, data, report_dir, command)} and its figures.")
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


@without_native_log()
def compile_model(
    model: Path, int8: bool, images: Path | None, least_agreement: float | None, as_json: bool
) -> None:
    if int8 != (images is not None) or (least_agreement is not None and not int8):
        raise UsageError(
            "--int8 needs --images DIR, which has the images to quantise with and to measure on."
        )
    artifact = load_artifact(model)  # an unusable file fails in milliseconds, before TensorFlow starts
    if images is not None:
        _quantise(artifact, images, least_agreement, as_json=as_json)
        return
    with needs_extra("train"):
        from model.compile import compile_artifact  # noqa: PLC0415 - optional
    with _progress_on_stderr(as_json):
        paths = compile_artifact(artifact)
    said = f"Compiled {paths.tflite}, with its stamp {paths.stamp}"
    print(json.dumps(_facts_of(artifact)) if as_json else said)


def _quantise(artifact: Artifact, images: Path, least_agreement: float | None, *, as_json: bool) -> None:
    with needs_extra("train"):
        from model.quantise import LEAST_AGREEMENT, quantise  # noqa: PLC0415 - optional
    with _progress_on_stderr(as_json):
        quantised = quantise(
            artifact, images, LEAST_AGREEMENT if least_agreement is None else least_agreement
        )
    measured = quantised.artifact.card.metrics["int8"]
    closing = f"Wrote {card_path(artifact.h5_path)} and the compiled model in int8."
    _print_written(quantised, closing, as_json=as_json, int8=measured)


def _print_written(written: WrittenArtifact, closing: str, *, as_json: bool, **more: Any) -> None:
    """Print `more` only in JSON, but for the table of a contact sheet."""
    if as_json:
        facts = {"findings": written.findings, "warnings": written.warnings, **more}
        print(json.dumps({**_facts_of(written.artifact), **facts}))
        return
    print("\n".join(written.findings))
    if (table := more.get("contact_sheet")) is not None:
        PlainScreen().table(table[0], table[1:])
    for warning in written.warnings:
        print(f"Warning: {warning}")
    print(closing)


@without_native_log()
def import_model(
    file: Path,
    class_names: str | None,
    fit: Fit | None,
    resample: Resample | None,
    alpha: Alpha,
    size: tuple[int, int] | None,
    multi_label: bool,
    try_dir: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
    **preprocessing: Any,
) -> None:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of each function that runs once
    stated = _preprocessing(**preprocessing)
    names = () if class_names is None else parse_class_names(class_names)
    refuse_unusable(file, names or None)  # in milliseconds, before TensorFlow starts
    with needs_extra("train"):
        from model.importing import Request, import_network  # noqa: PLC0415 - optional
    request = Request(names, stated, fit, resample, alpha, size, multi_label, try_dir, output, force)
    with _progress_on_stderr(as_json):
        imported = import_network(file, request)
    artifact = imported.artifact
    served = shlex.quote(str(artifact.h5_path))
    following = [f"evaluate --model {served} --data DIR", f"serve --model {served}"]
    if artifact.card.is_unchecked:
        following.insert(0, f"verify {served} --try DIR")
    closing = "".join(f"\nNext: ext-classify {command}" for command in following)
    wrote = f"Wrote {card_path(artifact.h5_path)} and the compiled model."
    _print_written(imported, wrote + closing, as_json=as_json, contact_sheet=imported.table or None)


@without_native_log()
def calibrate(model: Path, data: Path, out_of_distribution: list[Path], as_json: bool) -> None:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of each function that runs once
    artifact = load_artifact(model)  # an unusable file fails in milliseconds, before TensorFlow starts
    with needs_extra("train"):
        from model.calibrate import calibrate as calibrate_artifact  # noqa: PLC0415 - optional
    with _progress_on_stderr(as_json):
        calibrated = calibrate_artifact(artifact, data, out_of_distribution)
    closing = (
        f"Wrote {card_path(model)} and the compiled model.\n"
        f"Next: ext-classify serve --model {shlex.quote(str(model))}"
    )
    measured = calibrated.artifact.card.metrics["calibration"]
    _print_written(calibrated, closing, as_json=as_json, calibration=measured)


def parse_class_names(text: str) -> tuple[str, ...]:
    """Class names in the order of the outputs: separated by commas, a JSON list, or @FILE with lines.

    A file of lines may number them, as Teachable Machine's labels.txt does: "0 ROCK". A JSON object may map
    names to indices or indices to names.
    """
    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8-sig")
        if not text.lstrip().startswith(("[", "{")):
            return _without_numbers([line.strip() for line in text.splitlines() if line.strip()])
    if text.lstrip().startswith(("[", "{")):
        try:
            return _names_of_json(json.loads(text))
        except (ValueError, TypeError):
            raise UsageError(f"Class names must be a JSON list of names. Received: {text[:80]}") from None
    return tuple(name.strip() for name in text.split(","))


def _names_of_json(parsed: Any) -> tuple[str, ...]:
    if isinstance(parsed, list):
        return tuple(map(str, parsed))
    if all(isinstance(index, int) for index in parsed.values()):  # Keras's class_indices
        parsed = {index: name for name, index in parsed.items()}
    return tuple(str(parsed[index]) for index in sorted(parsed, key=int))


def _without_numbers(lines: list[str]) -> tuple[str, ...]:
    """Lines without their numbers if every line begins with its own."""
    if len(lines) == 1 and "," in lines[0]:
        return tuple(name.strip() for name in lines[0].split(","))
    numbered = [re.fullmatch(rf"{number}[\s:,]\s*(.+)", line) for number, line in enumerate(lines)]
    if all(numbered):
        return tuple(match[1].strip() for match in numbered if match)
    return tuple(lines)


def _preprocessing(
    preprocess: str | None, order: Literal["rgb", "bgr"], **numbers: tuple[float, ...] | None
) -> Any:
    """A preset's name, or an explicit preprocessing, or None. Raises UsageError for flags that conflict."""
    scale, offset, mean, std = (numbers[name] for name in ("scale", "offset", "mean", "std"))
    if not any(numbers.values()) and order == "rgb":
        return preprocess
    if preprocess is not None:
        raise UsageError("--preprocess needs no --scale, --offset, --mean, --std and --order.")
    if mean is None and std is None:
        return Preprocessing(scale=scale or (1.0,), offset=offset or (0.0,), order=order)
    if offset is not None:
        raise UsageError("--offset cannot be combined with --mean and --std.")
    return standardised(mean or (0.0,), std or (1.0,), scale or (1.0,), order)


@without_native_log()
def verify(model: Path, engine: Engine, try_dir: Path | None, as_json: bool) -> None:
    """Raises ArtifactError if the service would not start with the model."""
    artifact = load_artifact(model)
    open_classifier(artifact, engine, 1, user_cache_dir())
    checked, more = None, {}
    if try_dir is not None:
        with needs_extra("train"):
            from model.importing import check_preprocessing  # noqa: PLC0415 - optional
        logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of each function that runs once
        checked = check_preprocessing(artifact, try_dir)
        more = {"warnings": checked.warnings, "contact_sheet": checked.table}
    if as_json:
        print(json.dumps({**_facts_of(artifact), "engine": engine, **more}))
        return
    size = "x".join(map(str, artifact.card.image.shape))
    names = ", ".join(artifact.card.class_names)
    print(f"{artifact.name} {artifact.version}: {names}; {size}, engine {engine}")
    if checked is not None:
        header, *rows = checked.table
        PlainScreen().table(header, rows)
        print("\n".join(f"Warning: {warning}" for warning in checked.warnings) or checked.findings[0])


def _facts_of(artifact: Artifact) -> dict[str, Any]:
    about = {"h5": str(artifact.h5_path), "name": artifact.name, "version": artifact.version}
    return {**about, "class_names": artifact.card.class_names, "shape": artifact.card.image.shape}


def _progress_on_stderr(as_json: bool) -> AbstractContextManager[object]:
    """Redirect progress output to stderr, so that stdout holds only JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def add_commands(add: Add) -> None:
    _add_train(add)
    _add_measurements(add)
    _add_compile(add)
    _add_import(add)
    _add_calibrate(add)
    _add_verify(add)


def _add_train(add: Add) -> None:
    command = add("train", train, "train a model on a folder with one subfolder per class")
    flag = command.add_argument
    flag("--data", type=Path, required=True, metavar="DIR")
    flag("--output", type=Path, default=Path("trained.h5"), metavar="H5")
    network = "(default %(default)s; recipe: the published recipe)"
    flag("--network", default="texture", choices=NETWORKS, help=network)
    flag("--seeds", type=integer(0, 2**32 - 1), nargs="+", default=[0], metavar="SEED", help="(default 0)")
    flag("--epochs", type=integer(1, 100_000), help="(default: as the number of images needs)")
    sides, size = functools.partial(_parse_sides, least=32), "input size in pixels (default 200x200)"
    flag("--size", type=sides, metavar="HxW", help=size)
    accuracy = (
        "accuracy from crossvalidate, to calibrate confidence to (default: measured on held-out images)"
    )
    flag("--accuracy", type=_accuracy, metavar="SHARE", help=accuracy)
    flag("--force", action="store_true", help="replace an existing network")
    add_json(command)
    command.set_defaults(command="")


def _add_measurements(add: Add) -> None:
    command = add("evaluate", evaluate, "measure a model on a labelled folder, and optionally write a report")
    flag = command.add_argument
    flag("--data", type=Path, required=True, metavar="DIR")
    split = "split to measure, the folder's own or the one that train makes of it (default %(default)s)"
    flag("--split", default="test", choices=("train", "valid", "test"), help=split)
    _add_model(command)
    flag("--engine", default="litert", choices=(*ENGINES, "both"))
    _add_out_of_distribution(command)
    report = "write an HTML report and its figures to this folder"
    flag("--report", type=Path, metavar="DIR", help=report)
    add_json(command)
    command.set_defaults(command="")

    command = add("crossvalidate", crossvalidate, "measure networks with grouped 5-fold cross-validation")
    flag = command.add_argument
    flag("--data", type=Path, required=True, metavar="DIR")
    flag("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    _add_out_of_distribution(command)
    flag("--work", type=Path, default=user_cache_dir() / "crossvalidation", metavar="DIR")
    flag("--output", type=Path, metavar="MD", help="also write the tables to this file")
    report = "write an HTML report and its figures to this folder, or a subfolder for each network"
    flag("--report", type=Path, metavar="DIR", help=report)
    command.set_defaults(command="")


def _add_compile(add: Add) -> None:
    command = add("compile", compile_model, "compile an .h5 file for the LiteRT engine")
    flag = command.add_argument
    _add_model(command)
    flag("--int8", action="store_true", help="quantise weights and activations")
    images = "some hundred images to quantise with and to measure on, best in a folder for each class"
    flag("--images", type=Path, metavar="DIR", help=images)
    least = "of labels and of abstention with float32, below which int8 is refused (default 0.995)"
    flag("--least-agreement", type=_share, metavar="SHARE", help=least)
    add_json(command)


def _add_import(add: Add) -> None:
    command = add("import", import_model, "make a model that can be served of a network trained elsewhere")
    flag = command.add_argument
    flag("file", type=Path, metavar="FILE", help=".h5, .keras, .tflite or a SavedModel folder")
    names = "in the order of the outputs: a,b,c or a JSON list or @FILE (default: the folders of --try)"
    flag("--class-names", metavar="NAMES", help=names)
    preprocess = (
        "raw: pixels 0..255; unit: 0..1; symmetric: -1..1; caffe, torch: modes of Keras's preprocess_input "
        "(default: what the file or the images show)"
    )
    flag("--preprocess", choices=tuple(PRESETS), help=preprocess)
    for name, what in (
        ("--scale", "factor for pixels 0..255, such as 1/255 or 0.00392"),
        ("--offset", "added after the factor"),
        ("--mean", "subtracted after the factor, one value or one for each channel"),
        ("--std", "divisor after the mean, one value or one for each channel"),
    ):
        flag(name, type=_numbers, metavar="N[,N,N]", help=what)
    flag("--order", choices=("rgb", "bgr"), default="rgb", help="(default: rgb)")
    flag("--fit", choices=get_args(Fit), help="for another aspect ratio (default: stretch)")
    flag("--resample", choices=get_args(Resample), help="(default: bilinear)")
    alpha = "transparent pixels: laid on white (default), or drop transparency as most authors' code does"
    flag("--alpha", choices=get_args(Alpha), default="white", help=alpha)
    sides, size = functools.partial(_parse_sides, least=1), "for a network of any size or a flat input"
    flag("--size", type=sides, metavar="HxW", help=size)
    multi_label = "serve independent probabilities; the label is the strongest"
    flag("--multi-label", action="store_true", help=multi_label)
    _add_try(command, "images to check the preprocessing with, best in a folder for each class")
    flag("--output", type=Path, metavar="FILE", help="copy the network here (default: leave it)")
    flag("--force", action="store_true", help="replace an existing card")
    add_json(command)


def _add_verify(add: Add) -> None:
    summary = "check a model's hash, card, compiled model and self-test on its golden image"
    command = add("verify", verify, summary)
    flag = command.add_argument
    shipped = "(default: the shipped model)"
    flag("model", type=Path, nargs="?", default=DEFAULT_MODEL_PATH, metavar="H5", help=shipped)
    flag("--engine", choices=ENGINES, default="litert", help="(default: litert)")
    _add_try(command, "images to check the preprocessing with; the card keeps the result")
    add_json(command)


def _add_calibrate(add: Add) -> None:
    command = add("calibrate", calibrate, "calibrate an imported model with labelled images, and measure it")
    _add_model(command)
    images = "images that the network has not been trained on, in a folder for each class"
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=images)
    _add_out_of_distribution(command)
    add_json(command)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, metavar="H5")


def _add_try(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--try", type=Path, dest="try_dir", metavar="DIR", help=what)


def _add_out_of_distribution(command: argparse.ArgumentParser) -> None:
    folders = "folders of images of no class, to measure abstention"
    name = "--out-of-distribution"
    command.add_argument(name, type=Path, nargs="+", default=[], metavar="DIR", help=folders)


def _refuse_unused_flags(
    network: str, seeds: list[int], size: tuple[int, int] | None, accuracy: float | None
) -> None:
    """Raise UsageError for flags that the network would ignore."""
    if network == "recipe" and (size is not None or accuracy is not None):
        raise UsageError("--network recipe does not allow --size and --accuracy.")
    if network == "texture" and len(seeds) > 1:
        raise UsageError(f"--network texture takes one seed in --seeds. Received: {len(seeds)}")


def _parse_sides(text: str, least: int) -> tuple[int, int]:
    matched = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    sides = [] if matched is None else list(map(int, matched.groups()))
    if not sides or not all(least <= side <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH, {least} to 4096 each. Received: {text}")
    return sides[0], sides[1]


def _accuracy(text: str) -> float:
    if not 0 < (share := _share(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1. Received: {text}")
    return share


def _share(text: str) -> float:
    """Parse a share such as 0.99 or 99%."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1. Received: {text}")
    return share


def _numbers(text: str) -> tuple[float, ...]:
    """Parse one number, such as 0.5 or 1/255, or three."""
    try:
        numbers = tuple(map(parse_number, text.strip("[]()").split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"must be one number or three. Received: {text}")
    return numbers
