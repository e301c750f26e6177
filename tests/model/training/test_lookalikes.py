"""Modified copies are found; images that are only similar are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from model.training.folder import find_copies, find_lookalikes

SIDE = 120


def texture(seed: int) -> np.ndarray:
    """Patches of several sizes, like those of a surface."""
    random = np.random.default_rng(seed)
    coarse, fine = random.integers(60, 190, (12, 12)), random.normal(0, 12, (SIDE, SIDE))
    return np.clip(np.kron(coarse, np.ones((10, 10))) + fine, 0, 255).astype(np.uint8)


def saved_as_jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def made_smaller(pixels: np.ndarray) -> np.ndarray:
    small = Image.fromarray(pixels).resize((70, 70), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def made_darker(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.8).astype(np.uint8)


def pairs(images: list[np.ndarray], labels: list[int], groups: list[int]) -> list[tuple[int, int]]:
    stacked = np.stack(images)[..., np.newaxis]
    return list(find_lookalikes(stacked, np.array(labels), np.array(groups)))


@pytest.mark.parametrize("changed", [saved_as_jpeg, made_smaller, made_darker, np.copy])
def test_modified_copies_look_alike(changed: Callable[[np.ndarray], np.ndarray]) -> None:
    images = [texture(1), texture(2), changed(texture(1)), texture(3)]
    assert pairs(images, [0, 0, 0, 0], [0, 1, 2, 3]) == [(0, 2)]


@pytest.mark.parametrize(
    ("labels", "groups"), [([0, 1], [0, 1]), ([0, 0], [5, 5])], ids=["two classes", "one group"]
)
def test_only_different_groups_of_one_class_are_compared(labels: list[int], groups: list[int]) -> None:
    assert pairs([texture(1), texture(1)], labels, groups) == []


def test_flat_images_are_not_compared() -> None:
    faint = np.tile(128 + np.arange(SIDE) // 50, (SIDE, 1)).astype(np.uint8)
    assert pairs([faint, faint + 40], [0, 0], [0, 1]) == []
    assert pairs([10 * (faint - 120), faint], [0, 0], [0, 1]) == []
    assert pairs([10 * (faint - 120), 5 * (faint - 120)], [0, 0], [0, 1]) == [(0, 1)]


@pytest.mark.parametrize("shape", [(20, 90, 3), (7, 7, 1), (1, 40, 1)])
def test_any_shape_has_a_pattern(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, *shape), dtype=np.uint8)
    images[2] = images[0]
    assert list(find_lookalikes(images, np.zeros(3, np.int64), np.arange(3))) == [(0, 2)]


def test_many_copies_give_fewer_pairs_than_images() -> None:
    found = pairs([texture(1)] * 700, [0] * 700, list(range(700)))
    assert found == [(place, place + 1) for place in range(699)]


def test_copies_are_equal_pixels() -> None:
    images = np.stack([texture(1), texture(2), texture(1), made_darker(texture(1))])[..., np.newaxis]
    assert find_copies(images) == [[0, 2]]
