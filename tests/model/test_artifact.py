"""A card must match its .h5, or loading fails."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.artifact import (
    Artifact,
    ArtifactCard,
    card_path,
    golden_image,
    load_artifact,
    save_card,
    sha256_of,
)
from model.defaults import DEFAULT_MODEL_PATH
from model.errors import ArtifactError
from model.image import ImageSpec

CONTENT = b"not a network: loading a card only hashes the file"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CARD: dict[str, Any] = {
    "class_names": ["crack", "dent"],
    "image": {"height": 20, "width": 30, "channels": 1},
    "scale": 1.0,
    "sha256": SHA256,
}


@pytest.fixture
def h5_path(tmp_path: Path) -> Path:
    path = tmp_path / "mill.h5"
    path.write_bytes(CONTENT)
    return path


def write_card(h5_path: Path, **changes: Any) -> None:
    card_path(h5_path).write_text(json.dumps({**CARD, **changes}), encoding="utf-8")


def test_hand_written_card_of_four_fields_is_enough(h5_path: Path) -> None:
    write_card(h5_path)
    artifact = load_artifact(h5_path)
    assert artifact.card.class_names == ("crack", "dent")
    assert artifact.card.image == ImageSpec(height=20, width=30, channels=1)
    assert artifact.card.golden_probabilities is None


def test_saved_card_round_trips(h5_path: Path) -> None:
    card = ArtifactCard(
        class_names=("Kratzer ⌀", "裂纹"),
        image=ImageSpec(height=3, width=4, channels=3, resample="lanczos"),
        scale=1 / 255,
        sha256=sha256_of(h5_path),
        golden_probabilities=(0.1, 0.9),
        metrics={"test": {"accuracy": 0.5}},
        training={"seed": 3},
        versions={"keras": "3"},
    )
    assert load_artifact(save_card(h5_path, card).h5_path) == Artifact(h5_path, card)
    assert "裂纹" in card_path(h5_path).read_text(encoding="utf-8")


def test_name_and_version_come_from_the_file(h5_path: Path) -> None:
    write_card(h5_path)
    artifact = load_artifact(h5_path)
    assert artifact.name == "mill"
    assert artifact.version == SHA256[:12]


def test_version_changes_with_the_weights(h5_path: Path) -> None:
    write_card(h5_path)
    before = load_artifact(h5_path).version
    h5_path.write_bytes(CONTENT + b"!")
    write_card(h5_path, sha256=sha256_of(h5_path))
    assert load_artifact(h5_path).version != before


def test_one_flipped_bit_is_refused(h5_path: Path) -> None:
    write_card(h5_path)
    flipped = bytearray(CONTENT)
    flipped[7] ^= 0b100
    h5_path.write_bytes(flipped)
    with pytest.raises(ArtifactError, match=rf"{SHA256}\. Received: {sha256_of(h5_path)}"):
        load_artifact(h5_path)


def test_missing_card_is_named(h5_path: Path) -> None:
    shutil.copy(DEFAULT_MODEL_PATH, h5_path)
    with pytest.raises(ArtifactError, match=r"Missing: .*mill\.json"):
        load_artifact(h5_path)


def test_missing_h5_is_named(h5_path: Path) -> None:
    write_card(h5_path)
    h5_path.unlink()
    with pytest.raises(ArtifactError, match=r"Missing: .*mill\.h5"):
        load_artifact(h5_path)


def test_os_error_names_the_file_and_the_reason(tmp_path: Path) -> None:
    """Opens a file whose name is too long, because root may read a file without read permission."""
    h5_path = tmp_path / f"{'m' * 300}.h5"
    with pytest.raises(
        ArtifactError, match=r"m\.h5 must be readable by the user \d+\. Received: File name too"
    ):
        load_artifact(h5_path)


@pytest.mark.parametrize("missing", sorted(CARD))
def test_missing_field_is_named(h5_path: Path, missing: str) -> None:
    card = {name: value for name, value in CARD.items() if name != missing}
    card_path(h5_path).write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"{missing}: Field required"):
        load_artifact(h5_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classes": ["a"]}, "classes"),
        ({"class_names": ["only"]}, "class_names"),
        ({"class_names": ["crack", ""]}, "class_names.1"),
        ({"class_names": ["crack", 7]}, "class_names.1"),
        ({"class_names": ["dent", "dent"]}, "each class once"),
        ({"image": {"height": 0, "width": 30, "channels": 1}}, "image.height"),
        ({"image": {"height": 20, "width": 30, "channels": 2}}, "image.channels"),
        ({"image": {"height": 20, "width": 30, "channels": 1, "depth": 8}}, "image.depth"),
        ({"scale": 0}, "scale"),
        ({"scale": -1.0}, "scale"),
        ({"scale": 1e999}, "scale"),
        ({"sha256": SHA256.upper()}, "sha256"),
        ({"sha256": SHA256[:-1]}, "sha256"),
        ({"golden_probabilities": []}, "golden_probabilities"),
        ({"golden_probabilities": [1.0]}, "golden_probabilities"),
        ({"golden_probabilities": [0.2, 0.3, 0.5]}, "golden_probabilities"),
    ],
)
def test_invalid_card_is_refused_and_the_field_named(
    h5_path: Path, changes: dict[str, Any], named: str
) -> None:
    write_card(h5_path, **changes)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(h5_path)
    assert named in str(caught.value)
    assert str(card_path(h5_path)) in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"class_names": '])
def test_card_that_is_not_a_json_object_is_refused(h5_path: Path, text: bytes) -> None:
    card_path(h5_path).write_bytes(text)
    with pytest.raises(ArtifactError, match="a valid card: the"):
        load_artifact(h5_path)


@pytest.mark.parametrize(
    ("shape", "sha256"),
    [
        ((200, 200, 3), "5b40fed8afe4a82b125013dcd0b89d3bf6af6d32c5d8749eac1c4306b9e80426"),
        ((20, 30, 1), "d39b2f169c0d4101635acd0486e541beea49b9cc90cc49340baafc95e745fef1"),
    ],
)
def test_golden_image_is_the_same_everywhere(shape: tuple[int, int, int], sha256: str) -> None:
    """Existing cards contain probabilities for exactly this image."""
    height, width, channels = shape
    image = golden_image(ImageSpec(height=height, width=width, channels=channels))
    assert image.shape == shape
    assert image.dtype == "uint8"
    assert hashlib.sha256(image.tobytes()).hexdigest() == sha256
