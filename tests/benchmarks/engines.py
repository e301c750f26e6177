"""Compare engines on the same images and cores: python -m tests.benchmarks.engines.

Rounds are interleaved, forwards and backwards, so that other load on the machine slows all engines alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, load_artifact
from model.defaults import DEFAULT_MODEL_PATH, usable_cores, user_cache_dir
from model.engines import open_classifier
from model.networks.keras_model import load_network
from tests.benchmarks.tables import write_table
from tests.draw_samples import SEEDS, draw

Images = NDArray[np.uint8]
BASELINE = "model.predict, 1 row a call"
RECIPE = DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5")


def drawn_images(count: int) -> Images:
    """Sample drawings (count, 200, 200, 3)."""
    names = list(SEEDS)
    grey = np.stack([draw(names[i % len(names)], seed=i) for i in range(count)])
    return np.repeat(grey[..., np.newaxis], 3, axis=-1)


def contenders(artifact: Artifact) -> dict[str, Callable[[Images], object]]:
    """Each takes images (n, h, w, c) and classifies them all, as fast as it can."""
    cores = usable_cores()
    network = load_network(artifact.h5_path)
    tensorflow = open_classifier(artifact, "tensorflow", cores, user_cache_dir())
    litert = open_classifier(artifact, "litert", cores, user_cache_dir())
    threads = ThreadPoolExecutor(cores)

    def in_threads(predict: Callable[[Images], object], rows: int) -> Callable[[Images], object]:
        return lambda images: list(threads.map(predict, np.split(images, len(images) // rows)))

    return {
        BASELINE: lambda images: [network.predict(image[np.newaxis], verbose=0) for image in images],
        "tf.function, 1 row": lambda images: [
            tensorflow.predict(row) for row in np.split(images, len(images))
        ],
        "tf.function, 8 rows": tensorflow.predict,
        "LiteRT, 1 row": in_threads(litert.predict, 1),
        "LiteRT, 8 rows": in_threads(litert.predict, 8),
    }


def images_per_second(predict: Callable[[Images], object], images: Images, seconds: float) -> float:
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        predict(images)
        done += len(images)
    return done / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="a round of one engine")
    options = parser.parse_args()
    images = drawn_images(64)
    engines = contenders(load_artifact(RECIPE))
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for predict in engines.values():
        predict(images[:8])
    for turn in range(options.rounds):
        for name in list(engines) if turn % 2 == 0 else reversed(engines):
            # The slow one gets fewer images a turn, so that its turn ends in time.
            turn_images = images[:8] if name == BASELINE else images
            rates[name].append(images_per_second(engines[name], turn_images, options.seconds))
    baseline = rates[BASELINE]
    rows = [
        [
            name,
            f"{statistics.median(found):.0f}",
            f"{min(found):.0f} to {max(found):.0f}",
            f"{statistics.median(a / b for a, b in zip(found, baseline, strict=True)):.0f}x",
        ]
        for name, found in rates.items()
    ]
    write_table("engines", ["engine", "images/s, median", "range", "to model.predict, same round"], rows)


if __name__ == "__main__":
    main()
