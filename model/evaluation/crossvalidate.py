"""Grouped cross-validation of networks, including corrupted and out-of-distribution images.

Each image is predicted once, by a network that was not trained on its group. The predictions of each fold
are saved, so an interrupted run resumes. The results are Markdown tables, with a column per network.
"""

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats, Ints, Mask, Pixels, Strings
from model.defaults import Network
from model.errors import DatasetError
from model.evaluation.hard_images import corruptions, out_of_distribution_sets
from model.networks.keras_model import count_macs
from model.novelty import Novelty
from model.preprocessing import softmax
from model.tensorflow_engine import TensorFlowClassifier
from model.training.calibration import expected_accuracy, fit_temperature
from model.training.fit import Knobs, fit_calibrated, with_image
from model.training.folder import (
    SPLITS,
    Folder,
    LabelledImages,
    choose_channels,
    describe_folder,
    load_folder,
)
from model.training.metrics import (
    Interval,
    area_under_roc,
    confusion_matrix,
    group_interval,
    reliability,
    wilson_interval,
)
from model.training.recipe import Knobs as RecipeKnobs
from model.training.recipe import train_one_seed
from model.training.splits import FOLDS, assign_folds, hold_out

VALID_SHARE = 0.04
"""Share of each class, in whole groups, for calibration or early stopping; as in the dataset's own split."""
SURE = 0.9
"""In the tables, confidence from which a prediction needs no manual review."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one network for all images, each by the fold that was not trained on its group."""

    network: Network
    parameters: int
    macs: int
    labels: Ints
    """(n,)."""
    groups: Ints
    folds: Ints
    clean: Floats
    """Probabilities (n, k)."""
    corrupted: dict[tuple[str, str], Floats]
    """Probabilities (n, k) by kind and severity."""
    novelty: Floats | None
    """Novelty scores (n,), divided by the threshold of the image's fold."""
    out_of_distribution: dict[str, Floats]
    """Novelty scores (folds * m,) by set of out-of-distribution images, divided by the fold's threshold."""

    @property
    def right(self) -> Mask:
        """(n,)."""
        return np.asarray(self.clean.argmax(axis=1) == self.labels)


@dataclass(frozen=True)
class FoldNetwork:
    network: keras.Model
    novelty: Novelty | None


FitFold = Callable[[Folder, Strings, int, Path], FoldNetwork]


def fit_texture(folder: Folder, splits: Strings, fold: int, checkpoint: Path) -> FoldNetwork:
    knobs = with_image(Knobs(), channels=folder.data.images.shape[3])
    trained = fit_calibrated(folder, splits, knobs, fold, checkpoint)
    return FoldNetwork(trained.network, trained.novelty)


def fit_recipe(folder: Folder, splits: Strings, fold: int, _: Path) -> FoldNetwork:
    parts = {name: folder.data.take(splits == name) for name in SPLITS}
    trained = train_one_seed(RecipeKnobs(), parts, len(folder.class_names), fold)
    if trained.interrupted:  # an incomplete training must not be measured
        raise KeyboardInterrupt
    return FoldNetwork(trained.network, None)


@dataclass(frozen=True)
class Candidate:
    """How a network is trained for cross-validation."""

    knobs: Knobs | RecipeKnobs
    fit_fold: FitFold
    any_channels: bool
    """Whether it takes grey or coloured images, as the folder has them."""


NETWORKS: dict[Network, Candidate] = {
    "texture": Candidate(Knobs(), fit_texture, any_channels=True),
    "recipe": Candidate(RecipeKnobs(), fit_recipe, any_channels=False),
}


def cross_validate(
    name: Network, data_dir: Path, out_of_distribution_dirs: Sequence[Path], work_dir: Path
) -> Predictions:
    """Run all folds of one network. Raises DatasetError if a folder cannot be used."""
    candidate = NETWORKS[name]
    spec = candidate.knobs.image
    if candidate.any_channels:
        spec = spec.model_copy(update={"channels": choose_channels(data_dir)})
    folder = load_folder(data_dir, spec)
    images = out_of_distribution_sets(spec, out_of_distribution_dirs)
    study = _Study(name, candidate, folder, images, work_dir)
    folds = folder.folds
    if folds is None:
        folds = assign_folds(folder.data.labels, folder.groups)
    _refuse_unusable_folds(folder, folds)
    kept = [study.predictions_of_fold(fold, folds == fold) for fold in range(FOLDS)]
    return _join(name, folder, folds, kept)


@dataclass(frozen=True)
class _Study:
    """A network, the data to measure it on, and the folder of saved predictions."""

    name: Network
    candidate: Candidate
    folder: Folder
    out_of_distribution: dict[str, Pixels]
    work_dir: Path

    def predictions_of_fold(self, fold: int, tested: Mask) -> dict[str, NDArray[np.generic]]:
        """Predictions of one fold by name: loaded from `work_dir`, or computed by training now."""
        path = self.work_dir / f"{self.name}-fold{fold}-{self._fingerprint(tested)}.npz"
        if path.is_file():
            with np.load(path) as saved:
                return dict(saved)
        splits = _splits_of_fold(self.folder, tested)
        fitted = self.candidate.fit_fold(self.folder, splits, fold, path.with_suffix(".checkpoint.npz"))
        predictions = _predict_all(fitted, self.folder.data.take(tested), self.out_of_distribution)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, **predictions)  # type: ignore[arg-type]
        unfinished.replace(path)
        path.with_suffix(".checkpoint.npz").unlink(missing_ok=True)
        return predictions

    def _fingerprint(self, tested: Mask) -> str:
        """Hash of everything that a fold's predictions depend on, except the code."""
        digest = hashlib.sha256(json.dumps(repr(self.candidate.knobs)).encode())
        data, groups = self.folder.data, self.folder.groups
        arrays: list[NDArray[Any]] = [data.images, data.labels, groups, tested]
        for array in (*arrays, *self.out_of_distribution.values()):
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]


def _refuse_unusable_folds(folder: Folder, folds: Ints) -> None:
    """Raise DatasetError if a fold is empty, divides a group, or leaves a class without training images."""
    if len(np.unique(folds)) < FOLDS:
        raise DatasetError(f"Cross-validation needs images in {FOLDS} folds, from {FOLDS} groups or more.")
    for group in np.unique(folder.groups):
        if len(np.unique(folds[folder.groups == group])) > 1:
            first = folder.data.paths[int(np.flatnonzero(folder.groups == group)[0])]
            raise DatasetError(
                f"A group must be in one fold. Received: several folds for the group of {first}"
            )
    for fold in range(FOLDS):
        splits = _splits_of_fold(folder, folds == fold)
        trained = set(folder.data.labels[splits == "train"].tolist())
        untrained = [name for label, name in enumerate(folder.class_names) if label not in trained]
        if untrained:
            raise DatasetError(
                f"Every class must have images of several groups. Too few: {', '.join(untrained)}"
            )


def _splits_of_fold(folder: Folder, tested: Mask) -> Strings:
    valid = hold_out(folder.data.labels, folder.groups, ~tested, seed=0, share=VALID_SHARE)
    return np.where(tested, "test", np.where(valid, "valid", "train"))


def _predict_all(
    fitted: FoldNetwork, data: LabelledImages, out_of_distribution: dict[str, Pixels]
) -> dict[str, NDArray[np.generic]]:
    classifier = TensorFlowClassifier(fitted.network)
    found: dict[str, NDArray[np.generic]] = {
        "size": np.array([fitted.network.count_params(), count_macs(fitted.network)])
    }
    clean = classifier.answer(data.images)
    found["clean"] = clean.probabilities
    for kind, severities in corruptions().items():
        for severity, corrupt in severities.items():
            found[f"corrupted/{kind}/{severity}"] = classifier.predict(corrupt(data.images))
    if fitted.novelty is None or clean.embeddings is None:
        return found
    found["novelty"] = fitted.novelty.score(clean.embeddings) / np.float32(fitted.novelty.threshold)
    for name, images in out_of_distribution.items():
        embeddings = classifier.answer(images).embeddings
        if embeddings is not None:
            scores = fitted.novelty.score(embeddings)
            found[f"out_of_distribution/{name}"] = scores / np.float32(fitted.novelty.threshold)
    return found


def _join(
    name: Network, folder: Folder, folds: Ints, kept: Sequence[dict[str, NDArray[np.generic]]]
) -> Predictions:
    def gathered(key: str) -> Floats:
        first = kept[0][key]
        whole = np.zeros((len(folds), *first.shape[1:]), dtype=np.float32)
        for fold, part in enumerate(kept):
            whole[folds == fold] = part[key]
        return whole

    keys = kept[0]
    parameters, macs = (int(number) for number in keys["size"])
    return Predictions(
        network=name,
        parameters=parameters,
        macs=macs,
        labels=folder.data.labels,
        groups=folder.groups,
        folds=folds,
        clean=gathered("clean"),
        corrupted={
            (kind, severity): gathered(f"corrupted/{kind}/{severity}")
            for kind, severities in corruptions().items()
            for severity in severities
        },
        novelty=gathered("novelty") if "novelty" in keys else None,
        out_of_distribution={
            key.removeprefix("out_of_distribution/"): np.concatenate([part[key] for part in kept])
            for key in keys
            if key.startswith("out_of_distribution/")
        },
    )


def crossvalidation(
    networks: Sequence[Network], data_dir: Path, out_of_distribution_dirs: Sequence[Path], work_dir: Path
) -> tuple[str, list[Predictions], Folder]:
    """All tables in Markdown, and what they were made from. Raises DatasetError for an unusable folder."""
    folder = load_folder(data_dir, NETWORKS[networks[0]].knobs.image)
    print(describe_folder(folder), file=sys.stderr)
    studied = [cross_validate(name, data_dir, out_of_distribution_dirs, work_dir) for name in networks]
    text = "\n\n".join(f"## {table}" for table in tables(studied, folder.class_names))
    return text, studied, folder


def tables(studied: Sequence[Predictions], class_names: Sequence[str]) -> Iterator[str]:
    """Yield each table with its heading."""
    yield "Grouped 5-fold cross-validation\n\n" + _markdown(_overview(studied))
    yield "Recall by class\n\n" + _markdown(_recall(studied, class_names))
    yield "Robust accuracy, every image of every fold\n\n" + _markdown(_robustness(studied))
    for result in studied:
        if result.novelty is not None:
            yield f"Abstention of {result.network}\n\n" + _markdown(_abstention(result, result.novelty))
        yield f"Confusion of {result.network}, rows true\n\n" + _markdown(_confusion(result, class_names))


def robust_accuracy(result: Predictions) -> float:
    """Mean over kinds of corruption of the mean over severities."""
    by_kind = defaultdict(list)
    for kind, severity in result.corrupted:
        by_kind[kind].append(_accuracy(result, kind, severity))
    return float(np.mean([np.mean(accuracies) for accuracies in by_kind.values()]))


def cross_calibrated(result: Predictions) -> Floats:
    """Probabilities (n, k), each fold's with the temperature fitted to the predictions of the other folds."""
    logits = np.log(np.maximum(result.clean, 1e-12))
    found = np.zeros_like(result.clean)
    for fold in np.unique(result.folds):
        this, others = result.folds == fold, result.folds != fold
        accuracy = expected_accuracy(result.clean[others], result.labels[others])
        found[this] = softmax(logits[this] / fit_temperature(logits[others], accuracy))
    return found


def _overview(studied: Sequence[Predictions]) -> Iterator[list[str]]:
    def row(name: str, cell: Callable[[Predictions], str]) -> list[str]:
        return [name, *map(cell, studied)]

    yield row("", lambda one: one.network)
    yield row("parameters", lambda one: f"{one.parameters:,}")
    yield row("groups of images", lambda one: f"{len(np.unique(one.groups)):,}")
    yield row("MACs an image", lambda one: f"{one.macs / 1e6:.1f} M")
    yield row("errors", lambda one: f"{int((~one.right).sum())} of {len(one.right)}")
    yield row("accuracy", lambda one: f"{one.right.mean():.2%}")
    yield row(
        "95 % interval, images independent",
        lambda one: _range(wilson_interval(int(one.right.sum()), len(one.right))),
    )
    yield row("95 % interval, groups resampled", lambda one: _range(group_interval(one.right, one.groups)))
    for fold in np.unique(studied[0].folds):
        yield [f"fold {fold}", *(f"{one.right[one.folds == fold].mean():.2%}" for one in studied)]
    yield row("expected calibration error", lambda one: _calibration_error(one.clean, one.labels))
    yield row(
        "the same, temperature fitted to other folds",
        lambda one: _calibration_error(cross_calibrated(one), one.labels),
    )
    yield row(f"confidence {SURE} or more at that temperature, and errors among them", _sure)
    yield row("robust accuracy, mean", lambda one: f"{robust_accuracy(one):.2%}")


def _range(interval: Interval) -> str:
    return f"{interval.low:.2%} to {interval.high:.2%}"


def _calibration_error(probabilities: Floats, labels: Ints) -> str:
    return f"{reliability(probabilities, labels).expected_calibration_error:.2%}"


def _sure(result: Predictions) -> str:
    calibrated = cross_calibrated(result)
    sure = calibrated.max(axis=1) >= SURE
    wrong = calibrated.argmax(axis=1) != result.labels
    return f"{sure.mean():.1%}, {int(wrong[sure].sum())}"


def _recall(studied: Sequence[Predictions], class_names: Sequence[str]) -> Iterator[list[str]]:
    yield ["class", "images", *(result.network for result in studied)]
    for label, name in enumerate(class_names):
        of_class = studied[0].labels == label
        recalls = (f"{result.right[of_class].mean():.2%}" for result in studied)
        yield [name, str(int(of_class.sum())), *recalls]


def _robustness(studied: Sequence[Predictions]) -> Iterator[list[str]]:
    yield ["corruption", "severity", *(result.network for result in studied)]
    last = ""
    for kind, severity in studied[0].corrupted:
        found = (f"{_accuracy(result, kind, severity):.1%}" for result in studied)
        yield [kind if kind != last else "", severity, *found]
        last = kind
    yield ["mean of kinds", "", *(f"{robust_accuracy(result):.1%}" for result in studied)]


def _abstention(result: Predictions, novelty: Floats) -> Iterator[list[str]]:
    yield ["images", "number", "abstained on", "AUROC against held-out images"]
    yield ["held-out images", str(len(novelty)), f"{(novelty > 1).mean():.1%}", ""]
    folds = len(np.unique(result.folds))
    for name, scores in result.out_of_distribution.items():
        area = area_under_roc(novelty, scores)
        yield [name, str(len(scores) // folds), f"{(scores > 1).mean():.1%}", f"{area:.4f}"]


def _confusion(result: Predictions, class_names: Sequence[str]) -> Iterator[list[str]]:
    matrix = confusion_matrix(result.clean.argmax(axis=1), result.labels, len(class_names))
    yield ["", *class_names]
    yield from ([name, *map(str, row)] for name, row in zip(class_names, matrix.tolist(), strict=True))


def _accuracy(result: Predictions, kind: str, severity: str) -> float:
    return float((result.corrupted[kind, severity].argmax(axis=1) == result.labels).mean())


def _markdown(rows: Iterator[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))
