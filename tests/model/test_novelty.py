"""The service abstains on out-of-distribution images, and at its target rate on familiar ones."""

import numpy as np
import pytest

from model.novelty import OUT_OF_DISTRIBUTION, Novelty, distances_between, reasons_to_abstain
from model.training.calibration import FALSE_ABSTENTION, expected_accuracy, fit_novelty, fit_temperature

pytestmark = pytest.mark.slow

CLASSES, SIZE = 3, 8


def embeddings_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    means = 3 + 2 * np.eye(CLASSES, SIZE)
    return (means[labels] + 0.3 * random.normal(size=(count, SIZE))).astype(np.float32), labels


@pytest.fixture(scope="module")
def novelty() -> Novelty:
    embeddings, labels = embeddings_of(2000, 0)
    return fit_novelty(embeddings, labels, np.arange(2000))


def test_false_abstention_matches_its_target(novelty: Novelty) -> None:
    embeddings, _ = embeddings_of(5000, 1)
    abstained = (novelty.score(embeddings) > novelty.threshold).mean()
    assert FALSE_ABSTENTION / 3 < abstained < 3 * FALSE_ABSTENTION


@pytest.mark.parametrize("embedding", [np.zeros(SIZE), np.full(SIZE, 6.0), 10 * np.eye(SIZE)[7]])
def test_out_of_distribution_embedding_is_abstained_on(novelty: Novelty, embedding: np.ndarray) -> None:
    assert reasons_to_abstain(novelty, embedding[None].astype(np.float32), 1) == [OUT_OF_DISTRIBUTION]


def test_familiar_embedding_is_not_abstained_on(novelty: Novelty) -> None:
    embeddings, labels = embeddings_of(200, 2)
    centres = np.stack([embeddings[labels == label].mean(axis=0) for label in range(CLASSES)])
    assert reasons_to_abstain(novelty, centres, CLASSES) == [None] * CLASSES


def test_holding_out_groups_raises_the_threshold() -> None:
    """Related images are close together, so distances from held-out single images are too small."""
    random = np.random.default_rng(3)
    embeddings, labels = embeddings_of(40, 4)
    related = np.repeat(embeddings, 20, axis=0) + 0.01 * random.normal(size=(800, SIZE)).astype(np.float32)
    groups = np.repeat(np.arange(40), 20)
    grouped = fit_novelty(related, np.repeat(labels, 20), groups)
    single = fit_novelty(related, np.repeat(labels, 20), np.arange(800))
    fresh, _ = embeddings_of(2000, 5)
    assert (grouped.score(fresh) > grouped.threshold).mean() < (single.score(fresh) > single.threshold).mean()


def test_network_without_a_head_abstains_on_nothing() -> None:
    assert reasons_to_abstain(None, np.zeros((2, SIZE), np.float32), 2) == [None, None]


def test_score_is_equal_after_a_json_round_trip(novelty: Novelty) -> None:
    embeddings, _ = embeddings_of(50, 6)
    again = Novelty.model_validate_json(novelty.model_dump_json())
    assert np.array_equal(again.score(embeddings), novelty.score(embeddings))


def test_distances_are_euclidean() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(4, 3)).astype(np.float32), random.normal(size=(5, 3)).astype(np.float32)
    expected = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert np.allclose(distances_between(a, b), expected, atol=1e-5)


class TestTemperature:
    def test_confidence_equals_accuracy(self) -> None:
        random = np.random.default_rng(0)
        logits = 9 * random.normal(size=(4000, 4)).astype(np.float32)
        labels = np.where(random.random(4000) < 0.8, logits.argmax(axis=1), random.integers(0, 4, 4000))
        temperature = fit_temperature(logits, expected_accuracy(logits, labels))
        shifted = np.exp(logits / temperature)
        confidence = (shifted.max(axis=1) / shifted.sum(axis=1)).mean()
        assert confidence == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=0.002)

    def test_few_images_without_an_error_do_not_give_full_confidence(self) -> None:
        logits = 5 * np.eye(2, dtype=np.float32)[[0, 1] * 5]
        temperature = fit_temperature(logits, expected_accuracy(logits, np.array([0, 1] * 5)))
        assert 1 / (1 + np.exp(-5 / temperature)) == pytest.approx(11 / 12, abs=1e-3)
