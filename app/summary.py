"""What a request's images were taken for, and what they are like: for the log and the figures.

No image is wrong by itself here; a line, a light or a camera that changes shows in many of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.outcome import Outcome

_DECIMALS = 4
# A sharpness is small.
_SHARPNESS_DECIMALS = 6


class ImageStatistics(NamedTuple):
    """Of one image in grey of 0 to 1, at the size that the network saw."""

    brightness: float
    """Its mean."""
    sharpness: float
    """The variance of its Laplacian."""


@dataclass(frozen=True)
class Summary:
    labels: dict[str, int]
    """Images by label; one that was abstained on, or failed, has none."""
    abstained: int
    confidences: Sequence[float]
    """Of the images that have a label."""
    statistics: Sequence[ImageStatistics]
    """Of all that were decoded, if they were measured."""

    def figures(self) -> dict[str, object]:
        """Nothing of what was sent; a mean of nothing is null."""
        return {
            "labels": self.labels,
            "abstained": self.abstained,
            "mean_confidence": _mean(self.confidences, _DECIMALS),
            "mean_brightness": _mean([image.brightness for image in self.statistics], _DECIMALS),
            "mean_sharpness": _mean([image.sharpness for image in self.statistics], _SHARPNESS_DECIMALS),
        }


def summarise(outcomes: Sequence[Outcome | None], statistics: Sequence[ImageStatistics]) -> Summary:
    labels: dict[str, int] = {}
    confidences, abstained = [], 0
    for outcome in outcomes:
        if outcome is None:
            continue
        if outcome["label"] is not None and outcome["confidence"] is not None:
            labels[outcome["label"]] = labels.get(outcome["label"], 0) + 1
            confidences.append(outcome["confidence"])
        abstained += outcome["abstained"]
    return Summary(dict(sorted(labels.items())), abstained, confidences, statistics)


def _mean(values: Sequence[float], decimals: int) -> float | None:
    return round(sum(values) / len(values), decimals) if values else None
