"""Evaluation metrics, computed from arrays, and the verdict on a training, in words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats, Ints, Mask
from model.training.folder import FEW_IMAGES

# Keras clips probabilities to the same range before it takes the logarithm.
_EPSILON = 1e-7
RELIABILITY_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Accuracy and mean categorical cross-entropy over `images` images."""

    images: int
    correct: int
    accuracy: float
    loss: float


class Interval(NamedTuple):
    low: float
    high: float


def measure(probabilities: Floats, labels: Ints) -> Metrics:
    """Metrics of probabilities (n, k) against labels (n,)."""
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    loss = float(-np.log(np.clip(of_label, _EPSILON, 1 - _EPSILON)).mean())
    return Metrics(len(labels), correct, correct / len(labels), loss)


def wilson_interval(correct: int, images: int) -> Interval:
    """The 95 % confidence interval of a proportion (E. B. Wilson, 1927)."""
    z = 1.959964
    share = correct / images
    centre = share + z * z / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def group_interval(right: Mask, groups: Ints, draws: int = 2000) -> Interval:
    """The 95 % bootstrap interval of the accuracy. Resamples whole groups, as errors in a group correlate."""
    _, index = np.unique(groups, return_inverse=True)
    size = np.bincount(index).astype(np.float64)
    hits = np.bincount(index, weights=right)
    drawn = np.random.default_rng(0).integers(0, len(size), (draws, len(size)))
    shares = hits[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    return Interval(*(float(q) for q in np.quantile(shares, (0.025, 0.975))))


def confusion_matrix(predicted: Ints, labels: Ints, classes: int) -> Ints:
    """(k, k): row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


class Reliability(NamedTuple):
    """Number of images, mean confidence and accuracy (b,) by bin of confidence."""

    images: Ints
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Mean gap between confidence and accuracy, weighted by images (M. P. Naeini et al., AAAI 2015)."""
        return float((self.images * np.abs(self.confidence - self.accuracy)).sum() / self.images.sum())


def reliability(probabilities: Floats, labels: Ints) -> Reliability:
    """Reliability of probabilities (n, k) in bins of equal width."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    images = np.bincount(bins, minlength=RELIABILITY_BINS)
    some = np.maximum(images, 1)
    return Reliability(
        images,
        np.bincount(bins, weights=confidence, minlength=RELIABILITY_BINS) / some,
        np.bincount(bins, weights=right, minlength=RELIABILITY_BINS) / some,
    )


def area_under_roc(in_distribution: NDArray[np.floating], out_of_distribution: NDArray[np.floating]) -> float:
    """The share of pairs in which the out-of-distribution image scores higher; ties count half."""
    scores = np.concatenate([in_distribution, out_of_distribution]).astype(np.float64)
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    inside, outside = len(in_distribution), len(out_of_distribution)
    higher = ranks[inside:].sum() - outside * (outside + 1) / 2
    return float(higher / (inside * outside))


class RiskCoverage(NamedTuple):
    """The error rate (n,) among the most confident share (n,) of images."""

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


def risk_coverage(confidence: NDArray[np.floating], right: Mask) -> RiskCoverage:
    order = np.argsort(-confidence, kind="stable")
    kept = np.arange(1, len(order) + 1)
    return RiskCoverage(kept / len(order), np.cumsum(~right[order]) / kept)


GOOD_SHARE = 0.8
"""Of a class's unseen images; below, the verdict names the class."""
ENOUGH_IMAGES = 100
"""With so many images of a class, more of them help little."""
RECOGNISED = 0.9
"""Share of foreign images from which they count as recognised."""
_MOST_NAMED = 5


@dataclass(frozen=True)
class Unseen:
    """Answers for images that a network was not trained on, unless `what` says something else."""

    labels: Ints
    """(n,)."""
    predicted: Ints
    """(n,)."""
    abstained: Mask | None
    """(n,), or None if the network has no novelty detector."""
    how: str = ""
    """How they were measured, if not on images set aside."""
    what: str = "unseen images"

    @property
    def right(self) -> Mask:
        return np.asarray(self.labels == self.predicted)


def verdict(unseen: Unseen, foreign: Mask | None, class_names: Sequence[str], images: Ints | None) -> str:
    """Sentences on answers for `unseen` and `foreign` images.

    `images` (k,) has the number of images of each class in training, None if it is not known, and `foreign`
    (m,) whether the network abstained.
    """
    sentences = [_accuracy(unseen), *_classes(unseen, class_names, images), _foreign(unseen, foreign)]
    return "Verdict: " + " ".join(sentences)


def _accuracy(unseen: Unseen) -> str:
    correct, number = int(unseen.right.sum()), len(unseen.labels)
    low, high = wilson_interval(correct, number)
    how = f", {unseen.how}" if unseen.how else ""
    text = f"right on {correct} of {number} {unseen.what}{how} (95 % interval {low:.0%} to {high:.0%})"
    guessed = int(np.bincount(unseen.labels).max())
    if low <= guessed / number:
        return f"{text}, not clearly better than always naming the largest class, {guessed} of {number}."
    return f"{text}."


def _classes(unseen: Unseen, class_names: Sequence[str], images: Ints | None) -> Iterator[str]:
    """Yield advice on classes that are recognised badly: more images, or a look at those it has."""
    shown = [int((unseen.labels == label).sum()) for label in range(len(class_names))]
    right = [int(unseen.right[unseen.labels == label].sum()) for label in range(len(class_names))]
    weak = [label for label, number in enumerate(shown) if right[label] < GOOD_SHARE * number]
    weak.sort(key=lambda label: right[label] / shown[label])
    named = {label: f"{class_names[label]} ({right[label]} of {shown[label]} right)" for label in weak}
    few = [] if images is None else [label for label in weak if images[label] < ENOUGH_IMAGES]
    if images is not None and few:
        wanted = max(FEW_IMAGES, 2 * int(images[few].max()))
        words = "it" if len(few) == 1 else "each"
        yield (
            f"Too few photographs of {_join([named[label] for label in few])}; "
            f"add others until {words} has {wanted} or more."
        )
    pairs = []
    for label in (label for label in weak if label not in few):
        wrong = unseen.predicted[(unseen.labels == label) & ~unseen.right]
        pairs.append(f"{named[label]}, often taken for {class_names[int(np.bincount(wrong).argmax())]}")
    if pairs:
        yield f"Check the labels of {_join(pairs, '; ', '; and ')}."


def _foreign(unseen: Unseen, foreign: Mask | None) -> str:
    if foreign is None or unseen.abstained is None:
        return "Does not recognise foreign images: it never abstains."
    share = float(foreign.mean())
    recognises = "Recognises" if share >= RECOGNISED else "Does not recognise"
    if RECOGNISED > share >= 1 / 2:
        recognises = "Recognises only some"
    return (
        f"{recognises} foreign images: abstains on {int(foreign.sum())} of {len(foreign)} drawn ones, "
        f"and on {int(unseen.abstained.sum())} of {len(unseen.abstained)} images of its own classes."
    )


def _join(names: Sequence[str], separator: str = ", ", last: str = " and ") -> str:
    more = len(names) - _MOST_NAMED
    if more > 0:
        names = [*names[:_MOST_NAMED], f"{more} more class{'es' if more > 1 else ''}"]
    return names[0] if len(names) == 1 else f"{separator.join(names[:-1])}{last}{names[-1]}"
