"""The compiled model of an .h5: <name>.tflite, and its stamp <name>.tflite.json.

The stamp records the SHA-256 of both files, so a compiled model is used only with the .h5 that it was
compiled from.
"""

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from model.artifact import Artifact, file_faults, next_to
from model.errors import ArtifactError


class Stamp(BaseModel, frozen=True):
    """Contents of <name>.tflite.json."""

    h5_sha256: str
    sha256: str
    stages_sha256: str | None = None
    """Of the card's preprocessing and ending, which are compiled into the network."""
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class CompiledPaths:
    """Paths of a compiled model and its stamp, which may not exist yet."""

    tflite: Path

    @property
    def stamp(self) -> Path:
        return self.tflite.with_name(self.tflite.name + ".json")


def next_to_h5(artifact: Artifact) -> CompiledPaths:
    return CompiledPaths(next_to(artifact.h5_path, ".tflite"))


def in_cache(artifact: Artifact, cache_dir: Path) -> CompiledPaths:
    stages = artifact.card.stages_sha256
    suffix = "" if stages is None else f".{stages[:16]}"
    return CompiledPaths(cache_dir / f"{artifact.card.sha256}{suffix}.tflite")


@file_faults()
def load_compiled(artifact: Artifact, cache_dir: Path) -> bytes:
    """Return the compiled model: the one next to the .h5, else from the cache, else compiled now.

    Compilation takes seconds, requires TensorFlow and runs in a subprocess. Raises ArtifactError with the
    command to run if TensorFlow is not installed.
    """
    cache_paths = in_cache(artifact, cache_dir)
    for paths in (next_to_h5(artifact), cache_paths):
        if (compiled := read_compiled(artifact, paths)) is not None:
            return compiled
    if artifact.card.int8 is not None:
        raise ArtifactError(
            f"{artifact.h5_path} must have the int8 model that its card names. Received: none, or another. "
            "Quantise it again, ext-classify compile --int8 --images DIR, or return to float32, "
            f"ext-classify compile --model {shlex.quote(str(artifact.h5_path))}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise ArtifactError(
            f"{artifact.h5_path} must have a matching compiled model. Received: none, and TensorFlow is not "
            f"installed to compile one. Where it is installed (in a clone: make dev), run: "
            f"ext-classify compile --model {shlex.quote(str(artifact.h5_path))}"
        )
    _compile_in_subprocess(artifact, cache_paths)
    compiled = read_compiled(artifact, cache_paths)
    if compiled is None:
        raise ArtifactError(
            f"{cache_paths.tflite} must match the .h5 that it was compiled from. Received: another sha256."
        )
    return compiled


def read_compiled(artifact: Artifact, paths: CompiledPaths) -> bytes | None:
    """Return the compiled model, or None if it is missing or its stamp does not match."""
    try:
        stamp = Stamp.model_validate_json(paths.stamp.read_bytes())
        compiled = paths.tflite.read_bytes()
    except (FileNotFoundError, ValidationError):
        return None
    matches = (
        stamp.h5_sha256 == artifact.card.sha256
        and stamp.stages_sha256 == artifact.card.stages_sha256
        and stamp.sha256 == hashlib.sha256(compiled).hexdigest()
    )
    return compiled if matches else None


def write_compiled(
    artifact: Artifact, paths: CompiledPaths, compiled: bytes, versions: dict[str, str]
) -> None:
    """Write the compiled model, then its stamp, each atomically."""
    stamp = Stamp(
        h5_sha256=artifact.card.sha256,
        sha256=hashlib.sha256(compiled).hexdigest(),
        stages_sha256=artifact.card.stages_sha256,
        versions=versions,
    )
    paths.tflite.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(paths.tflite, compiled)
    _write_atomically(paths.stamp, stamp.model_dump_json(indent=2).encode() + b"\n")


def _write_atomically(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _compile_in_subprocess(artifact: Artifact, paths: CompiledPaths) -> None:
    command = [sys.executable, "-P", "-m", "model.compile", str(artifact.h5_path), str(paths.tflite)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        reason = finished.stderr.strip().rpartition("\n")[2]
        raise ArtifactError(f"{artifact.h5_path} could not be compiled: {reason}")
