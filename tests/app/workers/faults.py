"""Replaces a network by another one, and makes it invalid."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from model.defaults import DEFAULT_MODEL_PATH

RECIPE = DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5")


def put(network: Path, place: Path) -> None:
    for suffix in (".h5", ".json", ".tflite", ".tflite.json"):
        shutil.copy(network.with_suffix(suffix), place.with_suffix(suffix))


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_other_compiled_model(path: Path) -> None:
    """The compiled model of another network, with a stamp for this one."""
    shutil.copy(RECIPE.with_suffix(".tflite"), path)
    stamp = path.with_name(f"{path.name}.json")
    stamped = json.loads(stamp.read_bytes())
    stamped["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    stamp.write_text(json.dumps(stamped), encoding="utf-8")


def claim_another_shape(path: Path) -> None:
    card = json.loads(path.read_bytes())
    card["image"]["height"] //= 2
    path.write_text(json.dumps(card), encoding="utf-8")


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "h5 torn": (".h5", tear),
    "h5 corrupt": (".h5", flip_a_bit),
    "card torn": (".json", tear),
    "card of another shape": (".json", claim_another_shape),
    "compiled model of another network": (".tflite", put_other_compiled_model),
    "nothing there": (".h5", Path.unlink),
}
