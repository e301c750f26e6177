"""Measure int8 of three engines, on one thread each: python int8_engines.py FLOAT32 INT8 ONNX IMAGES.

FLOAT32 and INT8 are compiled models of the service, ONNX the same network. onnxruntime quantises it
statically (QDQ, weights per channel; with signed activations it takes twice the time), OpenVINO by NNCF; both
calibrate on IMAGES/train, as INT8 was. Prints a JSON object: for each contender its CPU-milliseconds an
image by round, the share of IMAGES/test whose label is that of the engine's float32, and the mean difference
of probabilities. Exits unless each contender runs what its label says.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from peer_model import Engine, open_litert, open_onnxruntime, open_openvino
from PIL import Image

ROUNDS = 7
LEAST_SECONDS = 1.0
"""CPU time of a contender's round."""
INTEGER_CONVOLUTIONS = {"QLinearConv", "ConvInteger"}

Images = list[NDArray[np.float32]]


def load(folder: Path) -> Images:
    return [np.asarray(Image.open(file), np.float32)[np.newaxis] for file in sorted(folder.iterdir())]


class Reader(CalibrationDataReader):
    def __init__(self, name: str, images: Images) -> None:
        self._feeds = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def quantise_by_onnxruntime(graph: Path, images: Images) -> Path:
    prepared, target = graph.with_suffix(".prepared.onnx"), graph.with_suffix(".int8.onnx")
    quant_pre_process(graph, prepared, skip_symbolic_shape=True)
    reader = Reader(onnx.load(prepared).graph.input[0].name, images)
    quantize_static(
        prepared,
        target,
        reader,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target


def quantise_by_nncf(graph: Path, images: Images) -> Path:
    model = openvino.Core().read_model(graph)
    model.reshape([1, *images[0].shape[1:]])
    quantised = nncf.quantize(
        model, nncf.Dataset(images), preset=nncf.QuantizationPreset.MIXED, subset_size=len(images)
    )
    target = graph.with_suffix(".nncf.xml")
    openvino.save_model(quantised, target, compress_to_fp16=False)
    return target


def integer_maps_of_litert(path: Path) -> int:
    """Activations: they have one scale, and weights have one a channel."""
    tensors = Interpreter(str(path)).get_tensor_details()
    return sum(
        tensor["dtype"] == np.int8
        and len(tensor["shape"]) == 4
        and tensor["quantization_parameters"]["scales"].size == 1
        for tensor in tensors
    )


def integer_convolutions_of_onnxruntime(path: Path) -> int:
    """In the graph that onnxruntime runs, after its optimisations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
    return sum(node.op_type in INTEGER_CONVOLUTIONS for node in graph.node)


def integer_convolutions_of_openvino(path: Path) -> int:
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return sum(
        "Convolution" in str(info["layerType"].astype(str))
        and info["runtimePrecision"].astype(str) in {"i8", "u8"}
        for info in infos
        if "runtimePrecision" in info
    )


Count = Callable[[Path], int]
Open = Callable[[str, int], Engine]


def require_precision(name: str, path: Path, count: Count) -> None:
    found = count(path)
    if (found > 0) != ("int8" in name):
        sys.exit(f"{name} must run what its label says. {path} has {found} integer convolutions or maps.")


def cpu_ms(engine: Engine, images: Images) -> float:
    done, started = 0, time.process_time()
    while (spent := time.process_time() - started) < LEAST_SECONDS:
        engine.predict(images[done % len(images)])
        done += 1
    return spent / done * 1000


def main(float32: Path, int8: Path, graph: Path, folder: Path) -> None:
    onnxruntime.set_default_logger_severity(3)
    fitted, measured = load(folder / "train"), load(folder / "test")
    litert = integer_maps_of_litert, open_litert
    ort = integer_convolutions_of_onnxruntime, open_onnxruntime
    vino = integer_convolutions_of_openvino, open_openvino
    contenders: dict[str, tuple[Path, Count, Open]] = {
        "LiteRT float32": (float32, *litert),
        "onnxruntime float32": (graph, *ort),
        "OpenVINO float32": (graph, *vino),
        "LiteRT int8": (int8, *litert),
        "onnxruntime int8": (quantise_by_onnxruntime(graph, fitted), *ort),
        "OpenVINO int8": (quantise_by_nncf(graph, fitted), *vino),
    }
    engines: dict[str, Engine] = {}
    for name, (path, count, open_engine) in contenders.items():
        require_precision(name, path, count)
        engines[name] = open_engine(str(path), 1)
    answers = {
        name: np.concatenate([engine.predict(image) for image in measured])
        for name, engine in engines.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(ROUNDS):
        for name in list(engines) if turn % 2 == 0 else reversed(engines):
            spent[name].append(cpu_ms(engines[name], measured))
    found = {}
    for name, answered in answers.items():
        own = answers[f"{name.split()[0]} float32"]
        found[name] = {
            "cpu_ms": spent[name],
            "agreement": float((answered.argmax(1) == own.argmax(1)).mean()),
            "difference": float(np.abs(answered - own).max(1).mean()),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
