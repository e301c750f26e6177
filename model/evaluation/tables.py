"""Cross-validation of networks: its results as Markdown tables, with a column per network."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.defaults import Network
from model.evaluation.crossvalidate import NETWORKS, Predictions, cross_validate
from model.training.calibration import expected_accuracy, fit_temperature
from model.training.folder import Folder, describe_folder, load_folder
from model.training.metrics import (
    area_under_roc,
    confusion_matrix,
    group_interval,
    reliability,
    wilson_interval,
)

SURE = 0.9
"""In the tables, confidence from which a prediction needs no manual review."""


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
            yield f"Abstention of {result.network}\n\n" + _markdown(_abstention(result))
        yield f"Confusion of {result.network}, rows true\n\n" + _markdown(_confusion(result, class_names))


def robust_accuracy(result: Predictions) -> float:
    """Mean over kinds of corruption of the mean over severities."""
    kinds = sorted({kind for kind, _ in result.corrupted})
    return float(np.mean([_kind_accuracy(result, kind) for kind in kinds]))


def cross_calibrated(result: Predictions) -> NDArray[np.float32]:
    """Probabilities (n, k), each fold's with the temperature fitted to the predictions of the other folds."""
    logits = np.log(np.maximum(result.clean, 1e-12))
    found = np.zeros_like(result.clean)
    for fold in np.unique(result.folds):
        this, others = result.folds == fold, result.folds != fold
        accuracy = expected_accuracy(result.clean[others], result.labels[others])
        scaled = logits[this] / fit_temperature(logits[others], accuracy)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        found[this] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _overview(studied: Sequence[Predictions]) -> list[list[str]]:
    rows = [["", *(result.network for result in studied)]]
    rows.append(["parameters", *(f"{result.parameters:,}" for result in studied)])
    rows.append(["groups of images", *(f"{len(np.unique(result.groups)):,}" for result in studied)])
    rows.append(["MACs an image", *(f"{result.macs / 1e6:.1f} M" for result in studied)])
    right = [result.clean.argmax(axis=1) == result.labels for result in studied]
    rows.append(["errors", *(f"{int((~r).sum())} of {len(r)}" for r in right)])
    rows.append(["accuracy", *(f"{r.mean():.2%}" for r in right)])
    wilson = [wilson_interval(int(r.sum()), len(r)) for r in right]
    rows.append(["95 % interval, images independent", *(f"{w.low:.2%} to {w.high:.2%}" for w in wilson)])
    grouped = [group_interval(r, result.groups) for r, result in zip(right, studied, strict=True)]
    rows.append(["95 % interval, groups resampled", *(f"{g.low:.2%} to {g.high:.2%}" for g in grouped)])
    for fold in np.unique(studied[0].folds):
        by_fold = [r[result.folds == fold].mean() for r, result in zip(right, studied, strict=True)]
        rows.append([f"fold {fold}", *(f"{accuracy:.2%}" for accuracy in by_fold)])
    errors = [reliability(a.clean, a.labels).expected_calibration_error for a in studied]
    rows.append(["expected calibration error", *(f"{error:.2%}" for error in errors)])
    errors = [reliability(cross_calibrated(a), a.labels).expected_calibration_error for a in studied]
    rows.append(["the same, temperature fitted to other folds", *(f"{error:.2%}" for error in errors)])
    rows.append(
        [f"confidence {SURE} or more at that temperature, and errors among them", *map(_sure, studied)]
    )
    rows.append(["robust accuracy, mean", *(f"{robust_accuracy(result):.2%}" for result in studied)])
    return rows


def _sure(result: Predictions) -> str:
    calibrated = cross_calibrated(result)
    sure = calibrated.max(axis=1) >= SURE
    wrong = calibrated.argmax(axis=1) != result.labels
    return f"{sure.mean():.1%}, {int(wrong[sure].sum())}"


def _recall(studied: Sequence[Predictions], class_names: Sequence[str]) -> list[list[str]]:
    rows = [["class", "images", *(result.network for result in studied)]]
    for label, name in enumerate(class_names):
        of_class = studied[0].labels == label
        recalls = [(result.clean.argmax(axis=1)[of_class] == label).mean() for result in studied]
        rows.append([name, str(int(of_class.sum())), *(f"{recall:.2%}" for recall in recalls)])
    return rows


def _robustness(studied: Sequence[Predictions]) -> list[list[str]]:
    rows = [["corruption", "severity", *(result.network for result in studied)]]
    last = ""
    for kind, severity in studied[0].corrupted:
        found = [_accuracy(result, kind, severity) for result in studied]
        rows.append([kind if kind != last else "", severity, *(f"{accuracy:.1%}" for accuracy in found)])
        last = kind
    rows.append(["mean of kinds", "", *(f"{robust_accuracy(result):.1%}" for result in studied)])
    return rows


def _abstention(result: Predictions) -> list[list[str]]:
    novelty = result.novelty
    if novelty is None:
        return []
    rows = [["images", "number", "abstained on", "AUROC against held-out images"]]
    rows.append(["held-out images", str(len(novelty)), f"{(novelty > 1).mean():.1%}", ""])
    folds = len(np.unique(result.folds))
    for name, scores in result.out_of_distribution.items():
        shared = area_under_roc(novelty, scores)
        rows.append([name, str(len(scores) // folds), f"{(scores > 1).mean():.1%}", f"{shared:.4f}"])
    return rows


def _confusion(result: Predictions, class_names: Sequence[str]) -> list[list[str]]:
    matrix = confusion_matrix(result.clean.argmax(axis=1), result.labels, len(class_names))
    rows = [["", *class_names]]
    return rows + [[name, *map(str, row)] for name, row in zip(class_names, matrix.tolist(), strict=True)]


def _accuracy(result: Predictions, kind: str, severity: str) -> float:
    return float((result.corrupted[kind, severity].argmax(axis=1) == result.labels).mean())


def _kind_accuracy(result: Predictions, kind: str) -> float:
    severities = [severity for this, severity in result.corrupted if this == kind]
    return float(np.mean([_accuracy(result, kind, severity) for severity in severities]))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
