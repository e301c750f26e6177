"""Choose what ships: the frozen network, whose last layer takes seconds to fit, or one trained from it.

The frozen network is the baseline of every folder. Where the test part has few images, it is measured by
cross-validation and ships, because training on so few images does worse. Otherwise, or if epochs are given,
the default network is trained too, and ships only if it is not worse on the images held out.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.arrays import Floats, Ints, Mask, Strings
from model.preprocessing import softmax
from model.tensorflow_engine import TensorFlowClassifier
from model.training.calibration import Linear, expected_accuracy, fit_temperature
from model.training.fit import Knobs, Trained, fit_calibrated
from model.training.folder import SPLITS, Folder
from model.training.frozen import VIEWS, FrozenStatistics
from model.training.splits import FOLDS
from model.training.verdict import Unseen

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
