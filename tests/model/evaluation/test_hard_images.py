"""Corrupted and out-of-distribution images, which robustness and abstention are measured on."""

import numpy as np
import pytest

from model.evaluation.hard_images import corruptions, out_of_distribution_sets
from model.image import ImageSpec, encode_png
from tests.model.conftest import random_images

SPEC = ImageSpec(height=40, width=60, channels=1)


def test_every_corruption_keeps_the_shape_and_changes_pixels() -> None:
    images = (random_images(2, SPEC) // 4 + 96).astype(np.uint8)
    for severities in corruptions().values():
        for corrupt in severities.values():
            corrupted = corrupt(images)
            assert corrupted.shape == images.shape
            assert corrupted.dtype == np.uint8
            assert not np.array_equal(corrupted, images)


def test_scale_zooms_about_the_centre() -> None:
    image = np.zeros((1, 41, 41, 1), np.uint8)
    image[:, 15:26, 15:26] = 200
    sizes = {name: (corrupt(image) > 100).sum() for name, corrupt in corruptions()["scale"].items()}
    assert sizes["x 1.4"] == pytest.approx(121 * 1.4**2, rel=0.15)
    assert sizes["x 0.7"] == pytest.approx(121 * 0.7**2, rel=0.2)


def test_folder_is_added_to_the_generated_sets(tmp_path) -> None:  # noqa: ANN001
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode_png(random_images(1, SPEC)[0]))
    (tmp_path / "photos" / "b.txt").write_text("no image")
    sets = out_of_distribution_sets(SPEC, [tmp_path / "photos"])
    assert set(sets) == {"blank", "noise", "shapes", "photos"}
    assert sets["photos"].shape == (1, *SPEC.shape)
    assert all(images.dtype == np.uint8 and images.shape[1:] == SPEC.shape for images in sets.values())
