"""Metrics computed by hand, and the printed evaluation of a whole split."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from model.artifact import Artifact
from model.evaluation.evaluate import Parity, compare, evaluate, predict_all
from model.image import encode_png
from model.training.folder import LabelledImages
from model.training.metrics import Metrics, measure
from tests.model.conftest import CLASS_NAMES, random_images

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25], [0.5, 0.4, 0.1]], np.float32)


def test_metrics_are_those_computed_by_hand() -> None:
    metrics = measure(PROBABILITIES, np.array([0, 2, 0, 1]))
    assert (metrics.images, metrics.correct, metrics.accuracy) == (4, 2, 0.5)
    loss = -(math.log(0.7) + math.log(0.6) + math.log(0.25) + math.log(0.4)) / 4
    assert metrics.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("label", "loss"), [(0, 1e-7), (1, -math.log(1e-7))])
def test_loss_of_a_certain_prediction_is_clipped_like_keras(label: int, loss: float) -> None:
    metrics = measure(np.array([[1.0, 0.0]], np.float32), np.array([label]))
    assert metrics == Metrics(1, 1 - label, 1.0 - label, pytest.approx(loss, rel=1e-3))


def test_parity_is_that_computed_by_hand() -> None:
    other = PROBABILITIES.copy()
    other[3] = [0.44, 0.46, 0.1]
    parity = compare(PROBABILITIES, other)
    assert parity == Parity(images=4, labels_equal=3, max_difference=pytest.approx(0.06, abs=1e-6))
    assert compare(PROBABILITIES, PROBABILITIES) == Parity(4, 4, 0.0)


class FirstPixel:
    """A classifier that returns each image's first pixel and records the batch sizes."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.batch_sizes.append(len(images))
        return images[:, 0, 0, :].astype(np.float32)


@pytest.mark.parametrize("count", [1, 8, 9, 100])
@pytest.mark.parametrize("threads", [1, 4])
def test_predictions_keep_the_order_of_the_images(count: int, threads: int) -> None:
    images = random_images(count)
    data = LabelledImages(images, np.zeros(count, np.int64), tuple(Path(str(i)) for i in range(count)))
    classifier = FirstPixel()
    assert np.array_equal(predict_all(classifier, data, threads), images[:, 0, 0, :])
    assert max(classifier.batch_sizes) <= 8


@pytest.mark.slow
def test_report_names_accuracy_of_both_engines_and_their_parity(artifact: Artifact, tmp_path: Path) -> None:
    pictures = random_images(6)
    for label, class_name in enumerate(CLASS_NAMES):
        folder = tmp_path / "test" / class_name
        folder.mkdir(parents=True)
        for number in (0, 1):
            (folder / f"{number}.png").write_bytes(encode_png(pictures[2 * label + number]))
    first, second = map(str, evaluate(artifact, tmp_path, "test", ("tensorflow", "litert")))
    assert re.fullmatch(r"tensorflow: \d of 6 right, accuracy \d+\.\d%, loss \d\.\d{3}", first)
    litert, _, parity = second.partition("; compared with the first engine, ")
    assert litert.removeprefix("litert") == first.removeprefix("tensorflow")
    equal, difference = parity.split(", largest probability difference ")
    assert equal == "6 of 6 labels equal"
    assert float(difference) <= 1e-5
