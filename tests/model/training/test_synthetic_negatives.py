"""Synthetic negatives vary, and the same seed gives the same ones."""

import numpy as np
import pytest

from model.training.augmentation import DRAWINGS, draw_negatives


@pytest.mark.parametrize("draw", DRAWINGS)
def test_each_drawing_varies(draw: object) -> None:
    random = np.random.default_rng(0)
    first, second = draw(30, 40, random), draw(30, 40, random)
    assert first.shape == (30, 40)
    assert np.isfinite(first).all()
    assert not np.array_equal(first, second)


def test_negatives_are_pixels_and_reproducible() -> None:
    pictures = draw_negatives(20, (16, 24, 3), np.random.default_rng(1))
    assert pictures.shape == (20, 16, 24, 3)
    assert pictures.min() >= 0
    assert pictures.max() <= 255
    assert np.array_equal(pictures, np.rint(pictures))
    assert np.array_equal(pictures, draw_negatives(20, (16, 24, 3), np.random.default_rng(1)))
