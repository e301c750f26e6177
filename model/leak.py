"""How much a customary split flatters: test images whose piece was trained on, and those that are clean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.artifact import DEFAULT_MODEL_PATH, load_artifact
from model.compiled import user_cache_dir
from model.crossvalidate import Answers
from model.dataset import LabelledImages, load_split
from model.evaluate import predict_all
from model.folder import Folder
from model.metrics import wilson_interval
from model.runtime import open_classifier, usable_cores

SHIPPED = {
    "texture": DEFAULT_MODEL_PATH,
    "recipe": DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"),
}


def leak_table(studied: Sequence[Answers], folder: Folder) -> str:
    """The shipped artifacts on the folder's own test split, beside the same network by grouped folds."""
    test = folder.splits == "test"
    trained = set(folder.groups[folder.splits == "train"].tolist())
    known = np.array([group in trained for group in folder.groups[test].tolist()])
    lines = [
        "Customary test split, shipped artifacts, beside grouped folds",
        "",
        "| network | test images | group trained on | group unseen | grouped folds | the split flatters by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for answers in studied:
        right = _right_on(answers.network, folder.data.take(test), folder.class_names, _root_of(folder))
        honest = float((answers.clean.argmax(axis=1) == answers.labels).mean())
        cells = [_share(right), _share(right[known]), _share(right[~known])]
        gap = f"{100 * (right.mean() - honest):+.1f} points"
        lines.append(f"| {answers.network} | {' | '.join(cells)} | {honest:.2%} | {gap} |")
    return "\n".join(lines)


def _right_on(
    network: str, data: LabelledImages, class_names: tuple[str, ...], data_dir: Path
) -> NDArray[np.bool_]:
    """Whether the shipped artifact is right, image by image, in the order of `data`."""
    artifact = load_artifact(SHIPPED[network])
    split = load_split(data_dir, "test", class_names, artifact.card.image)
    order = {path: place for place, path in enumerate(split.paths)}
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    right = predict_all(classifier, split, usable_cores()).argmax(axis=1) == split.labels
    return np.asarray(right[[order[path] for path in data.paths]])


def _root_of(folder: Folder) -> Path:
    return folder.data.paths[0].parents[2]


def _share(right: NDArray[np.bool_]) -> str:
    if not len(right):
        return "none"
    low, high = wilson_interval(int(right.sum()), len(right))
    return f"{right.mean():.1%} of {len(right)} ({low:.1%} to {high:.1%})"
