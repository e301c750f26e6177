"""Preprocessing is read as people write it, and its presets are those of Keras and Teachable Machine."""

import keras
import numpy as np
import pytest
from pydantic import ValidationError

from model.artifact import ArtifactCard
from model.image import ImageSpec
from model.preprocessing import PRESETS, Preprocessing, parse_number

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 5, 7, 3)).astype(np.float32)


def apply(preprocessing: Preprocessing) -> np.ndarray:
    ordered = PIXELS[..., ::-1] if preprocessing.order == "bgr" else PIXELS
    return ordered * np.array(preprocessing.scale, np.float32) + np.array(preprocessing.offset, np.float32)


@pytest.mark.parametrize(("preset", "mode"), [("symmetric", "tf"), ("caffe", "caffe"), ("torch", "torch")])
def test_preset_is_the_mode_of_keras(preset: str, mode: str) -> None:
    expected = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode=mode)
    assert np.allclose(apply(PRESETS[preset]), expected, atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1/255", 1 / 255),
        ("1./255", 1 / 255),
        ("1.0 / 255.0", 1 / 255),
        ("1/127.5", 1 / 127.5),
        ("0.00392", 0.00392),
        ("1e-3", 1e-3),
        ("-1", -1.0),
        ("2", 2.0),
    ],
)
def test_number_is_read_as_people_write_it(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "1/0", "1//2", "1/2/3", "x", "e", "1/", "__import__('os')"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Received"):
        parse_number(text)


@pytest.mark.parametrize(
    "given", [{"scale": (1.0, 2.0)}, {"scale": (0.0,)}, {"offset": (float("nan"),)}, {"order": "grb"}]
)
def test_invalid_preprocessing_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(given)


@pytest.mark.parametrize(
    "more",
    [
        {"scale": 1 / 255, "preprocessing": PRESETS["unit"]},
        {"image": ImageSpec(height=4, width=4, channels=1), "preprocessing": PRESETS["caffe"]},
        {"ending": "sigmoid", "class_names": ("a", "b", "c")},
    ],
    ids=["two-scales", "grey-in-colours", "three-of-one"],
)
def test_card_that_contradicts_itself_is_refused(more: dict[str, object]) -> None:
    image = ImageSpec(height=4, width=4, channels=3)
    card = {"class_names": ("a", "b"), "image": image, "scale": 1.0, "sha256": "0" * 64}
    assert ArtifactCard.model_validate(card).stages_sha256 is None
    with pytest.raises(ValidationError):
        ArtifactCard.model_validate({**card, **more})
