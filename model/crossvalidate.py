"""Measure networks honestly: grouped cross-validation, corrupted images, foreign images, side by side.

Every image is predicted once by a network that has seen no image of its group. What each fold answers is
kept, so that an interrupted run is taken up again.
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

from model.corruptions import corruptions
from model.dataset import LabelledImages
from model.errors import DatasetError
from model.fit import Knobs
from model.folder import Folder, choose_channels, load_folder
from model.foreign import foreign_sets
from model.groups import FOLDS, assign_folds
from model.image import ImageSpec
from model.network_cost import count_macs
from model.novelty import Novelty
from model.split import hold_out
from model.tensorflow_engine import TensorFlowClassifier
from model.train import fit_calibrated, with_channels
from model.train_recipe import Knobs as RecipeKnobs
from model.train_recipe import train_one_seed

VALID_SHARE = 0.04
"""Of each class, whole groups that a fold calibrates or stops by; as much as in the customary split."""


@dataclass(frozen=True)
class Answers:
    """Of one network, every image by the fold that had not seen its group."""

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
    """Novelty scores (n,), in units of the threshold of the image's fold."""
    foreign: dict[str, NDArray[np.float32]]
    """Novelty scores (folds * m,) by set of foreign images."""


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
    if trained.interrupted:  # half a training is no measurement
        raise KeyboardInterrupt
    return FoldNetwork(trained.network, None)


NETWORKS: dict[str, tuple[ImageSpec, FitFold]] = {
    "recipe": (RecipeKnobs().image, fit_recipe),
    "texture": (Knobs().image, fit_texture),
}


def cross_validate(name: str, data_dir: Path, foreign_dirs: Sequence[Path], work_dir: Path) -> Answers:
    """All folds of one network. Raises DatasetError when a folder cannot be used."""
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
    """One network to be measured, and what with."""

    name: str
    folder: Folder
    foreign: dict[str, NDArray[np.uint8]]
    fit_fold: FitFold
    work_dir: Path

    def answers_of_fold(self, fold: int, tested: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
        """By name, what one fold answers: from `work_dir`, or fitted now."""
        path = self.work_dir / f"{self.name}-fold{fold}-{self._fingerprint(tested)}.npz"
        if path.is_file():
            with np.load(path) as saved:
                return dict(saved)
        splits = _splits_of_fold(self.folder, tested)
        fitted = self.fit_fold(self.folder, splits, fold, path.with_suffix(".checkpoint.npz"))
        answers = _answer_all(fitted, self.folder.data.take(tested), self.foreign)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, **answers)  # type: ignore[arg-type]
        unfinished.replace(path)
        path.with_suffix(".checkpoint.npz").unlink(missing_ok=True)
        return answers

    def _fingerprint(self, tested: NDArray[np.bool_]) -> str:
        """Of all that a fold's answers depend on, but the code."""
        knobs = Knobs() if self.name == "texture" else RecipeKnobs()
        digest = hashlib.sha256(json.dumps(repr(knobs)).encode())
        data, groups = self.folder.data, self.folder.groups
        arrays: list[NDArray[Any]] = [data.images, data.labels, groups, tested]
        for array in (*arrays, *self.foreign.values()):
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]


def _refuse_unusable_folds(folder: Folder, folds: NDArray[np.int64]) -> None:
    """Raise DatasetError unless every fold can be tested on by what the others teach."""
    if len(np.unique(folds)) < FOLDS:
        raise DatasetError(f"Cross-validation needs images of {FOLDS} groups or more, in every fold.")
    for group in np.unique(folder.groups):
        if len(np.unique(folds[folder.groups == group])) > 1:
            first = folder.data.paths[int(np.flatnonzero(folder.groups == group)[0])]
            raise DatasetError(f"A group must lie in one fold. Divided: the group of {first}")
    for fold in range(FOLDS):
        splits = _splits_of_fold(folder, folds == fold)
        taught = set(folder.data.labels[splits == "train"].tolist())
        untaught = [name for label, name in enumerate(folder.class_names) if label not in taught]
        if untaught:
            raise DatasetError(
                f"Every class must have images of several groups. Too few: {', '.join(untaught)}"
            )


def _splits_of_fold(folder: Folder, tested: NDArray[np.bool_]) -> NDArray[np.str_]:
    valid = hold_out(folder.data.labels, folder.groups, ~tested, seed=0, share=VALID_SHARE)
    return np.where(tested, "test", np.where(valid, "valid", "train"))


def _answer_all(
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
