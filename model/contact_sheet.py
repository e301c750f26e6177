"""Find a network's preprocessing with a few images: what it answers under each one that is plausible."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Floats, Ints, Pixels
from model.artifact import Artifact, folder_of_class, save_samples
from model.errors import ArtifactError, InputError
from model.formats import IMAGE_SUFFIXES
from model.image import Fit, ImageSpec, Resample, decode
from model.image_limits import ImageLimits
from model.networks.network import Network
from model.preprocessing import PRESETS, Preprocessing, Preset

MOST_IMAGES = 200
_BATCH = 16
# A stated preprocessing is kept unless another one is right on this share of images more.
_CLEAR_GAIN = 0.05

Predictor = Callable[[Pixels], Any]


@dataclass(frozen=True)
class Candidate:
    """A preprocessing with the way images are resized for it."""

    name: str = field(compare=False)
    preprocessing: Preprocessing
    spec: ImageSpec

    @classmethod
    def of(cls, name: Preset, spec: ImageSpec) -> "Candidate":
        candidate = cls(name, PRESETS[name], spec)
        return candidate.fitted("crop", "lanczos") if name == "teachable-machine" else candidate

    def fitted(self, fit: Fit | None, resample: Resample | None) -> "Candidate":
        changes = {name: value for name, value in (("fit", fit), ("resample", resample)) if value is not None}
        return replace(self, spec=self.spec.model_copy(update=changes))

    def describe(self) -> str:
        size = f"{self.spec.height} x {self.spec.width} x {self.spec.channels}"
        return f"{self.preprocessing}; {self.spec.fit} to {size}, {self.spec.resample}"


@dataclass(frozen=True)
class TrialImages:
    """The user's images, and their classes where folders name them."""

    files: tuple[bytes, ...]
    labels: Ints
    """(n,): indices of the classes that the folders name, -1 where they name none."""
    class_names: tuple[str, ...]
    flag: str = "--try"

    @classmethod
    def of(
        cls, folder: Path, class_names: Sequence[str], flag: str = "--try", most: int = MOST_IMAGES
    ) -> "TrialImages":
        """At most `most` images, evenly chosen. Raises ArtifactError, with the flag, if there is none."""
        if not folder.is_dir():
            raise ArtifactError(f"{flag} must be a folder of images. Missing: {folder}")
        index = {folder_of_class(name): number for number, name in enumerate(class_names)}
        paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not paths:
            raise ArtifactError(f"{flag} must be a folder of images. Received: none in {folder}")
        chosen = paths[:: -(-len(paths) // most)]
        labels = np.array([index.get(folder_of_class(path.parent.name), -1) for path in chosen])
        return cls(tuple(path.read_bytes() for path in chosen), labels, tuple(class_names), flag)

    def decode(self, spec: ImageSpec) -> tuple[Pixels, Ints]:
        """Pixels (n, h, w, c) and labels (n,) of the files that are images."""
        pixels = {}
        for place, file in enumerate(self.files):
            with suppress(InputError):
                pixels[place] = decode(file, spec, ImageLimits())
        if not pixels:
            raise ArtifactError(f"{self.flag} must contain images that can be decoded. Received: none.")
        return np.stack(list(pixels.values())), self.labels[list(pixels)]

    def save_samples(self, artifact: Artifact) -> None:
        """Keep one image of each class, or a few where no folder names a class, for the playground."""
        pixels, labels = self.decode(artifact.card.image)
        known = labels >= 0
        if known.any():
            save_samples(artifact.h5_path, pixels[known], labels[known], self.class_names)
        else:
            numbers = np.arange(len(pixels))
            save_samples(artifact.h5_path, pixels, numbers, [f"image-{number}" for number in numbers])


@dataclass(frozen=True)
class Row:
    candidate: Candidate
    probabilities: Floats
    labels: Ints
    norm_distance: float | None
    """How far inputs of the first batch normalisation are from its training statistics; None without one."""

    @property
    def images(self) -> int:
        return len(self.labels)

    @cached_property
    def labelled(self) -> Ints:
        """Places of the images whose class is known."""
        return np.flatnonzero(self.labels >= 0)

    @cached_property
    def right(self) -> int:
        return int((self.probabilities.argmax(axis=1) == self.labels).sum())

    @cached_property
    def log_loss(self) -> float:
        of_class = self.probabilities[self.labelled, self.labels[self.labelled]]
        return float(-np.log(np.maximum(of_class, 1e-7)).mean())

    @cached_property
    def entropy(self) -> float:
        return float(_entropy(self.probabilities).mean())

    @cached_property
    def confidence(self) -> float:
        return float(self.probabilities.max(axis=1).mean())

    @cached_property
    def information(self) -> float:
        """Nats that an answer says about the image: high if answers are sure and differ between images."""
        return float(_entropy(self.probabilities.mean(axis=0))) - self.entropy


@dataclass(frozen=True)
class ContactSheet:
    rows: tuple[Row, ...]

    @property
    def is_labelled(self) -> bool:
        return len(self.rows[0].labelled) > 0

    def recommended(self, stated: Candidate | None) -> Candidate:
        """The candidate that the images favour; the stated one unless another is clearly better."""
        best = min(self.rows, key=self._badness)
        own = next((row for row in self.rows if row.candidate == stated), None)
        return best.candidate if own is None or self._is_clearly_better(best, own) else own.candidate

    def reason(self, candidate: Candidate) -> str:
        row = self._row_of(candidate)
        if self.is_labelled:
            most = max((other.right for other in self.rows if other is not row), default=None)
            others = "" if most is None else f", the others on at most {most}"
            return f"{candidate.name} is right on {row.right} of {len(row.labelled)} images{others}."
        if row.norm_distance is not None:
            return (
                f"With {candidate.name}, the first batch normalisation receives inputs at a distance of "
                f"{row.norm_distance:.2f} from those of training; no folder names a class."
            )
        return (
            f"With {candidate.name}, answers are as sure and as varied as the table says, weak evidence; "
            "no folder names a class."
        )

    def summary(self, candidate: Candidate) -> str:
        row = self._row_of(candidate)
        if self.is_labelled:
            return f"{row.right} of {len(row.labelled)} images right with {candidate.name}"
        return (
            f"{row.images} images without classes, mean confidence {row.confidence:.2f} with {candidate.name}"
        )

    def table(self) -> list[tuple[str, ...]]:
        """Header and rows of text."""
        header = ("preprocessing", "fit", "right", "confidence", "entropy", "information", "norm distance")
        return [header, *(self._cells(row) for row in self.rows)]

    def _cells(self, row: Row) -> tuple[str, ...]:
        right = f"{row.right} of {len(row.labelled)}" if len(row.labelled) else "-"
        distance = "-" if row.norm_distance is None else f"{row.norm_distance:.2f}"
        figures = f"{row.confidence:.3f}", f"{row.entropy:.3f}", f"{row.information:.3f}", distance
        fit = f"{row.candidate.spec.fit}, {row.candidate.spec.resample}"
        return (row.candidate.name, fit, right, *figures)

    def _badness(self, row: Row) -> tuple[float, float]:
        if self.is_labelled:
            return -row.right, row.log_loss
        return row.norm_distance or 0.0, -row.information

    def _is_clearly_better(self, best: Row, own: Row) -> bool:
        if self.is_labelled:
            return best.right - own.right >= max(2, _CLEAR_GAIN * len(own.labelled))
        if best.norm_distance is not None and own.norm_distance is not None:
            return own.norm_distance > 2 * best.norm_distance + 0.5
        return best.information > 2 * own.information + 0.05

    def _row_of(self, candidate: Candidate) -> Row:
        return next(row for row in self.rows if row.candidate == candidate)


def judge(
    images: TrialImages,
    candidates: Sequence[Candidate],
    predictor_of: Callable[[Candidate], Predictor],
    network: Network,
) -> ContactSheet:
    """Run the network over the images under each candidate."""
    rows = []
    for candidate in candidates:
        pixels, labels = images.decode(candidate.spec)
        predict = predictor_of(candidate)
        batches = np.array_split(pixels, -(-len(pixels) // _BATCH))
        probabilities = np.concatenate([np.asarray(predict(batch)) for batch in batches])
        distance = network.norm_distance(pixels[: 2 * _BATCH], candidate.preprocessing)
        rows.append(Row(candidate, probabilities, labels, distance))
    return ContactSheet(tuple(rows))


def _entropy(probabilities: Floats) -> Floats:
    total = probabilities.sum(axis=-1, keepdims=True)  # independent probabilities have any sum
    shares = np.maximum(probabilities / np.maximum(total, 1e-9), 1e-9)
    entropy: Floats = -(shares * np.log(shares)).sum(axis=-1)
    return entropy
