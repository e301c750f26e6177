"""Ridge regression separates classes in closed form, and does not depend on the columns' units."""

import numpy as np
import pytest

from model.training.calibration import class_weights, fit_ridge


def rows(counts: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around one centre a class, in more dimensions than points."""
    labels = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 1.5, (len(counts), 80))
    return (centres[labels] + random.normal(size=(len(labels), 80))).astype(np.float32), labels


def test_unseen_points_are_classified() -> None:
    layer = fit_ridge(*rows((8, 8, 8)), 3)
    unseen, labels = rows((30, 30, 30), seed=1)
    assert (layer(unseen).argmax(axis=1) == labels).all()
    assert layer(unseen).sum(axis=1) == pytest.approx(np.ones(90), abs=1e-4)


def test_units_of_columns_do_not_matter() -> None:
    points, labels = rows((8, 8))
    units = np.geomspace(10, 1000, 80).astype(np.float32)
    expected = fit_ridge(points, labels, 2)(points)
    assert fit_ridge(points * units + 5, labels, 2)(points * units + 5) == pytest.approx(expected, abs=1e-2)


def test_class_without_images_is_never_answered() -> None:
    points, labels = rows((8, 8))
    assert (fit_ridge(points, labels, 3)(points).argmax(axis=1) < 2).all()


def test_rare_class_is_not_drowned() -> None:
    """Without weights, the rare class's scores stay below the frequent one's."""
    points, labels = rows((200, 6))
    recalled = fit_ridge(points, labels, 2, strength=1000.0)(rows((1, 50), seed=1)[0][1:]).argmax(axis=1)
    weights = class_weights(labels, 2)
    assert weights[1] > 5 * weights[0]
    assert recalled.mean() > 0.9
