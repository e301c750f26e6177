"""Train on any labelled folder: check → split → choose → measure → save → compile → report."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from model.preprocessing import softmax
from model.tensorflow_engine import TensorFlowClassifier
from model.training import recipe
from model.training.calibration import Linear, expected_accuracy, fit_temperature
from model.training.fit import (
    VIEWS,
    FrozenStatistics,
    Knobs,
    Trained,
    fit_calibrated,
    refuse_output,
    save,
    with_image,
)
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
from model.training.metrics import Metrics, Unseen, measure, verdict
from model.training.splits import FOLDS

FEW_TEST_IMAGES = 30
"""With fewer test images, figures come from cross-validation on all images."""


@dataclass(frozen=True)
class Chosen(Trained):
    """A network to save, and what is known of it."""

    name: str
    trained_on: Mask
    """(n,)."""
    baseline: str
    """On how many images the frozen network is right, in words."""
    folds: Unseen | None = None
    """Answers for all images by cross-validation, if the test part has few."""
    fold_probabilities: Floats | None = None


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


def choose(folder: Folder, splits: Strings, knobs: Knobs, seed: int, checkpoint: Path) -> Chosen:
    """Fit the frozen network, train the default one if it may be better, and return the better one."""
    is_small = int((splits == "test").sum()) < FEW_TEST_IMAGES
    frozen = FrozenStatistics(folder, knobs.image, VIEWS if is_small else 0, seed)
    find = _by_folds if is_small else _by_split
    baseline = find(frozen, folder.data.labels, splits, knobs.accuracy)
    print(baseline.baseline, file=sys.stderr)
    if is_small and knobs.epochs is None:
        return baseline
    trained = fit_calibrated(folder, splits, knobs, seed, checkpoint)
    right, least = _compare(trained, frozen, folder, splits == "train")
    held_out = int((splits != "train").sum())
    compared = (
        f"Of {held_out} images held out, the trained network is right on {right}, the frozen one on {least}."
    )
    print(compared, file=sys.stderr)
    words = f"{baseline.baseline} {compared}"
    # Few images do not tell equal networks apart.
    if right < least or (is_small and right == least):
        return replace(baseline, baseline=words)
    return Chosen(**vars(trained), name="texture", trained_on=splits == "train", baseline=words)


def _by_folds(frozen: FrozenStatistics, labels: Ints, splits: Strings, accuracy: float | None) -> Chosen:
    """The frozen network, measured on all images and then fitted to all but the test images."""
    answers = {views: frozen.cross_validate(views) for views in (frozen.views, 0)}
    right = {views: _right(scores, labels) for views, (scores, _) in answers.items()}
    views = max(right, key=right.__getitem__)
    words = (
        f"Ridge regression on frozen statistics is right on {right[0]} of {len(labels)} images by {FOLDS} "
        f"folds, and with {frozen.views} turned copies of each image on {right[frozen.views]}."
    )
    scores, abstained = answers[views]
    used = np.asarray(splits != "test")
    chosen = _finish(frozen, frozen.fit(used, views), used, words, (scores, labels, accuracy))
    return replace(
        chosen,
        folds=Unseen(labels, scores.argmax(axis=1), abstained, f"by {FOLDS} folds"),
        fold_probabilities=softmax(scores / chosen.temperature),
    )


def _by_split(frozen: FrozenStatistics, labels: Ints, splits: Strings, accuracy: float | None) -> Chosen:
    train, valid, test = (np.asarray(splits == name) for name in SPLITS)
    layer = frozen.fit(train, 0)
    scores = frozen.scores(layer)
    words = (
        f"Ridge regression on frozen statistics is right on {_right(scores[test], labels[test])} of "
        f"{int(test.sum())} test images."
    )
    return _finish(frozen, layer, train, words, (scores[valid], labels[valid], accuracy))


def _finish(
    frozen: FrozenStatistics,
    layer: Linear,
    used: Mask,
    words: str,
    calibration: tuple[Floats, Ints, float | None],
) -> Chosen:
    """The frozen network with a layer fitted to the `used` images.

    `calibration` has scores for unseen images, their labels and, if it is known, the expected accuracy.
    """
    scores, labels, known = calibration
    accuracy = known or expected_accuracy(scores, labels)
    temperature = fit_temperature(scores, accuracy)
    network, novelty = frozen.network(layer, temperature), frozen.fit_novelty(used)
    return Chosen(network, temperature, accuracy, novelty, None, "frozen", used, words)


def _compare(trained: Trained, frozen: FrozenStatistics, folder: Folder, train: Mask) -> tuple[int, int]:
    """On how many held-out images the trained network and a frozen one, fitted to `train`, are right."""
    labels = folder.data.labels[~train]
    probabilities = TensorFlowClassifier(trained.network).predict(folder.data.images[~train])
    scores = frozen.scores(frozen.fit(train, frozen.views))
    return _right(probabilities, labels), _right(scores[~train], labels)


def _right(scores: Floats, labels: Ints) -> int:
    return int((scores.argmax(axis=1) == labels).sum())
