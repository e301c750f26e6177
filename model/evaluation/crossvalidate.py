"""Grouped cross-validation of networks, including corrupted and out-of-distribution images.

Each image is predicted once, by a network that was not trained on its group. The predictions of each fold
are saved, so an interrupted run resumes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from model.errors import DatasetError
from model.evaluation.corruptions import corruptions
from model.evaluation.out_of_distribution import foreign_sets
from model.image import ImageSpec
from model.novelty import Novelty
from model.tensorflow_engine import TensorFlowClassifier
from model.training.dataset import LabelledImages
from model.training.fit import Knobs, fit_calibrated, with_channels
from model.training.folder import Folder, choose_channels, load_folder
from model.training.groups import FOLDS, assign_folds
from model.training.network_cost import count_macs
from model.training.recipe import Knobs as RecipeKnobs
from model.training.recipe import train_one_seed
from model.training.split import hold_out

VALID_SHARE = 0.04
"""Share of each class, in whole groups, for calibration or early stopping; as in the dataset's own split."""


@dataclass(frozen=True)
class Answers:
    """Predictions of one network for all images, each by the fold that was not trained on its group."""

    network: str
    parameters: int
    macs: int
    labels: NDArray[np.int64]
    """(n,)."""
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    clean: NDArray[np.float32]
    """Probabilities (n, k)."""
    corrupted: dict[tuple[str, str], NDArray[np.float32]]
    """Probabilities (n, k) by kind and severity."""
    novelty: NDArray[np.float32] | None
    """Novelty scores (n,), divided by the threshold of the image's fold."""
    foreign: dict[str, NDArray[np.float32]]
    """Novelty scores (folds * m,) by set of out-of-distribution images, divided by the fold's threshold."""


@dataclass(frozen=True)
class FoldNetwork:
    network: keras.Model
    novelty: Novelty | None


FitFold = Callable[[Folder, NDArray[np.str_], int, Path], FoldNetwork]


def fit_texture(folder: Folder, splits: NDArray[np.str_], fold: int, checkpoint: Path) -> FoldNetwork:
    knobs = with_channels(Knobs(), folder.data.images.shape[3])
    trained = fit_calibrated(folder, splits, knobs, fold, checkpoint)
    return FoldNetwork(trained.network, trained.novelty)


def fit_recipe(folder: Folder, splits: NDArray[np.str_], fold: int, _: Path) -> FoldNetwork:
    parts = {name: folder.data.take(splits == name) for name in ("train", "valid", "test")}
    trained = train_one_seed(RecipeKnobs(), parts, len(folder.class_names), fold)
    if trained.interrupted:  # an incomplete training must not be measured
        raise KeyboardInterrupt
    return FoldNetwork(trained.network, None)


NETWORKS: dict[str, tuple[ImageSpec, FitFold]] = {
    "recipe": (RecipeKnobs().image, fit_recipe),
    "texture": (Knobs().image, fit_texture),
}


def cross_validate(name: str, data_dir: Path, foreign_dirs: Sequence[Path], work_dir: Path) -> Answers:
    """Run all folds of one network. Raises DatasetError if a folder cannot be used."""
    spec, fit_fold = NETWORKS[name]
    if name == "texture":
        spec = spec.model_copy(update={"channels": choose_channels(data_dir)})
    folder = load_folder(data_dir, spec)
    study = _Study(name, folder, foreign_sets(spec, foreign_dirs), fit_fold, work_dir)
    folds = folder.folds
    if folds is None:
        folds = assign_folds(folder.data.labels, folder.groups, FOLDS)
    _refuse_unusable_folds(folder, folds)
    kept = [study.answers_of_fold(fold, folds == fold) for fold in range(FOLDS)]
    return _join(name, folder, folds, kept)


@dataclass(frozen=True)
class _Study:
    """A network, the data to measure it on, and the folder of saved predictions."""

    name: str
    folder: Folder
    foreign: dict[str, NDArray[np.uint8]]
    fit_fold: FitFold
    work_dir: Path

    def answers_of_fold(self, fold: int, tested: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
        """Predictions of one fold by name: loaded from `work_dir`, or computed by training now."""
        path = self.work_dir / f"{self.name}-fold{fold}-{self._fingerprint(tested)}.npz"
        if path.is_file():
            with np.load(path) as saved:
                return dict(saved)
        splits = _splits_of_fold(self.folder, tested)
        fitted = self.fit_fold(self.folder, splits, fold, path.with_suffix(".checkpoint.npz"))
        answers = _predict_all(fitted, self.folder.data.take(tested), self.foreign)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, **answers)  # type: ignore[arg-type]
        unfinished.replace(path)
        path.with_suffix(".checkpoint.npz").unlink(missing_ok=True)
        return answers

    def _fingerprint(self, tested: NDArray[np.bool_]) -> str:
        """Hash of everything that a fold's predictions depend on, except the code."""
        knobs = Knobs() if self.name == "texture" else RecipeKnobs()
        digest = hashlib.sha256(json.dumps(repr(knobs)).encode())
        data, groups = self.folder.data, self.folder.groups
        arrays: list[NDArray[Any]] = [data.images, data.labels, groups, tested]
        for array in (*arrays, *self.foreign.values()):
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]


def _refuse_unusable_folds(folder: Folder, folds: NDArray[np.int64]) -> None:
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


def _splits_of_fold(folder: Folder, tested: NDArray[np.bool_]) -> NDArray[np.str_]:
    valid = hold_out(folder.data.labels, folder.groups, ~tested, seed=0, share=VALID_SHARE)
    return np.where(tested, "test", np.where(valid, "valid", "train"))


def _predict_all(
    fitted: FoldNetwork, data: LabelledImages, foreign: dict[str, NDArray[np.uint8]]
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
    for name, images in foreign.items():
        embeddings = classifier.answer(images).embeddings
        if embeddings is not None:
            scores = fitted.novelty.score(embeddings)
            found[f"foreign/{name}"] = scores / np.float32(fitted.novelty.threshold)
    return found


def _join(
    name: str, folder: Folder, folds: NDArray[np.int64], kept: Sequence[dict[str, NDArray[np.generic]]]
) -> Answers:
    def gathered(key: str) -> NDArray[np.float32]:
        first = kept[0][key]
        whole = np.zeros((len(folds), *first.shape[1:]), dtype=np.float32)
        for fold, answers in enumerate(kept):
            whole[folds == fold] = answers[key]
        return whole

    keys = kept[0]
    parameters, macs = (int(number) for number in keys["size"])
    return Answers(
        network=name,
        parameters=parameters,
        macs=macs,
        labels=folder.data.labels,
        groups=folder.groups,
        folds=folds,
        clean=gathered("clean"),
        corrupted={
            (key.split("/")[1], key.split("/")[2]): gathered(key) for key in keys if key.startswith("corr")
        },
        novelty=gathered("novelty") if "novelty" in keys else None,
        foreign={
            key.removeprefix("foreign/"): np.concatenate([answers[key] for answers in kept])
            for key in keys
            if key.startswith("foreign/")
        },
    )
