"""Results of a cross-validation as Markdown tables, with a column per network."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from model.evaluation.crossvalidate import Answers
from model.training.calibration import expected_accuracy, fit_temperature
from model.training.metrics import (
    area_under_roc,
    confusion_matrix,
    group_interval,
    reliability,
    wilson_interval,
)

SURE = 0.9
"""In the tables, confidence from which a prediction needs no manual review."""


def tables(studied: Sequence[Answers], class_names: Sequence[str]) -> Iterator[str]:
    """Yield each table with its heading."""
    yield "Grouped 5-fold cross-validation\n\n" + _markdown(_overview(studied))
    yield "Recall by class\n\n" + _markdown(_recall(studied, class_names))
    yield "Robust accuracy, every image of every fold\n\n" + _markdown(_robustness(studied))
    for answers in studied:
        if answers.novelty is not None:
            yield f"Abstention of {answers.network}\n\n" + _markdown(_abstention(answers))
        yield f"Confusion of {answers.network}, rows true\n\n" + _markdown(_confusion(answers, class_names))


def robust_accuracy(answers: Answers) -> float:
    """Mean over kinds of corruption of the mean over severities."""
    kinds = sorted({kind for kind, _ in answers.corrupted})
    return float(np.mean([_kind_accuracy(answers, kind) for kind in kinds]))


def cross_calibrated(answers: Answers) -> NDArray[np.float32]:
    """Probabilities (n, k), each fold's with the temperature fitted to the predictions of the other folds."""
    logits = np.log(np.maximum(answers.clean, 1e-12))
    found = np.zeros_like(answers.clean)
    for fold in np.unique(answers.folds):
        this, others = answers.folds == fold, answers.folds != fold
        accuracy = expected_accuracy(answers.clean[others], answers.labels[others])
        scaled = logits[this] / fit_temperature(logits[others], accuracy)
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        found[this] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _overview(studied: Sequence[Answers]) -> list[list[str]]:
    rows = [["", *(answers.network for answers in studied)]]
    rows.append(["parameters", *(f"{answers.parameters:,}" for answers in studied)])
    rows.append(["groups of images", *(f"{len(np.unique(answers.groups)):,}" for answers in studied)])
    rows.append(["MACs an image", *(f"{answers.macs / 1e6:.1f} M" for answers in studied)])
    right = [answers.clean.argmax(axis=1) == answers.labels for answers in studied]
    rows.append(["errors", *(f"{int((~r).sum())} of {len(r)}" for r in right)])
    rows.append(["accuracy", *(f"{r.mean():.2%}" for r in right)])
    wilson = [wilson_interval(int(r.sum()), len(r)) for r in right]
    rows.append(["95 % interval, images independent", *(f"{w.low:.2%} to {w.high:.2%}" for w in wilson)])
    grouped = [group_interval(r, answers.groups) for r, answers in zip(right, studied, strict=True)]
    rows.append(["95 % interval, groups resampled", *(f"{g.low:.2%} to {g.high:.2%}" for g in grouped)])
    for fold in np.unique(studied[0].folds):
        by_fold = [r[answers.folds == fold].mean() for r, answers in zip(right, studied, strict=True)]
        rows.append([f"fold {fold}", *(f"{accuracy:.2%}" for accuracy in by_fold)])
    errors = [reliability(a.clean, a.labels).expected_calibration_error for a in studied]
    rows.append(["expected calibration error", *(f"{error:.2%}" for error in errors)])
    errors = [reliability(cross_calibrated(a), a.labels).expected_calibration_error for a in studied]
    rows.append(["the same, temperature fitted to other folds", *(f"{error:.2%}" for error in errors)])
    rows.append(
        [f"confidence {SURE} or more at that temperature, and errors among them", *map(_sure, studied)]
    )
    rows.append(["robust accuracy, mean", *(f"{robust_accuracy(answers):.2%}" for answers in studied)])
    return rows


def _sure(answers: Answers) -> str:
    calibrated = cross_calibrated(answers)
    sure = calibrated.max(axis=1) >= SURE
    wrong = calibrated.argmax(axis=1) != answers.labels
    return f"{sure.mean():.1%}, {int(wrong[sure].sum())}"


def _recall(studied: Sequence[Answers], class_names: Sequence[str]) -> list[list[str]]:
    rows = [["class", "images", *(answers.network for answers in studied)]]
    for label, name in enumerate(class_names):
        of_class = studied[0].labels == label
        recalls = [(answers.clean.argmax(axis=1)[of_class] == label).mean() for answers in studied]
        rows.append([name, str(int(of_class.sum())), *(f"{recall:.2%}" for recall in recalls)])
    return rows


def _robustness(studied: Sequence[Answers]) -> list[list[str]]:
    rows = [["corruption", "severity", *(answers.network for answers in studied)]]
    last = ""
    for kind, severity in studied[0].corrupted:
        found = [_accuracy(answers, kind, severity) for answers in studied]
        rows.append([kind if kind != last else "", severity, *(f"{accuracy:.1%}" for accuracy in found)])
        last = kind
    rows.append(["mean of kinds", "", *(f"{robust_accuracy(answers):.1%}" for answers in studied)])
    return rows


def _abstention(answers: Answers) -> list[list[str]]:
    novelty = answers.novelty
    if novelty is None:
        return []
    rows = [["images", "number", "abstained on", "AUROC against held-out images"]]
    rows.append(["held-out images", str(len(novelty)), f"{(novelty > 1).mean():.1%}", ""])
    folds = len(np.unique(answers.folds))
    for name, scores in answers.foreign.items():
        shared = area_under_roc(novelty, scores)
        rows.append([name, str(len(scores) // folds), f"{(scores > 1).mean():.1%}", f"{shared:.4f}"])
    return rows


def _confusion(answers: Answers, class_names: Sequence[str]) -> list[list[str]]:
    matrix = confusion_matrix(answers.clean.argmax(axis=1), answers.labels, len(class_names))
    rows = [["", *class_names]]
    return rows + [[name, *map(str, row)] for name, row in zip(class_names, matrix.tolist(), strict=True)]


def _accuracy(answers: Answers, kind: str, severity: str) -> float:
    return float((answers.corrupted[kind, severity].argmax(axis=1) == answers.labels).mean())


def _kind_accuracy(answers: Answers, kind: str) -> float:
    severities = [severity for this, severity in answers.corrupted if this == kind]
    return float(np.mean([_accuracy(answers, kind, severity) for severity in severities]))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
