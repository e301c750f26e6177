"""Write the artifact of a network that was just trained."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model.artifact import Artifact, ArtifactCard, card_path, save_card, sha256_of
from model.errors import TrainingError
from model.networks.keras_model import class_weights_of, save_network
from model.tensorflow_engine import with_golden_answer


def refuse_output(h5_path: Path, data_dir: Path, *, force: bool) -> None:
    """Raise TrainingError, before training starts, if the network cannot be saved as `h5_path`."""
    if h5_path.suffix != ".h5":
        raise TrainingError(f"The network must be saved as an .h5. Received: {h5_path}")
    if h5_path.resolve().is_relative_to(data_dir.resolve()):
        raise TrainingError(f"The network must be saved outside the folder of images. Received: {h5_path}")
    nearest = next(parent for parent in h5_path.resolve().parents if parent.is_dir())
    if h5_path.is_dir() or not os.access(nearest, os.W_OK):
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


def _versions() -> dict[str, str]:
    return {
        "ext-classify": version("ext-classify"),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }
