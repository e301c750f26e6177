"""Compile an .h5 to LiteRT: python -m model.compile H5 [TFLITE]."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from model.artifact import Artifact, load_artifact
from model.compiled import CompiledPaths, next_to_h5, write_compiled
from model.errors import ArtifactError
from model.graph_rewrites import patches_first, pool_first, split_heavy_head
from model.networks.keras_model import load_network, named_outputs, refuse_mismatch


def compile_artifact(artifact: Artifact, paths: CompiledPaths | None = None) -> CompiledPaths:
    """Compile the artifact's .h5 in float32 for one image per call, and write its stamp.

    `paths` are next to the .h5 by default. Raises ArtifactError if the network's input or output shape
    differs from the card's.
    """
    paths = paths or next_to_h5(artifact)
    network = load_network(artifact.h5_path)
    refuse_mismatch(network, artifact.card)
    compiled = compile_network(network, artifact.card.image.shape)
    write_compiled(artifact, paths, compiled, {"tensorflow": tf.__version__})
    return paths


def compile_network(network: keras.Model, shape: tuple[int, int, int]) -> bytes:
    """Compile a network to a LiteRT flatbuffer that takes one image (1, h, w, c), float32.

    Outputs are named `probabilities` and, if `find_head` finds a head, `embedding` and `features`. A network
    with a heavy head has two signatures instead: `body`, from one image to `flattened` (1, d), and `head`,
    from the `flattened` values of n images (n, d) to `probabilities`.
    """
    network = patches_first(pool_first(network))
    if (parts := split_heavy_head(network)) is None:
        return convert(keras.Model(network.inputs, named_outputs(network)), shape)
    [flattened], [probabilities] = parts.body.outputs, parts.head.outputs
    body = keras.Model(parts.body.inputs, {"flattened": flattened})
    head = keras.Model(parts.head.inputs, {"probabilities": probabilities})
    return _convert_signatures({"body": (body, (1, *shape)), "head": (head, (None, flattened.shape[1]))})


def convert(network: keras.Model, shape: tuple[int, int, int]) -> bytes:
    """Compile a network with named outputs to a LiteRT flatbuffer for one image (1, h, w, c), float32."""
    return _convert_signatures({"serving_default": (network, (1, *shape))})


def _convert_signatures(signatures: dict[str, tuple[keras.Model, tuple[int | None, ...]]]) -> bytes:
    archive = keras.export.ExportArchive()
    for name, (network, shape) in signatures.items():
        archive.track(network)
        archive.add_endpoint(name, _inference(network), input_signature=[tf.TensorSpec(shape, tf.float32)])
    with tempfile.TemporaryDirectory() as saved_model:
        archive.write_out(saved_model, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=list(signatures))
        return bytes(converter.convert())


def _inference(network: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    return lambda inputs: network(inputs, training=False)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        sys.exit("usage: python -m model.compile H5 [TFLITE]")
    h5_path, *tflite = map(Path, arguments)
    try:
        compile_artifact(load_artifact(h5_path), *map(CompiledPaths, tflite))
    except ArtifactError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
