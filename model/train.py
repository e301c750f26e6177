"""Train on any labelled folder: check → split → fit → calibrate → save → compile → report."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.compile import compile_artifact
from model.evaluation.report import Labelled, report_on
from model.networks.keras_model import count_macs
from model.tensorflow_engine import TensorFlowClassifier
from model.training.fit import Knobs, Trained, fit_calibrated, with_channels
from model.training.folder import (
    SPLITS,
    Folder,
    choose_channels,
    describe_folder,
    load_folder,
    split,
)
from model.training.metrics import measure
from model.training.save import refuse_output, save, save_samples


def train(data_dir: Path, h5_path: Path, knobs: Knobs, seed: int = 0) -> Artifact:
    """Train one network, and write its artifact and, next to it, a report on the test images.

    After an interruption, the same call resumes. Raises DatasetError if the folder cannot be used,
    TrainingError if the artifact cannot be written.
    """
    refuse_output(h5_path, data_dir)
    knobs = with_channels(knobs, choose_channels(data_dir))
    folder = load_folder(data_dir, knobs.image)
    print(describe_folder(folder), file=sys.stderr)
    splits = split(folder)
    checkpoint = h5_path.with_suffix(".checkpoint.npz")
    started = time.monotonic()
    try:
        trained = fit_calibrated(folder, splits, knobs, seed, checkpoint)
    except KeyboardInterrupt:
        if checkpoint.is_file():
            print("Run the same command again to resume after the last complete epoch.", file=sys.stderr)
        raise
    seconds = round(time.monotonic() - started, 1)
    classifier = TensorFlowClassifier(trained.network)
    held_out = {name: folder.data.take(splits == name) for name in SPLITS[1:]}
    measured = {
        name: measure(classifier.predict(data.images), data.labels) for name, data in held_out.items()
    }
    card_parts = _card_parts(folder, splits, knobs, trained)
    card_parts["metrics"] = {name: _round(asdict(metrics)) for name, metrics in measured.items()}
    card_parts["training"] |= {"seed": seed, "train_seconds": seconds}
    artifact = save(trained.network, h5_path, card_parts)
    compile_artifact(artifact)
    save_samples(h5_path, held_out["test"].images, held_out["test"].labels, folder.class_names)
    tested = Labelled(held_out["test"], data_dir, "test")
    page = report_on(artifact, tested, (), report_dir_of(h5_path))
    checkpoint.unlink(missing_ok=True)
    print(f"Wrote {page} and its figures.")
    for name, metrics in measured.items():
        print(f"{name}: {metrics.correct} of {metrics.images} right, loss {metrics.loss:.3f}")
    return artifact


def report_dir_of(h5_path: Path) -> Path:
    """Folder of training's report, which contains images of the dataset."""
    return h5_path.with_name(f"{h5_path.stem}-report")


def _card_parts(folder: Folder, splits: NDArray[np.str_], knobs: Knobs, trained: Trained) -> dict[str, Any]:
    return {
        "class_names": folder.class_names,
        "image": knobs.image,
        "novelty": trained.novelty,
        "training": {
            "network": "texture",
            "parameters": trained.network.count_params(),
            "macs": count_macs(trained.network),
            "images": {name: int((splits == name).sum()) for name in SPLITS},
            "knobs": asdict(knobs) | {"image": knobs.image.model_dump()},
            "temperature": round(trained.temperature, 4),
            "expected_accuracy": round(trained.accuracy, 4),
            "loss_by_epoch": [round(loss, 4) for loss in trained.fitted.loss],
            "accuracy_by_epoch": [round(accuracy, 4) for accuracy in trained.fitted.accuracy],
        },
    }


def _round(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}
