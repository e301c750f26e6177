"""Compile a network to LiteRT: python -m model.compile H5 [TFLITE]."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from model.artifact import Artifact, load_artifact, save_card
from model.compiled import CompiledPaths, next_to_h5, write_compiled
from model.errors import ArtifactError
from model.graph_rewrites import patches_first, pool_first, split_heavy_head
from model.networks.keras_model import named_outputs
from model.networks.network import Network, Stages, open_network, with_stages

_Call: TypeAlias = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def compile_artifact(artifact: Artifact, paths: CompiledPaths | None = None) -> CompiledPaths:
    """Compile the artifact's network in float32 for one image per call, and write its stamp.

    `paths` are next to the .h5 by default. An int8 model and its card are replaced by those of float32.
    Raises ArtifactError if the network's input or output shape differs from the card's.
    """
    paths = paths or next_to_h5(artifact)
    if artifact.card.int8 is not None:
        artifact = save_card(artifact.h5_path, artifact.card.float32)
    if artifact.card.is_given_tflite:
        write_compiled(artifact, paths, artifact.h5_path.read_bytes(), {})
        return paths
    network, stages = open_network(artifact.h5_path, artifact.card)
    compiled = compile_with_stages(network, artifact.card.image.shape, stages)
    write_compiled(artifact, paths, compiled, {"tensorflow": tf.__version__})
    return paths


def compile_with_stages(
    network: Network, shape: tuple[int, int, int], stages: Stages | None, *, splits_head: bool = True
) -> bytes:
    """Compile a network and its stages to a LiteRT flatbuffer that takes one image (1, h, w, c), float32.

    The network's graph is rewritten to a faster one if Keras 3 has read it.
    """
    if network.is_keras3:
        return compile_network(network.keras_network, shape, stages, splits_head=splits_head)
    calls = {"serving_default": (with_stages(network, stages), (1, *shape))}
    return _convert(calls, network.resources, stages)


def compile_network(
    network: keras.Model,
    shape: tuple[int, int, int],
    stages: Stages | None = None,
    *,
    splits_head: bool = True,
) -> bytes:
    """Compile a network to a LiteRT flatbuffer that takes one image (1, h, w, c), float32.

    Outputs are named `probabilities` and, if `find_head` finds a head, `embedding` and `features`; stages may
    replace the embedding. Unless `splits_head` is false, a network with a heavy head has two signatures
    instead: `body`, from one image to `flattened` (1, d), and `head`, from the `flattened` values of n images
    (n, d) to `probabilities`.
    """
    network = patches_first(pool_first(network))
    if not splits_head or (parts := split_heavy_head(network)) is None:
        return convert(keras.Model(network.inputs, named_outputs(network)), shape, stages)
    [flattened], [probabilities] = parts.body.outputs, parts.head.outputs
    body = keras.Model(parts.body.inputs, {"flattened": flattened})
    head = keras.Model(parts.head.inputs, {"probabilities": probabilities})
    return _convert_signatures(
        {"body": (body, (1, *shape)), "head": (head, (None, flattened.shape[1]))}, stages
    )


def convert(network: keras.Model, shape: tuple[int, int, int], stages: Stages | None = None) -> bytes:
    """Compile a network with named outputs to a LiteRT flatbuffer for one image (1, h, w, c), float32."""
    return _convert_signatures({"serving_default": (network, (1, *shape))}, stages)


def _convert_signatures(
    signatures: dict[str, tuple[keras.Model, tuple[int | None, ...]]], stages: Stages | None
) -> bytes:
    calls = {
        name: (_inference(network, stages, takes_pixels=name != "head"), shape)
        for name, (network, shape) in signatures.items()
    }
    return _convert(calls, [_values_of(network) for network, _ in signatures.values()], stages)


def _values_of(network: keras.Model) -> list[tf.Variable]:
    """TensorFlow does not save the values of Keras's variables, only of its own inside them."""
    return [variable.value for variable in network.variables]


def _convert(
    calls: Mapping[str, tuple[_Call, tuple[int | None, ...]]], resources: Any, stages: Stages | None
) -> bytes:
    """The calls with the shape of their input, by the name of their signature.

    Keras's own export saves every layer and traces each call more often: half as much time again.
    """
    module = tf.Module()
    describe = None if stages is None else stages.describe
    module.resources = [resources, [] if describe is None else _values_of(describe)]
    signatures = {
        name: tf.function(
            call, autograph=False, input_signature=[tf.TensorSpec(shape, tf.float32, name="inputs")]
        )
        for name, (call, shape) in calls.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        return bytes(converter.convert())


def _inference(network: keras.Model, stages: Stages | None, *, takes_pixels: bool) -> _Call:
    if stages is None:
        return lambda inputs: network(inputs, training=False)

    def infer(inputs: tf.Tensor) -> Any:
        return network(inputs, training=False)

    if takes_pixels:
        return lambda inputs: stages.run(infer, inputs)
    return lambda inputs: {"probabilities": stages.finish(infer(inputs)["probabilities"])}


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
