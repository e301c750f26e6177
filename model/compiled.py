"""The compiled twin of an h5: <name>.tflite, and <name>.tflite.json, the stamp that binds the two.

The stamp names both files by sha256, so a twin is used only for the very h5 it was compiled from.
"""

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from model.artifact import Artifact, file_faults
from model.errors import ArtifactError


class Stamp(BaseModel):
    """What <name>.tflite.json states."""

    model_config = ConfigDict(frozen=True)

    h5_sha256: str
    sha256: str
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class CompiledPaths:
    """Where a twin and its stamp stand, or would stand."""

    tflite: Path

    @property
    def stamp(self) -> Path:
        return self.tflite.with_name(self.tflite.name + ".json")


def beside(artifact: Artifact) -> CompiledPaths:
    return CompiledPaths(artifact.h5_path.with_suffix(".tflite"))


def cached(artifact: Artifact, cache_dir: Path) -> CompiledPaths:
    return CompiledPaths(cache_dir / f"{artifact.card.sha256}.tflite")


@file_faults()
def load_compiled(artifact: Artifact, cache_dir: Path) -> bytes:
    """The compiled network of this very h5: from beside it, else from the cache, else compiled now.

    Compiling takes seconds and TensorFlow, and happens in a process of its own. Raises ArtifactError
    with the command to run where TensorFlow is not installed.
    """
    in_cache = cached(artifact, cache_dir)
    for paths in (beside(artifact), in_cache):
        if (compiled := read_twin(artifact, paths)) is not None:
            return compiled
    if importlib.util.find_spec("tensorflow") is None:
        raise ArtifactError(
            f"{artifact.h5_path} has no compiled twin with its sha256, and compiling takes TensorFlow, "
            f"which is not installed here. Where it is (in a clone: make dev), run: "
            f"ext-classify compile --model {shlex.quote(str(artifact.h5_path))}"
        )
    _compile_in_subprocess(artifact, in_cache)
    compiled = read_twin(artifact, in_cache)
    if compiled is None:
        raise ArtifactError(f"{in_cache.tflite} does not match the h5 it was just compiled from.")
    return compiled


def read_twin(artifact: Artifact, paths: CompiledPaths) -> bytes | None:
    """The twin's bytes, or None when it is missing, or not the twin of this h5."""
    try:
        stamp = Stamp.model_validate_json(paths.stamp.read_bytes())
        compiled = paths.tflite.read_bytes()
    except (FileNotFoundError, ValidationError):
        return None
    matches = stamp.h5_sha256 == artifact.card.sha256 and stamp.sha256 == hashlib.sha256(compiled).hexdigest()
    return compiled if matches else None


def write_twin(artifact: Artifact, paths: CompiledPaths, compiled: bytes, versions: dict[str, str]) -> None:
    """Write twin and stamp; each appears whole or not at all, the stamp last."""
    stamp = Stamp(
        h5_sha256=artifact.card.sha256,
        sha256=hashlib.sha256(compiled).hexdigest(),
        versions=versions,
    )
    paths.tflite.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(paths.tflite, compiled)
    _write_whole(paths.stamp, stamp.model_dump_json(indent=2).encode() + b"\n")


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _compile_in_subprocess(artifact: Artifact, paths: CompiledPaths) -> None:
    command = [sys.executable, "-P", "-m", "model.compile", str(artifact.h5_path), str(paths.tflite)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        reason = finished.stderr.strip().rpartition("\n")[2]
        raise ArtifactError(f"{artifact.h5_path} could not be compiled: {reason}")
