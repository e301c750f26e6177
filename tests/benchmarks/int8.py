"""Compare int8 of LiteRT, onnxruntime and OpenVINO on Keras's networks: python -m tests.benchmarks.int8.

CPU-milliseconds an image of each engine on one thread, in rounds forwards and backwards, in one process of
the environment of the other servers. Each engine's own tool quantises, on the same drawn images. The
files are those of `make bench-brought`; quantised ones go to a folder of their own.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

from model.artifact import load_artifact
from model.quantise import quantise
from tests.benchmarks.goals import Goal
from tests.benchmarks.keras_networks import SHAPE
from tests.benchmarks.tables import machine, write_table
from tests.draw_samples import SEEDS, draw

NETWORKS = ("mobilenet_v2", "resnet50")
GRAPHS = Path(".bench")
PEERS = Path(__file__).parent / "peers"
IMAGES = {"train": 120, "test": 120}
COMMAND = "make bench-int8"
LEAST_TO_FLOAT32, LEAST_TO_INT8 = 1.8, 1.0


def draw_images(folder: Path) -> None:
    """Other seeds in each part; file names in the order of seeds."""
    names, seed = list(SEEDS), 0
    for part, count in IMAGES.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            drawn = Image.fromarray(draw(names[number % len(names)], seed=seed)).convert("RGB")
            drawn.resize(SHAPE[1::-1]).save(folder / part / f"{number:03}.png")
            seed += 1


def quantise_ours(network: str, images: Path, folder: Path) -> Path:
    """The compiled int8 model of a copy. Its labels may differ: random weights decide few images clearly."""
    for suffix in (".h5", ".json"):
        shutil.copy(GRAPHS / f"{network}{suffix}", folder / f"{network}{suffix}")
    quantise(load_artifact(folder / f"{network}.h5"), images, least_agreement=0.0)
    return folder / f"{network}.tflite"


def measure(network: str, images: Path, folder: Path, python: Path) -> dict[str, Any]:
    """By contender, what peers/int8_engines.py prints."""
    graph = folder / f"{network}.onnx"
    shutil.copy(GRAPHS / f"{network}.rewritten.onnx", graph)
    int8 = quantise_ours(network, images, folder)
    command = [python, PEERS / "int8_engines.py", GRAPHS / f"{network}.tflite", int8, graph, images]
    measured = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(measured.stdout.splitlines()[-1])
    return found


def goals(network: str, found: dict[str, Any]) -> list[Goal]:
    ours = found["LiteRT int8"]["cpu_ms"]
    rows = []
    for precision, least in (("float32", LEAST_TO_FLOAT32), ("int8", LEAST_TO_INT8)):
        peers = [name for name in found if precision in name and not name.startswith("LiteRT")]
        best = min(peers, key=lambda name: statistics.median(found[name]["cpu_ms"]))
        times = statistics.median(a / b for a, b in zip(found[best]["cpu_ms"], ours, strict=True))
        rows.append(
            Goal(f"{network}: LiteRT int8 to the best peer, {best}", least, at_least=True, measured=times)
        )
    return rows


def row(network: str, name: str, found: dict[str, Any]) -> list[str]:
    cpu_ms, ours = found[name]["cpu_ms"], found["LiteRT int8"]["cpu_ms"]
    times = statistics.median(a / b for a, b in zip(cpu_ms, ours, strict=True))
    agreement = f"{found[name]['agreement']:.0%}, {found[name]['difference']:.3f}" if "int8" in name else "–"
    return [network, name, f"{min(cpu_ms):.2f}, {statistics.median(cpu_ms):.2f}", f"{times:.2f}x", agreement]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--python", type=Path, default=".venv-bench-peers/bin/python", help="of the other servers"
    )
    python = parser.parse_args().python
    folder = GRAPHS / "int8"
    images = folder / "images"
    draw_images(images)
    measured = {network: measure(network, images, folder, python) for network in NETWORKS}
    write_table(
        "int8",
        [
            "network",
            "engine",
            "CPU-ms an image: least, median",
            "to LiteRT int8",
            "labels as float32, mean difference of probabilities",
        ],
        [row(network, name, found) for network, found in measured.items() for name in found],
        command=COMMAND,
    )
    write_table(
        "int8_goals",
        ["goal", "target", "measured", "met"],
        [goal.row() for network, found in measured.items() for goal in goals(network, found)],
        command=COMMAND,
        about=f"CPU time of an image, by the engine alone; {machine()}",
    )


if __name__ == "__main__":
    main()
