"""Recognises what a file holds that should be a network, and says which command helps if it is unusable.

It reads bytes only: TensorFlow takes seconds to start, and where the service only serves there is no h5py.
"""

import json
import mmap
import re
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.errors import ArtifactError

Kind = Literal[
    "keras_h5", "keras_zip", "tflite", "saved_model",
    "weights", "lfs_pointer", "html", "empty", "zip", "folder", "hdf5", "onnx", "pytorch", "layers", "other",
]  # fmt: skip
_FAULTS: dict[Kind, str] = {
    "weights": "the weights of a network without its layers. In the code that builds the network, run: "
    "network.load_weights('{path}'); network.save('{saved}')",
    "lfs_pointer": "a Git LFS pointer, which names the file's content but does not hold it. In its "
    "repository, run: git lfs pull --include {name}",
    "html": "a web page. Download the file itself; on GitHub, with the button for the raw file.",
    "empty": "an empty file. Copy or download it again.",
    "zip": "a zip archive that is no .keras file{inside}. Unpack it: unzip {path}",
    "folder": "a folder. Name the network's file inside it.",
    "hdf5": "an HDF5 file that Keras did not write. In the code that trains the network, run: "
    "network.save('{saved}')",
    "onnx": "an ONNX network. Convert it and import the folder: pip install onnx2tf; "
    "onnx2tf -i {path} -o {folder}; ext-classify import {folder} --class-names NAME1,NAME2,…",
    "pytorch": "a PyTorch network. Export it with torch.onnx.export, then convert it: "
    "onnx2tf -i {folder}.onnx -o {folder}; ext-classify import {folder} --class-names NAME1,NAME2,…",
    "layers": "the layers of a network without its weights. With the weights next to it, run in Python: "
    "network = keras.models.model_from_json(open('{path}').read()); network.load_weights('WEIGHTS'); "
    "network.save('{saved}')",
    "other": "a file that is not HDF5. In the code that trains the network, run: network.save('{saved}')",
}
"""What files are that cannot be served, and what helps."""
_NETWORKS = (".h5", ".hdf5", ".keras", ".tflite")
_HEAD_BYTES = 512
# The keys with which a Keras configuration may begin: Python 2 wrote them in any order.
_CONFIG = re.compile(rb'\{"(?:module|class_name|config|keras_version|backend)": ?')
_PASSES_CLASSES_ON = {"Activation", "Dropout", "Softmax"}


@dataclass(frozen=True)
class ModelFile:
    path: Path
    kind: Kind
    config: dict[str, Any] | None = None
    """Keras's configuration of the network, if it could be read."""
    members: tuple[str, ...] = ()
    """Networks inside a zip archive."""

    @property
    def class_names(self) -> set[str]:
        return {part["class_name"] for part in parts_of(self.config)}

    @property
    def outputs(self) -> int | None:
        """Number of outputs, if the network ends in a dense layer that the configuration names."""
        return _units(self.config)


def inspect_file(path: Path) -> ModelFile:
    """Recognise a file by its content. Raises OSError."""
    if path.is_dir():
        return ModelFile(path, "saved_model" if (path / "saved_model.pb").is_file() else "folder")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            return ModelFile(path, "empty")
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _inspect_hdf5(path, content)
    if head.startswith(b"PK\x03\x04"):
        return _inspect_zip(path)
    return ModelFile(path, _kind_of_head(head))


def refuse_unusable(path: Path, class_names: Sequence[str] | None = None) -> ModelFile:
    """Return what the file is if it can be served. Raises ArtifactError, which names the command that helps.

    `class_names` are checked against the outputs as far as the file tells their number.
    """
    if not path.exists():
        raise ArtifactError(f"A network must be a file or a SavedModel folder. Missing: {path}")
    found = inspect_file(path)
    if (fault := fault_of(found)) is not None:
        raise ArtifactError(
            "A network must be an .h5, .keras or .tflite file with its layers, or a SavedModel folder. "
            f"Received: {path}, {fault}"
        )
    if class_names is not None and found.outputs not in (None, 1, len(class_names)):
        raise ArtifactError(
            f"--class-names must name each of the {found.outputs} outputs of {path}, in their order. "
            f"Received: {len(class_names)}: {', '.join(class_names)}"
        )
    return found


def fault_of(found: ModelFile) -> str | None:
    """What is wrong with the file, and what helps; None if nothing is."""
    if found.kind in _FAULTS:
        path, stem = found.path, found.path.name.partition(".")[0]
        places = {"path": path, "name": path.name, "saved": f"{stem}_network.h5", "folder": f"{stem}_network"}
        inside = f" with {', '.join(found.members)}" if found.members else ""
        return _FAULTS[found.kind].format(**places, inside=inside)
    if "Lambda" in found.class_names:
        return (
            "a network with a Lambda layer, which is code. Replace it by a layer of Keras, for example "
            "Rescaling, copy the weights, and save the network."
        )
    return None


def import_command(path: Path) -> str:
    return f"ext-classify import {shlex.quote(str(path))} --class-names NAME1,NAME2,…"


def _kind_of_head(head: bytes) -> Kind:
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "lfs_pointer"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return "html"
    if head[4:8] == b"TFL3":
        return "tflite"
    # An ONNX file begins with fields 1, its version, and 2, its producer's name.
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "onnx"
    is_config = text.startswith(b"{") and b'"class_name"' in head and b"modelTopology" not in head
    return "layers" if is_config else "other"


def _inspect_hdf5(path: Path, content: mmap.mmap) -> ModelFile:
    if content.find(b"model_config") >= 0:
        return ModelFile(path, "keras_h5", _find_config(content))
    # Keras 2 lists the layers' names in an attribute, Keras 3 has a group per layer.
    is_weights = any(content.find(mark) >= 0 for mark in (b"layer_names", b"weight_names", b"layers\0"))
    return ModelFile(path, "weights" if is_weights else "hdf5")


def _find_config(content: mmap.mmap) -> dict[str, Any] | None:
    """The model_config attribute, which HDF5 stores uncompressed and in one piece."""
    for match in _CONFIG.finditer(content):
        end = content.find(b"\0", match.start())
        text = content[match.start() : end if end >= 0 else len(content)].decode(errors="replace")
        try:
            config, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            continue
        if {"class_name", "config"} <= config.keys():
            return dict(config)
    return None


def _inspect_zip(path: Path) -> ModelFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if {"config.json", "model.weights.h5"} <= set(names):
                return ModelFile(path, "keras_zip", json.loads(archive.read("config.json")))
    except (zipfile.BadZipFile, ValueError):
        return ModelFile(path, "zip")
    if any(name.endswith("/data.pkl") for name in names):
        return ModelFile(path, "pytorch")
    return ModelFile(path, "zip", members=tuple(name for name in names if name.endswith(_NETWORKS)))


def parts_of(config: object) -> Iterator[dict[str, Any]]:
    """Every object of a Keras configuration that names its class."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from parts_of(value)


def _units(layer: object) -> int | None:
    """Number of outputs of a layer or network, by its configuration."""
    match layer:
        case {"class_name": "Dense", "config": {"units": int(units)}}:
            return units
        case {"class_name": "Sequential", "config": {"layers": [*layers]} | [*layers]}:
            last = [one for one in layers if not _passes_classes_on(one)][-1:]
            return _units(last[0]) if last else None
        case {"config": {"layers": [*layers], "output_layers": [str(name), *_] | [[str(name), *_]]}}:
            return next((_units(one) for one in layers if _name_of(one) == name), None)
    return None


def _passes_classes_on(layer: object) -> bool:
    return isinstance(layer, dict) and layer.get("class_name") in _PASSES_CLASSES_ON


def _name_of(layer: object) -> str | None:
    match layer:
        case {"name": str(name)} | {"config": {"name": str(name)}}:
            return name
    return None
