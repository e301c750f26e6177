"""Write artifacts: of a network that was just trained, or of an .h5 that was trained elsewhere."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model.array_json import ArrayJson
from model.artifact import Artifact, ArtifactCard, card_faults, card_path, save_card, sha256_of
from model.errors import ArtifactError, TrainingError
from model.importing import image_spec_of
from model.networks.keras_model import class_weights_of, load_network, save_network
from model.networks.network import network_of, refuse_mismatch, stages_of
from model.tensorflow_engine import with_golden_answer


def refuse_output(h5_path: Path, data_dir: Path, *, force: bool) -> None:
    """Raise TrainingError, before training starts, if the network cannot be saved as `h5_path`."""
    if h5_path.suffix != ".h5":
        raise TrainingError(f"The network must be saved as an .h5. Received: {h5_path}")
    if h5_path.resolve().is_relative_to(data_dir.resolve()):
        raise TrainingError(f"The network must be saved outside the folder of images. Received: {h5_path}")
    if h5_path.is_dir() or not os.access(_nearest_folder(h5_path), os.W_OK):
        raise TrainingError(f"The network must be saved where a file can be written. Received: {h5_path}")
    existing = [path for path in (h5_path, card_path(h5_path)) if path.exists()]
    if existing and not force:
        raise TrainingError(f"An existing network is replaced only with --force. Received: {existing[0]}")


def save(network: keras.Model, h5_path: Path, card_parts: dict[str, Any]) -> Artifact:
    """Write the .h5 and its card, including golden probabilities. Raises ArtifactError."""
    h5_path.parent.mkdir(parents=True, exist_ok=True)
    save_network(network, h5_path)
    card = ArtifactCard(
        **card_parts,
        scale=1.0,
        sha256=sha256_of(h5_path),
        class_weights=class_weights_of(network),
        versions=_versions(),
    )
    return save_card(h5_path, with_golden_answer(card, network))


def describe(h5_path: Path, class_names: Sequence[str], scale: float) -> Artifact:
    """Write <name>.json next to `h5_path`; image size and channels are read from the network.

    Raises ArtifactError if a card exists already, or the service could not serve the network.
    """
    if card_path(h5_path).exists():
        raise ArtifactError(
            f"The .h5 must have no card yet; remove the card to write another. Received: {card_path(h5_path)}"
        )
    if not h5_path.is_file():
        raise ArtifactError(f"The .h5 must exist. Missing: {h5_path}")
    network = network_of(load_network(h5_path))
    weights = network.class_weights
    with card_faults(h5_path):
        card = ArtifactCard(
            class_names=tuple(class_names),
            image=image_spec_of(network.input_shape, None),
            scale=scale,
            sha256=sha256_of(h5_path),
            class_weights=None if weights is None else ArrayJson.from_array(weights),
        )
    refuse_mismatch(network, card)
    stages = stages_of(network, card, card.ending)
    return save_card(h5_path, with_golden_answer(card, network, stages))


def _nearest_folder(path: Path) -> Path:
    """The first folder above `path` that exists."""
    return next(parent for parent in path.resolve().parents if parent.is_dir())


def _versions() -> dict[str, str]:
    return {
        "ext-classify": version("ext-classify"),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
