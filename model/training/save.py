"""Save a trained network as an artifact: its .h5 and its card."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model.artifact import Artifact, ArtifactCard, save_card, sha256_of
from model.networks.registry import class_weights_of, save_network
from model.tensorflow_engine import with_golden_answer


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
