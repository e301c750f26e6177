"""Compare networks by cost, size and images per second: python -m tests.benchmarks.networks.

Each runs in LiteRT with one single-threaded interpreter per core, as in the service, with 1, 8 and 64 images
per call; rounds are interleaved, forwards and backwards. Each float32 network is compared with its
dynamic-range quantisation (8-bit weights), including the share of equal labels.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from model.artifact import load_artifact
from model.compile import compile_network, patches_first, pool_first
from model.defaults import DEFAULT_MODEL_PATH, usable_cores
from model.engines import LiteRtClassifier
from model.networks.keras_model import count_macs, load_network, named_outputs
from tests.benchmarks.engines import Images, images_per_second
from tests.benchmarks.served import Mislabelled
from tests.benchmarks.tables import write_table
from tests.draw_samples import SEEDS, draw

ROWS = (1, 8, 64)
NETWORKS = ("metal_defects_final", "steel_defects")
EIGHT_BIT = "8-bit weights"


@dataclass(frozen=True)
class Contender:
    name: str
    parameters: int
    macs: int
    compiled: bytes
    classifier: LiteRtClassifier
    images: Images


def drawn_images(count: int, channels: int) -> Images:
    """Sample drawings (count, 200, 200, channels)."""
    names = list(SEEDS)
    grey = np.stack([draw(names[i % len(names)], seed=i) for i in range(count)])
    return np.repeat(grey[..., np.newaxis], channels, axis=-1)


def contenders() -> list[Contender]:
    found = []
    for name in NETWORKS:
        artifact = load_artifact(DEFAULT_MODEL_PATH.with_name(f"{name}.h5"))
        network = load_network(artifact.h5_path)
        shape = artifact.card.image.shape
        for kind, compiled in (
            ("float32", compile_network(network, shape)),
            (EIGHT_BIT, quantise(network, shape)),
        ):
            require_weights(kind, compiled)
            found.append(
                Contender(
                    name=f"{name}, {kind}",
                    parameters=network.count_params(),
                    macs=count_macs(network),
                    compiled=compiled,
                    classifier=LiteRtClassifier(compiled, artifact.card.scale, usable_cores()),
                    images=drawn_images(128, shape[2]),
                )
            )
    return found


def quantise(network: keras.Model, shape: tuple[int, int, int]) -> bytes:
    """Dynamic-range quantisation: weights in 8 bits, sums in float; rewritten as compile_network rewrites."""
    network = patches_first(pool_first(network))
    answering = keras.Model(network.inputs, named_outputs(network))
    archive = keras.export.ExportArchive()
    archive.track(answering)
    signature = [tf.TensorSpec((1, *shape), tf.float32)]
    archive.add_endpoint("serve", lambda x: answering(x, training=False), input_signature=signature)
    with tempfile.TemporaryDirectory() as saved_model:
        archive.write_out(saved_model, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return bytes(converter.convert())


def require_weights(kind: str, compiled: bytes) -> None:
    """Raises Mislabelled unless a LiteRT network has 8-bit tensors just where its label says so."""
    tensors = Interpreter(model_content=compiled).get_tensor_details()
    count = sum(tensor["dtype"] == np.int8 for tensor in tensors)
    if (count > 0) != (kind == EIGHT_BIT):
        raise Mislabelled(f"A network labelled {kind!r} has {count} tensors of 8 bits.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0, help="a round of one network")
    options = parser.parse_args()
    threads = ThreadPoolExecutor(usable_cores())
    found = contenders()

    def in_threads(classifier: LiteRtClassifier, rows: int) -> Callable[[Images], object]:
        return lambda images: list(threads.map(classifier.predict, np.split(images, len(images) // rows)))

    rates: dict[tuple[str, int], list[float]] = {(c.name, rows): [] for c in found for rows in ROWS}
    for turn in range(options.rounds):
        for contender in found if turn % 2 == 0 else reversed(found):
            for rows in ROWS:
                predict = in_threads(contender.classifier, rows)
                rate = images_per_second(predict, contender.images, options.seconds)
                rates[contender.name, rows].append(rate)
    reference = {c.images.shape[3]: c.classifier.predict(c.images) for c in found if "float32" in c.name}
    lines = []
    for contender in found:
        float_labels = reference[contender.images.shape[3]].argmax(axis=1)
        alike = (contender.classifier.predict(contender.images).argmax(axis=1) == float_labels).mean()
        medians = [statistics.median(rates[contender.name, rows]) for rows in ROWS]
        ratios = [
            statistics.median(
                a / b for a, b in zip(rates[contender.name, rows], rates[found[0].name, rows], strict=True)
            )
            for rows in ROWS
        ]
        lines.append(
            [
                contender.name,
                f"{contender.parameters:,}",
                f"{contender.macs / 1e6:.1f} M",
                f"{len(contender.compiled) / 1e6:.2f} MB",
                *(f"{median:.0f} ({ratio:.2f}x)" for median, ratio in zip(medians, ratios, strict=True)),
                f"{alike:.1%}",
            ]
        )
    header = ["network", "parameters", "MACs", "twin", *(f"images/s, {rows} a call" for rows in ROWS)]
    write_table("networks", [*header, "labels as float32"], lines)


if __name__ == "__main__":
    main()
