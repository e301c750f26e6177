"""Convert a Keras .h5 to ONNX and compare the two: python to_onnx.py H5 ONNX [--rewrite].

The graph is as Keras exports it or, with --rewrite, in a form that is faster in onnxruntime.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from PIL import Image

SAMPLES = Path(__file__).parents[3] / "model" / "samples"
TOLERANCE = 1e-4


def embed_constants(network: keras.Model) -> None:
    """Hold each Normalization's statistics as arrays: the export turns tensors into inputs of the graph."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            embed_constants(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def export(network: keras.Model, path: Path) -> None:
    embed_constants(network)
    network(np.zeros((1, *network.input_shape[1:]), np.float32))  # Keras exports no network that never ran
    network.export(path, format="onnx", verbose=False)


def broadcast_scalars(graph: onnx.GraphProto) -> None:
    """Give the constants that scale and shift the input the input's rank.

    onnxruntime broadcasts a scalar over images of one channel a pixel at a time, 90 times slower.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    [images] = graph.input
    rank, scaled = len(images.type.tensor_type.shape.dim), {images.name}
    for node in graph.node:
        if node.op_type in {"Add", "Mul"} and node.input[0] in scaled and node.input[1] in constants:
            constant = constants[node.input[1]]
            value = numpy_helper.to_array(constant)
            if value.size == 1:
                constant.CopyFrom(numpy_helper.from_array(value.reshape((1,) * rank), constant.name))
                scaled.add(node.output[0])


def pool_before_elu(graph: onnx.GraphProto) -> None:
    """Exchange each Elu with the max-pooling that alone reads it.

    Both are monotone, so the answers stay the same; but a pooled map has a quarter of the exponentials,
    which take onnxruntime longer than the convolutions do.
    """
    for place, elu in enumerate(graph.node):
        readers = [later for later in range(len(graph.node)) if elu.output[0] in graph.node[later].input]
        if elu.op_type != "Elu" or [graph.node[later].op_type for later in readers] != ["MaxPool"]:
            continue
        first, second = onnx.NodeProto(), onnx.NodeProto()
        first.CopyFrom(graph.node[readers[0]])
        second.CopyFrom(elu)
        first.input[0], second.output[0] = second.input[0], first.output[0]
        first.output[0] = second.input[0] = elu.output[0]
        graph.node[place].CopyFrom(first)
        graph.node[readers[0]].CopyFrom(second)
    del graph.value_info[:]  # the shapes between have changed


def largest_difference(network: keras.Model, path: Path) -> float:
    """On the sample images: networks normalised for such images saturate on noise, where rounding decides."""
    height, width, channels = network.input_shape[1:]
    pictures = [
        Image.open(file).convert("L" if channels == 1 else "RGB") for file in sorted(SAMPLES.iterdir())
    ]
    images = np.stack([np.asarray(p.resize((width, height)), np.float32) for p in pictures])
    images = images.reshape(-1, height, width, channels)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [answered] = session.run(None, {session.get_inputs()[0].name: images})
    return float(np.abs(answered - network.predict(images, verbose=0)).max())


def rewrite(path: Path) -> None:
    exported = onnx.load(path)
    exported.graph.doc_string = "rewritten"  # so that its file is another one, also where nothing changes
    broadcast_scalars(exported.graph)
    pool_before_elu(exported.graph)
    onnx.save(exported, path)


def main(h5: Path, path: Path, *options: str) -> None:
    network = keras.models.load_model(h5, compile=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    unchecked = path.with_suffix(".unchecked")
    export(network, unchecked)
    if "--rewrite" in options:
        rewrite(unchecked)
    difference = largest_difference(network, unchecked)
    if not difference <= TOLERANCE:
        sys.exit(f"{path} answers otherwise than {h5}, by {difference:.2g}.")
    unchecked.replace(path)
    print(f"{path} answers as {h5} does, within {difference:.2g}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
