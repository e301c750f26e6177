"""How much a customary split flatters: test images whose piece was trained on, and those that are clean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, load_artifact
from model.cores import usable_cores
from model.crossvalidate import Answers
from model.defaults import DEFAULT_MODEL_PATH, user_cache_dir
from model.evaluate import predict_all
from model.folder import Folder, load_folder
from model.metrics import wilson_interval
from model.runtime import open_classifier

SHIPPED = {
    "texture": DEFAULT_MODEL_PATH,
    "recipe": DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"),
}


def leak_table(studied: Sequence[Answers], folder: Folder, data_dir: Path) -> str | None:
    """The shipped artifacts on the folder's own test split, beside the same network by grouped folds.

    None where the folder is not split, or its classes are not theirs.
    """
    if not folder.splits[0]:
        return None
    artifacts = {answers.network: load_artifact(SHIPPED[answers.network]) for answers in studied}
    if any(artifact.card.class_names != folder.class_names for artifact in artifacts.values()):
        return None
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
        right = _right_on(artifacts[answers.network], data_dir)
        honest = float((answers.clean.argmax(axis=1) == answers.labels).mean())
        cells = [_share(right), _share(right[known]), _share(right[~known])]
        gap = f"{100 * (right.mean() - honest):+.1f} points"
        lines.append(f"| {answers.network} | {' | '.join(cells)} | {honest:.2%} | {gap} |")
    return "\n".join(lines)


def _right_on(artifact: Artifact, data_dir: Path) -> NDArray[np.bool_]:
    """Whether the artifact is right, by test image, in the order of the folder."""
    folder = load_folder(data_dir, artifact.card.image)
    tested = folder.data.take(folder.splits == "test")
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    probabilities = predict_all(classifier, tested, usable_cores())
    return np.asarray(probabilities.argmax(axis=1) == tested.labels)


def _share(right: NDArray[np.bool_]) -> str:
    if not len(right):
        return "none"
    low, high = wilson_interval(int(right.sum()), len(right))
    return f"{right.mean():.1%} of {len(right)} ({low:.1%} to {high:.1%})"
