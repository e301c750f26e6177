"""ext-classify verify: check that the service can start with a model."""

import json
from pathlib import Path
from typing import get_args

from app.cli.command_line import Add, add_json
from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH, Engine, user_cache_dir
from model.engines import open_classifier


def add_commands(add: Add) -> None:
    command = add(
        "verify", verify, "check a model's hash, card, compiled model and self-test on its golden image"
    )
    command.add_argument(
        "model",
        type=Path,
        nargs="?",
        default=DEFAULT_MODEL_PATH,
        metavar="H5",
        help="(default: the shipped model)",
    )
    command.add_argument("--engine", choices=get_args(Engine), default="litert", help="(default: litert)")
    add_json(command)


def verify(model: Path, engine: Engine, as_json: bool) -> None:
    """Raises ArtifactError if the service would not start with the model."""
    artifact = load_artifact(model)
    open_classifier(artifact, engine, 1, user_cache_dir())
    if as_json:
        card = artifact.card
        about = {"name": artifact.name, "version": artifact.version, "engine": engine}
        print(json.dumps({**about, "class_names": card.class_names, "shape": card.image.shape}))
        return
    size = "x".join(map(str, artifact.card.image.shape))
    print(
        f"{artifact.name} {artifact.version}: {', '.join(artifact.card.class_names)}; {size}, engine {engine}"
    )
