"""What a training has achieved, in words: right answers, classes that need images, foreign images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.arrays import Ints, Mask
from model.training.folder import FEW_IMAGES
from model.training.metrics import wilson_interval

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
