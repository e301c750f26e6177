"""Whether an epoch of training waits for its input: python -m tests.benchmarks.training.

Compares an epoch with its real input pipeline, pure compute (as many steps of the same shapes on batches in
memory), and the pipeline without training. Rounds are interleaved, forwards and backwards. Each epoch
includes the start of its stream, which a training has only once. Other load on the machine affects CPU-
seconds less than seconds. If compute uses all cores, each CPU-second of the pipeline lengthens the epoch,
however well the two overlap.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from model.image import ImageSpec
from model.training import recipe as train_recipe
from model.training.fit import Knobs, Training
from model.training.folder import LabelledImages, load_folder
from tests.benchmarks.networks import drawn_images
from tests.benchmarks.tables import write_table

IMAGES, CLASSES, DRAWN = 1510, 6, 60
REAL, PURE, PIPELINE = "real epoch", "pure compute", "input pipeline alone"


class Cost(NamedTuple):
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Contender:
    """A network's training; each of `ways` runs one epoch."""

    name: str
    ways: dict[str, Callable[[], object]]
    waits: list[float] = field(default_factory=list)
    """Seconds that each real epoch waited for its batches, where that can be told."""


def training_images(spec: ImageSpec) -> LabelledImages:
    """The folder's training images, or drawn ones, repeated, of the same number and shape."""
    folder = os.environ.get("NEU_DATA_DIR")
    if folder:
        loaded = load_folder(Path(folder), spec)
        return loaded.data.take(loaded.splits == "train")
    chosen = np.arange(IMAGES) % DRAWN
    images = drawn_images(DRAWN, spec.channels)[chosen]
    return LabelledImages(images, chosen % CLASSES, tuple(Path(str(number)) for number in range(IMAGES)))


def default_training() -> Contender:
    knobs = Knobs()
    training = Training(training_images(knobs.image), CLASSES, replace(knobs, epochs=1), seed=0)
    steps = training.steps_per_epoch
    batch = next(training.batches(0))
    waits = []

    def real() -> None:
        batches, waited = training.batches(0), 0.0
        views = next(batches)
        while views is not None:
            training.note(0, *training.step(*views))
            asked = time.perf_counter()
            views = next(batches, None)
            waited += time.perf_counter() - asked
        waits.append(waited)

    def pure() -> None:
        for _ in range(steps):
            training.note(0, *training.step(*batch))

    def pipeline() -> None:
        for _ in training.batches(0):
            pass

    training.step(*batch)
    return Contender("steel_defects", {REAL: real, PURE: pure, PIPELINE: pipeline}, waits)


def recipe_training() -> Contender:
    knobs = train_recipe.Knobs()
    data = training_images(knobs.image)
    steps = -(-len(data) // knobs.batch_size)
    batches = train_recipe.training_batches(data, CLASSES, knobs, seed=0)
    first, last = (list(islice(batches, steps))[place] for place in (0, -1))
    in_memory = tf.data.Dataset.from_tensors(first).repeat(steps - 1)
    in_memory = in_memory.concatenate(tf.data.Dataset.from_tensors(last))
    network = train_recipe.recipe_cnn(knobs.image, CLASSES)
    network.compile(
        optimizer=keras.optimizers.Adam(knobs.learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )

    def train_on(dataset: tf.data.Dataset) -> None:
        network.fit(dataset, steps_per_epoch=steps, shuffle=False, verbose=0)

    def pipeline() -> None:
        for _ in islice(batches, steps):
            pass

    network.fit(in_memory.skip(steps - 2), shuffle=False, verbose=0)
    ways = {REAL: lambda: train_on(batches), PURE: lambda: train_on(in_memory), PIPELINE: pipeline}
    return Contender("published recipe", ways)


def cost_of(run: Callable[[], object]) -> Cost:
    started, cpu_started = time.perf_counter(), time.process_time()
    run()
    return Cost(time.perf_counter() - started, time.process_time() - cpu_started)


def measured(contender: Contender, rounds: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {way: [] for way in contender.ways}
    for turn in range(rounds):
        for way in list(costs) if turn % 2 == 0 else reversed(costs):
            costs[way].append(cost_of(contender.ways[way]))
    return costs


def rows_of(contender: Contender, costs: dict[str, list[Cost]]) -> list[list[str]]:
    rows = []
    for way, found in costs.items():
        pairs = list(zip(found, costs[PURE], strict=True))
        rows.append(
            [
                f"{contender.name}, {way}",
                spread([cost.seconds for cost in found]),
                spread([cost.seconds / pure.seconds for cost, pure in pairs], "x", 2),
                spread([cost.cpu_seconds for cost in found]),
                spread([cost.cpu_seconds / pure.cpu_seconds for cost, pure in pairs], "x", 2),
            ]
        )
    if contender.waits:
        waited = f"{contender.name}, waits for all batches but the first"
        rows.insert(1, [waited, spread(contender.waits, digits=2), "", "", ""])
    return rows


def spread(values: list[float], unit: str = "", digits: int = 1) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    rows = []
    for make in (default_training, recipe_training):
        contender = make()
        rows += rows_of(contender, measured(contender, options.rounds))
    kind = "NEU" if os.environ.get("NEU_DATA_DIR") else "drawn"
    ratios = ["to pure compute, same round", "CPU-seconds", "to pure compute, same round"]
    write_table("training", [f"an epoch of {IMAGES} {kind} images", "seconds", *ratios], rows)


if __name__ == "__main__":
    main()
