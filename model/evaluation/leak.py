"""Bias of a dataset's own split: accuracy on test images with and without their group in the train split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, load_artifact
from model.cores import usable_cores
from model.defaults import DEFAULT_MODEL_PATH, user_cache_dir
from model.engines import open_classifier
from model.evaluation.crossvalidate import Answers
from model.evaluation.evaluate import predict_all
from model.training.folder import Folder, load_folder
from model.training.metrics import wilson_interval

SHIPPED = {
    "texture": DEFAULT_MODEL_PATH,
    "recipe": DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5"),
}


def leak_table(studied: Sequence[Answers], folder: Folder, data_dir: Path) -> str | None:
    """Markdown table of the shipped artifacts on the folder's own test split, compared with grouped folds.

    None if the folder has no split, or its classes are not those of the artifacts.
    """
    if not folder.splits[0]:
        return None
    artifacts = {answers.network: load_artifact(SHIPPED[answers.network]) for answers in studied}
    if any(artifact.card.class_names != folder.class_names for artifact in artifacts.values()):
        return None
    test = folder.splits == "test"
    trained = set(folder.groups[folder.splits == "train"].tolist())
    leaked = np.array([group in trained for group in folder.groups[test].tolist()])
    lines = [
        "Shipped artifacts on the dataset's own test split, compared with grouped folds",
        "",
        "| network | test images | group trained on | group unseen | grouped folds | overestimated by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for answers in studied:
        correct = _correct_on_test(artifacts[answers.network], data_dir)
        grouped = float((answers.clean.argmax(axis=1) == answers.labels).mean())
        cells = [_share(correct), _share(correct[leaked]), _share(correct[~leaked])]
        gap = f"{100 * (correct.mean() - grouped):+.1f} points"
        lines.append(f"| {answers.network} | {' | '.join(cells)} | {grouped:.2%} | {gap} |")
    return "\n".join(lines)


def _correct_on_test(artifact: Artifact, data_dir: Path) -> NDArray[np.bool_]:
    """Whether the artifact classifies each test image correctly (n,), in the order of the folder."""
    folder = load_folder(data_dir, artifact.card.image)
    tested = folder.data.take(folder.splits == "test")
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    probabilities = predict_all(classifier, tested, usable_cores())
    return np.asarray(probabilities.argmax(axis=1) == tested.labels)


def _share(correct: NDArray[np.bool_]) -> str:
    if not len(correct):
        return "none"
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return f"{correct.mean():.1%} of {len(correct)} ({low:.1%} to {high:.1%})"
