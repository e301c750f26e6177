"""Compile a network to LiteRT, after rewrites of its graph: python -m model.compile H5 [TFLITE].

The rewrites make it faster and keep its outputs the same:

- `pool_first`: max-pooling before an increasing activation, which then has fewer values to compute.
- `patches_first`: a first convolution over patches that do not overlap becomes a 1 x 1 convolution.
- `split_heavy_head`: dense layers with many weights become a network of their own, which runs once per call.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf
from keras import layers

from model.artifact import Artifact, CompiledPaths, load_artifact, next_to_h5, save_card, write_compiled
from model.errors import ArtifactError
from model.networks.keras_model import named_outputs
from model.networks.network import Network, Stages, open_network, with_stages

RISING = ("elu", "selu", "sigmoid", "tanh", "softplus")
_SUFFIX = "_after_pooling"
# With more channels, the rows are long already.
MOST_CHANNELS = 4
# More than the cache of one core holds. Weights that fit are fast to read at any number of images per call.
HEAVY_BYTES = 4 << 20
# Layers that process each image independently. Subclasses are excluded, as they may mix images.
_PER_IMAGE_LAYERS = {
    layers.Dense,
    layers.Dropout,
    layers.Activation,
    layers.ELU,
    layers.ReLU,
    layers.LeakyReLU,
    layers.Softmax,
    layers.BatchNormalization,
}


def pool_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network with the same weights, or the same network if nothing can be rewritten."""
    graph = _functional_clone(network)
    pairs = {pool.name: activated for activated, pool in _pairs(graph)}
    if not pairs:
        return network
    made_linear = {activated.name for activated in pairs.values()}

    def change(layer: keras.Layer) -> dict[str, Any]:
        return {"activation": "linear"} if layer.name in made_linear else {}

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        outputs = layer(*given, **named)
        if layer.name not in pairs:
            return outputs
        return layers.Activation(pairs[layer.name].activation, name=layer.name + _SUFFIX)(outputs)

    rewritten = _rewrite(graph, change, call)
    for layer in network.layers:
        _set_weights(rewritten, layer.name, layer.get_weights())
    return rewritten


def patches_first(network: keras.Model) -> keras.Model:
    """Return an equivalent network, or the same network if no layer can be rewritten.

    If the stride is the kernel's size, every pixel is read once, so k x k pixels of c channels can be
    rearranged to one position of k * k * c channels. LiteRT multiplies long rows much faster than many rows
    of 3 values.
    """
    graph = _functional_clone(network)
    patches = {layer.name: layer.kernel_size[0] for layer in graph.layers if _reads_patches(layer)}
    if not patches:
        return network

    def change(layer: keras.Layer) -> dict[str, Any]:
        return {"kernel_size": 1, "strides": 1} if layer.name in patches else {}

    def call(layer: keras.Layer, *given: Any, **named: Any) -> keras.KerasTensor:
        if layer.name not in patches:
            return layer(*given, **named)
        return layer(SpaceToDepth(patches[layer.name], name=f"{layer.name}_patches")(*given, **named))

    rewritten = _rewrite(graph, change, call)
    for layer in network.layers:
        weights = layer.get_weights()
        if layer.name in patches:
            # (k, k, c, filters), in the order of space_to_depth.
            weights[0] = weights[0].reshape(1, 1, -1, layer.filters)
        _set_weights(rewritten, layer.name, weights)
    return rewritten


class Parts(NamedTuple):
    """Two networks; applying `head` to the output of `body` is equivalent to the whole network."""

    body: keras.Model
    """Images to flattened values (n, d)."""
    head: keras.Model
    """Flattened values to the network's output."""


def split_heavy_head(network: keras.Model) -> Parts | None:
    """Split a network that ends in Flatten and a heavy chain of dense layers; None for any other network."""
    graph = _functional_clone(network)
    end = _after_flatten(graph)
    if end is None or sum(layer.count_params() for layer in end) * 4 < HEAVY_BYTES:
        return None
    for layer in network.layers:
        _set_weights(graph, layer.name, layer.get_weights())
    flattened = end[0].input
    head_input = keras.Input(flattened.shape[1:])
    outputs = head_input
    for layer in end:
        outputs = layer(outputs)
    return Parts(keras.Model(graph.inputs, flattened), keras.Model(head_input, outputs))


class SpaceToDepth(layers.Layer):
    """Images (n, h, w, c) to (n, h / k, w / k, k * k * c)."""

    def __init__(self, patch: int, **given: Any) -> None:
        super().__init__(**given)
        self._patch = patch

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return tf.nn.space_to_depth(images, self._patch)


def _functional_clone(network: keras.Model) -> keras.Model:
    """A clone whose layers have calls in this graph only; functional, as a Sequential shows no calls."""
    return keras.models.clone_model(keras.Model(network.inputs, network.outputs))


def _rewrite(
    graph: keras.Model,
    change: Callable[[keras.Layer], dict[str, Any]],
    call: Callable[..., keras.KerasTensor],
) -> keras.Model:
    """A clone without weights, with the changes to the configuration of each layer, called by `call`."""

    def clone(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | change(layer))

    return keras.models.clone_model(graph, clone_function=clone, call_function=call)


def _set_weights(network: keras.Model, layer_name: str, weights: list[Any]) -> None:
    # By name, as an added layer may change the order.
    if weights:
        network.get_layer(layer_name).set_weights(weights)


def _pairs(graph: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """Each convolution with an increasing activation that only a max-pooling consumes, and that pooling."""
    consumers = Counter(
        id(tensor) for layer in graph.layers for node in _calls_of(layer) for tensor in node.input_tensors
    )
    consumers.update(id(tensor) for tensor in graph.outputs)
    called_once = [layer for layer in graph.layers if len(_calls_of(layer)) == 1]
    rising = {
        id(layer.output): layer
        for layer in called_once
        if isinstance(layer, layers.Conv2D)
        and keras.activations.serialize(layer.activation) in RISING
        and consumers[id(layer.output)] == 1
    }
    return [
        (rising[id(layer.input)], layer)
        for layer in called_once
        if isinstance(layer, layers.MaxPooling2D) and id(layer.input) in rising
    ]


def _reads_patches(layer: keras.Layer) -> bool:
    # Subclasses may compute something else.
    if type(layer) is not layers.Conv2D or len(_calls_of(layer)) != 1:
        return False
    _, height, width, channels = layer.input.shape
    patch = layer.kernel_size[0]
    return bool(
        patch > 1
        and layer.kernel_size == layer.strides == (patch, patch)
        and layer.dilation_rate == (1, 1)
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and channels <= MOST_CHANNELS
        and height is not None
        and width is not None
        and height % patch == width % patch == 0
    )


def _after_flatten(graph: keras.Model) -> list[keras.Layer] | None:
    """Layers from Flatten to the single output if they are a chain of per-image layers, else None."""
    if len(graph.outputs) != 1:
        return None
    made_by = {id(layer.output): layer for layer in graph.layers if len(_calls_of(layer)) == 1}
    end: list[keras.Layer] = []
    layer = made_by.get(id(graph.outputs[0]))
    while layer is not None and type(layer) in _PER_IMAGE_LAYERS and getattr(layer, "axis", -1) in (-1, 1):
        end.insert(0, layer)
        layer = made_by.get(id(layer.input))
    return end if end and isinstance(layer, layers.Flatten) else None


def _calls_of(layer: keras.Layer) -> list[Any]:
    """The graph nodes at which a layer is called."""
    calls: list[Any] = layer._inbound_nodes  # noqa: SLF001 - Keras has no public API for it
    return calls


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
