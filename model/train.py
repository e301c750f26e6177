"""Train on any labelled folder: check → split → choose → measure → save → compile → report."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Floats, Ints, Mask, Pixels, Strings
from model.artifact import Artifact, save_samples
from model.compile import compile_artifact
from model.evaluation.hard_images import out_of_distribution_sets
from model.evaluation.report import report_on
from model.image import ImageSpec
from model.networks.keras_model import count_macs
from model.tensorflow_engine import TensorFlowClassifier
from model.training import recipe
from model.training.candidates import Chosen, choose
from model.training.fit import Knobs, with_image
from model.training.folder import (
    SPLITS,
    Folder,
    LabelledImages,
    choose_channels,
    describe_folder,
    load_folder,
    load_part,
    split,
)
from model.training.metrics import Metrics, measure
from model.training.save import refuse_output, save
from model.training.verdict import Unseen, verdict


def train(  # noqa: PLR0913 - each is said by its name
    data_dir: Path, h5_path: Path, knobs: Knobs, seed: int = 0, *, force: bool = False, command: str = ""
) -> Artifact:
    """Train one network, and write its artifact and, next to it, a report on the test images.

    After an interruption, the same call resumes. Raises DatasetError if the folder cannot be used,
    TrainingError if the artifact cannot be written or, without `force`, exists. The report names `command`.
    """
    refuse_output(h5_path, data_dir, force=force)
    knobs = with_image(knobs, channels=choose_channels(data_dir))
    folder = load_folder(data_dir, knobs.image)
    print(describe_folder(folder), file=sys.stderr)
    splits = split(folder)
    checkpoint = h5_path.with_suffix(".checkpoint.npz")
    started = time.monotonic()
    try:
        chosen = choose(folder, splits, knobs, seed, checkpoint)
    except KeyboardInterrupt:
        if checkpoint.is_file():
            print("Run the same command again to resume after the last complete epoch.", file=sys.stderr)
        raise
    seconds = round(time.monotonic() - started, 1)
    card_parts = _card_parts(folder, splits, knobs, chosen)
    measured = _measure(folder, splits, chosen)
    card_parts["metrics"] = {
        name: {key: round(value, 6) for key, value in asdict(metrics).items()}
        for name, metrics in measured.items()
    }
    card_parts["metrics"]["verdict"] = _verdict(folder, splits, knobs.image, chosen)
    card_parts["training"] |= {"seed": seed, "train_seconds": seconds}
    artifact = save(chosen.network, h5_path, card_parts)
    compile_artifact(artifact)
    tested = folder.data.take(splits == "test")
    save_samples(h5_path, tested.images, tested.labels, folder.class_names)
    folds = None
    if chosen.folds is not None and chosen.fold_probabilities is not None:
        folds = folder.data, chosen.fold_probabilities, chosen.folds.abstained
    write_report(artifact, data_dir, tested, folds, command)
    checkpoint.unlink(missing_ok=True)
    for name, metrics in measured.items():
        print(f"{name}: {metrics.correct} of {metrics.images} right, loss {metrics.loss:.3f}")
    return artifact


def train_recipe(  # noqa: PLR0913 - each is said by its name
    data_dir: Path, h5_path: Path, knobs: recipe.Knobs, seeds: Sequence[int], *, force: bool, command: str
) -> Artifact:
    """As `train`, for the published recipe, which keeps the best of the seeds and cannot resume."""
    artifact = recipe.train(knobs, data_dir, h5_path, seeds, force=force)
    tested = load_part(data_dir, "test", artifact.card.class_names, artifact.card.image)
    write_report(artifact, data_dir, tested, None, command)
    return artifact


def _measure(folder: Folder, splits: Strings, chosen: Chosen) -> dict[str, Metrics]:
    """Metrics on the images that the network was not trained on, by split, and by cross-validation."""
    classifier = TensorFlowClassifier(chosen.network)
    parts = {name: splits == name for name in SPLITS[1:]}
    held_out = {
        name: folder.data.take(part) for name, part in parts.items() if not chosen.trained_on[part].any()
    }
    measured = {
        name: measure(classifier.predict(data.images), data.labels) for name, data in held_out.items()
    }
    if chosen.fold_probabilities is not None:
        measured["folds"] = measure(chosen.fold_probabilities, folder.data.labels)
    return measured


def _verdict(folder: Folder, splits: Strings, spec: ImageSpec, chosen: Chosen) -> str:
    classifier = TensorFlowClassifier(chosen.network)

    def answer(images: Pixels) -> tuple[Ints, Mask]:
        answers = classifier.answer(images)
        assert answers.embeddings is not None  # noqa: S101 - its networks end in global average pooling
        return answers.probabilities.argmax(axis=1), chosen.novelty.abstains(answers.embeddings)

    unseen = chosen.folds
    if unseen is None:
        tested = folder.data.take(splits == "test")
        unseen = Unseen(tested.labels, *answer(tested.images))
    drawn = np.concatenate(list(out_of_distribution_sets(spec, ()).values()))
    return verdict(unseen, answer(drawn)[1], folder.class_names, np.bincount(folder.data.labels))


def write_report(
    artifact: Artifact,
    data_dir: Path,
    tested: LabelledImages,
    folds: tuple[LabelledImages, Floats, Mask | None] | None,
    command: str,
) -> None:
    said, report_dir = artifact.card.metrics["verdict"], report_dir_of(artifact.h5_path)
    page = report_on(
        artifact, tested, data_dir, "test", report_dir, command=command, of_training=said, folds=folds
    )
    print(f"Wrote {page} and its figures.")


def report_dir_of(h5_path: Path) -> Path:
    """Folder of training's report, which contains images of the dataset."""
    return h5_path.with_name(f"{h5_path.stem}-report")


def _card_parts(folder: Folder, splits: Strings, knobs: Knobs, chosen: Chosen) -> dict[str, Any]:
    curves = {}
    if chosen.fitted is not None:
        for name, values in (("loss", chosen.fitted.loss), ("accuracy", chosen.fitted.accuracy)):
            curves[f"{name}_by_epoch"] = [round(value, 4) for value in values]
    return {
        "class_names": folder.class_names,
        "image": knobs.image,
        "novelty": chosen.novelty,
        "training": {
            "network": chosen.name,
            "parameters": chosen.network.count_params(),
            "macs": count_macs(chosen.network),
            "images": {name: int((splits == name).sum()) for name in SPLITS},
            "baseline": chosen.baseline,
            "knobs": asdict(knobs) | {"image": knobs.image.model_dump()},
            "temperature": round(chosen.temperature, 4),
            "expected_accuracy": round(chosen.accuracy, 4),
        }
        | curves,
    }
