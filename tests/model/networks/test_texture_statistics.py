"""The frozen network's statistics are means and deviations of feature maps; its scores give evidence."""

from pathlib import Path

import keras
import numpy as np
import pytest

from model.compile import compile_network
from model.engines import LiteRtClassifier
from model.image import ImageSpec
from model.networks.keras_model import find_head, load_network, save_network
from model.networks.pretrained_blocks import STATISTICS, statistics_classifier, statistics_network
from tests.model.conftest import random_images

pytestmark = pytest.mark.slow

# Grids of 18 x 25, 9 x 13 and 5 x 7: none divides the one before.
GREY = ImageSpec(height=72, width=100, channels=1)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return statistics_classifier(GREY, 4)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(3, GREY)


def test_statistics_are_proportional_to_means_and_deviations(images: np.ndarray) -> None:
    whole = statistics_network(GREY)
    last = [layer for layer in whole.layers if isinstance(layer, keras.layers.Add)][-1].output
    first = next(layer for layer in whole.layers if isinstance(layer, keras.layers.Add)).output
    maps = keras.Model(whole.input, [first, last])(images.astype(np.float32))
    found = np.asarray(whole(images.astype(np.float32))["statistics"])
    assert found.shape == (3, STATISTICS)
    for values, place, share in ((maps[0], 0, 18 * 25 / (20 * 28)), (maps[1], STATISTICS - 160, 1.0)):
        channels = values.shape[-1]
        means, deviations = np.mean(values, axis=(1, 2)), np.std(values, axis=(1, 2))
        assert np.allclose(found[:, place:][:, :channels], share * means, atol=1e-4)
        assert np.allclose(found[:, place + channels :][:, :channels], share * deviations, atol=1e-3)


def test_saved_and_compiled_network_gives_the_same_answers(
    network: keras.Model, images: np.ndarray, tmp_path: Path
) -> None:
    save_network(network, tmp_path / "n.h5")
    loaded = load_network(tmp_path / "n.h5")
    expected = np.asarray(network(images.astype(np.float32)))
    assert np.array_equal(loaded(images.astype(np.float32)), expected)
    compiled = LiteRtClassifier(compile_network(loaded, GREY.shape), 1.0, 1)
    answers = compiled.answer(images, with_features=True)
    assert np.allclose(answers.probabilities, expected, atol=1e-5)
    assert answers.features is not None
    assert answers.embeddings is not None
    assert np.allclose(answers.features.mean(axis=(1, 2)), answers.embeddings, atol=1e-4)


def test_head_gives_evidence(network: keras.Model) -> None:
    head = find_head(network)
    assert head is not None
    assert head.features.shape[1:] == (5, 7, STATISTICS)
    assert head.class_weights.shape == (STATISTICS, 4)
