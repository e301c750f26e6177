"""The shipped artifact recognizes the sample images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.app.forms import post_source, text_of
from tests.conftest import SAMPLES
from tests.draw_samples import SEEDS, draw


def test_each_class_has_one_sample(client: TestClient) -> None:
    class_names = client.get("/model").json()["class_names"]
    assert sorted(path.stem for path in SAMPLES.glob("*.png")) == sorted(n.lower() for n in class_names)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.png")), ids=lambda path: path.stem)
def test_sample_is_recognised(client: TestClient, path: Path) -> None:
    outcome = post_source(client, text_of(path.read_bytes()))
    assert outcome["label"].lower() == path.stem
    assert outcome["confidence"] > 0.8


@pytest.mark.parametrize("name", SEEDS)
def test_sample_equals_the_drawing(name: str) -> None:
    shipped = np.asarray(Image.open(SAMPLES / f"{name}.png"), dtype=np.int16)
    # The rounding of a pixel may differ between processors.
    assert np.abs(shipped - draw(name, SEEDS[name])).max() <= 1
