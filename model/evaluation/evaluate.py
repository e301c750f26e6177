"""Accuracy of engines on labelled images, and the agreement between engines."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.arrays import Floats
from model.artifact import Artifact
from model.defaults import Engine, usable_cores, user_cache_dir
from model.engines import Classifier, open_classifier
from model.training.folder import LabelledImages, load_part
from model.training.metrics import Metrics, measure

_BATCH_SIZE = 8


@dataclass(frozen=True)
class Parity:
    """Difference between two engines' predictions for the same images."""

    images: int
    labels_equal: int
    max_difference: float

    def __str__(self) -> str:
        return (
            f"{self.labels_equal} of {self.images} labels equal, "
            f"largest probability difference {self.max_difference:.1e}"
        )


def compare(a: Floats, b: Floats) -> Parity:
    """Compare two engines' probabilities (n, k)."""
    labels_equal = int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
    return Parity(len(a), labels_equal, float(np.abs(a - b).max()))


def predict_all(classifier: Classifier, data: LabelledImages, threads: int) -> Floats:
    """Probabilities (n, k) for all images of a split, computed in `threads` threads."""
    batches = np.array_split(data.images, -(-len(data) // _BATCH_SIZE))
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(classifier.predict, batches)))


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one engine on a split, and its parity with the first engine (None for the first engine)."""

    engine: Engine
    metrics: Metrics
    parity: Parity | None

    def __str__(self) -> str:
        correct = f"{self.metrics.correct} of {self.metrics.images} right"
        summary = f"{correct}, accuracy {self.metrics.accuracy:.1%}, loss {self.metrics.loss:.3f}"
        if self.parity is None:
            return f"{self.engine}: {summary}"
        return f"{self.engine}: {summary}; compared with the first engine, {self.parity}"


def evaluate(
    artifact: Artifact, data_dir: Path, split: str, engines: Sequence[Engine]
) -> Iterator[Evaluation]:
    """Yield the metrics of each engine on a split as soon as they are computed."""
    card = artifact.card
    data = load_part(data_dir, split, card.class_names, card.image)
    reference = None
    for engine in engines:
        classifier = open_classifier(artifact, engine, usable_cores(), user_cache_dir())
        probabilities = predict_all(classifier, data, usable_cores())
        parity = None if reference is None else compare(reference, probabilities)
        reference = probabilities if reference is None else reference
        yield Evaluation(engine, measure(probabilities, data.labels), parity)
