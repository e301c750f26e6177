"""An artifact: <name>.h5 (the network), <name>.json (its card), <name>.tflite (compiled) and its stamp.

Training writes an artifact and the service loads one. The card identifies its .h5 by SHA-256, so a
different file under the same name is rejected. In place of the .h5, an imported network may be an .hdf5,
.keras or .tflite file or the folder of a SavedModel.
"""

import hashlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from model.arrays import ArrayJson, Ints, Pixels
from model.defaults import samples_folder
from model.errors import ArtifactError
from model.image import ImageSpec, encode_png
from model.model_file import fault_of, import_command, inspect_file, refuse_unusable
from model.novelty import Novelty
from model.preprocessing import MULTI_LABEL, ONE_OUTPUT, Ending, Preprocessing

ClassName = Annotated[str, Field(pattern=r"\S")]


class Float32(BaseModel, frozen=True, extra="forbid"):
    """Fields of a card that quantisation replaces, with their values for the float32 network."""

    temperature: float | None
    golden_probabilities: tuple[float, ...] | None
    golden_tolerance: float
    golden_novelty: float | None

    @classmethod
    def of(cls, card: "ArtifactCard") -> Self:
        return cls.model_validate(card.model_dump(include=set(cls.model_fields)))


class Int8(BaseModel, frozen=True, extra="forbid"):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the compiled model, which cannot be compiled again without the images."""
    float32: Float32


class ArtifactCard(BaseModel, frozen=True, extra="forbid"):
    """Contents of <name>.json. Only fields without a default are needed for a network trained elsewhere."""

    class_names: Annotated[tuple[ClassName, ...], Field(min_length=2)]
    """In the order of the network's outputs."""
    image: ImageSpec
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Factor applied to pixels 0..255 before the network; 1.0 if the network rescales them itself."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    preprocessing: Preprocessing | None = None
    """Compiled into the network, after `scale`, which is then 1."""
    is_given_tflite: bool = False
    """Whether the network is a .tflite, which is served as it is; NumPy preprocesses its pixels."""
    ending: Ending = "probabilities"
    """What the network's outputs are; the compiled network has probabilities."""
    preprocessing_check: str | None = None
    """For an imported network: what was done to check its preprocessing, and the result."""
    is_unchecked: bool = False
    """Whether the service warns at each start: no images checked the preprocessing, or they contradict it."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Compiled into the network, where it divides the logits; fitted by `calibrate`. Training folds its own
    into the weights.
    """
    golden_probabilities: tuple[float, ...] | None = None
    """Output of the reference engine for `golden_image(image)`, for the self-test."""
    golden_tolerance: Annotated[float, Field(gt=0, le=0.05)] = 1e-4
    """Largest difference in the self-test. The engines agree to about 1e-6, on deep networks and in int8
    less; a wrong network or scale causes a far larger difference.
    """
    class_weights: ArrayJson | None = None
    """Weights (d, k) of the last layer, if the network ends in global average pooling and one dense layer.
    With the last feature map, they give the evidence.
    """
    novelty: Novelty | None = None
    """Detects out-of-distribution images, on which the service abstains."""
    golden_novelty: float | None = None
    """The score of `golden_image(image)`, for the self-test."""
    int8: Int8 | None = None
    """If the compiled model is in int8; temperature and golden answers are then those of int8."""
    shows_occlusion: bool = False
    """Whether evidence is found by hiding parts of the image, for a network without `class_weights`."""
    metrics: dict[str, Any] = {}
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names must list each class once. Received: {self.class_names}")
        golden = self.golden_probabilities
        if golden is not None and len(golden) != len(self.class_names):
            raise ValueError(f"golden_probabilities must have one value per class. Received: {len(golden)}")
        if self.preprocessing is not None:
            self._check_preprocessing(self.preprocessing)
        if self.ending in ONE_OUTPUT and len(self.class_names) != 2:
            raise ValueError(f"a network with one output must have two classes. Received: {self.class_names}")
        weights = self.class_weights
        if weights is not None and (len(weights.shape), weights.shape[-1]) != (2, len(self.class_names)):
            raise ValueError(
                f"class_weights must have the shape (d, number of classes). Received: {weights.shape}"
            )
        if self.novelty is not None and self.novelty.embedding == "network":
            rows = weights.shape[0] if weights is not None else None
            expected = self.novelty.whitening.shape[0]
            if expected != rows:
                raise ValueError(f"novelty requires class_weights with {expected} rows. Received: {rows}")
        return self

    def _check_preprocessing(self, preprocessing: Preprocessing) -> None:
        if self.scale != 1:
            raise ValueError(f"scale must be 1 with preprocessing. Received: {self.scale}")
        channels = max(len(preprocessing.scale), len(preprocessing.offset))
        if self.image.channels == 1 and (channels > 1 or preprocessing.order != "rgb"):
            raise ValueError(
                f"preprocessing of one channel must have one value and no order. Received: {preprocessing}"
            )

    @property
    def float32(self) -> "ArtifactCard":
        """The card of the network before it was quantised, which the tensorflow engine runs."""
        if self.int8 is None:
            return self
        metrics = {name: value for name, value in self.metrics.items() if name != "int8"}
        return self.model_copy(update={**dict(self.int8.float32), "int8": None, "metrics": metrics})

    @property
    def is_multi_label(self) -> bool:
        """Whether the classes' probabilities are independent, so that their sum is not 1."""
        return self.ending in MULTI_LABEL

    @property
    def is_calibrated(self) -> bool:
        return self.temperature is not None or "temperature" in self.training

    @property
    def missing(self) -> list[str]:
        """What outcomes lack: `confidence` is then the network's own, `abstained` false, `evidence` null."""
        parts = {
            "calibration": self.is_calibrated,
            "abstention": self.novelty is not None,
            "evidence": self.class_weights is not None or self.shows_occlusion,
        }
        return [name for name, is_present in parts.items() if not is_present]

    @property
    def stages_sha256(self) -> str | None:
        """Hash of what is compiled before and after the network and of its int8 model; None if nothing is."""
        is_pretrained = self.novelty is not None and self.novelty.embedding == "pretrained"
        is_calibrated = is_pretrained or self.temperature is not None
        is_plain = self.preprocessing is None and self.ending == "probabilities" and not is_calibrated
        if is_plain and self.int8 is None:
            return None
        size = {"height", "width", "channels"}
        parts = self.model_dump_json(include={"preprocessing": True, "ending": True, "image": size})
        if is_calibrated:
            parts += f"{self.temperature} {is_pretrained}"
        if self.int8 is not None:
            parts += self.int8.sha256
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """A network file and its verified card."""

    h5_path: Path
    card: ArtifactCard

    @property
    def name(self) -> str:
        return self.h5_path.stem

    @property
    def version(self) -> str:
        """First 12 hex digits of the .h5's SHA-256, so the version changes with the weights."""
        return self.card.sha256[:12]


@dataclass(frozen=True)
class WrittenArtifact:
    """An artifact that has been written, and what the user must know of it."""

    artifact: Artifact
    findings: tuple[str, ...]
    warnings: tuple[str, ...]


SUFFIXES = (".h5", ".hdf5", ".keras", ".tflite")
MAX_SAMPLES = 12


def folder_of_class(name: str) -> str:
    """What the name of a class's folder must be, apart from case: no folder's name contains a slash."""
    return name.strip().casefold().replace("/", "_")


def card_path(h5_path: Path) -> Path:
    """Path of the .json card next to a network. Raises ArtifactError for a file with another suffix."""
    if h5_path.suffix not in SUFFIXES and not (h5_path / "saved_model.pb").is_file():
        raise ArtifactError(
            f"A network must be a file with the suffix {', '.join(SUFFIXES)}, or a SavedModel folder. "
            f"Received: {str(h5_path)!r}"
        )
    return next_to(h5_path, ".json")


def next_to(h5_path: Path, suffix: str) -> Path:
    stem = h5_path.stem if h5_path.suffix in SUFFIXES else h5_path.name
    return h5_path.with_name(stem + suffix)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files in a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_faults() -> Iterator[None]:
    """Convert an OSError to an ArtifactError that names the file and the user ID.

    In a container, the user often lacks read permission on a volume.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{error.filename} must be readable by the user {os.getuid()}. Received: {error.strerror}."
        ) from None


@file_faults()
def load_artifact(h5_path: Path) -> Artifact:
    """Load the card next to `h5_path` and verify the SHA-256 of the .h5.

    Raises ArtifactError if a file is missing or unreadable, the card is invalid, or the SHA-256 differs.
    """
    if not h5_path.exists():
        raise ArtifactError(f"An artifact needs a network and its .json card. Missing: {h5_path}")
    if not card_path(h5_path).is_file():
        refuse_unusable(h5_path)
        raise ArtifactError(
            f"An artifact needs a network and its .json card. Missing: {card_path(h5_path)}. "
            f"To write it, run: {import_command(h5_path)}"
        )
    with card_faults(h5_path):
        card = ArtifactCard.model_validate_json(card_path(h5_path).read_bytes())
    actual = sha256_of(h5_path)
    if actual != card.sha256:
        fault = fault_of(inspect_file(h5_path))
        raise ArtifactError(
            f"{h5_path} must have the sha256 that its card names, {card.sha256}. "
            f"Received: {actual}{f', {fault}' if fault else '.'}"
        )
    return Artifact(h5_path, card)


@contextmanager
def card_faults(h5_path: Path) -> Iterator[None]:
    """Convert a ValidationError to an ArtifactError that lists every invalid field."""
    try:
        yield
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the card'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ArtifactError(f"{card_path(h5_path)} must be a valid card: {faults}") from None


def save_card(h5_path: Path, card: ArtifactCard) -> Artifact:
    text = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    card_path(h5_path).write_text(text + "\n", encoding="utf-8")
    return Artifact(h5_path, card)


def save_samples(h5_path: Path, images: Pixels, labels: Ints, class_names: Sequence[str]) -> None:
    """Write one image (h, w, c) of each class, up to MAX_SAMPLES, for the playground and local SQL.

    They replace the samples of a former network of that name.
    """
    folder = samples_folder(h5_path)
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.glob("*.png"):
        old.unlink()
    present, first = np.unique(labels, return_index=True)
    for label, index in list(zip(present, first, strict=True))[:MAX_SAMPLES]:
        name = re.sub(r"[^\w-]+", "_", class_names[label])
        (folder / f"{label:02}-{name}.png").write_bytes(encode_png(images[index]))


def golden_image(spec: ImageSpec) -> Pixels:
    """Fixed test pattern (h, w, c), uint8, identical on every machine. It contains no photographic data."""
    y, x, c = np.indices(spec.shape, dtype=np.int64)
    picture: Pixels = ((x * x + 3 * y * y + 5 * x * y) // 97 + 31 * c).astype(np.uint8)
    return picture


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
