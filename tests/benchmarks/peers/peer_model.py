"""What all peers share: image files to pixels, pixels to probabilities, probabilities to answers.

It runs in environments of its own, where no package of this repository is installed.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pybase64
from numpy.typing import NDArray
from PIL import Image, ImageOps
from served_report import report_served

FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")

Answer: TypeAlias = dict[str, Any]
Pixels: TypeAlias = NDArray[np.uint8]
Predict: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Engine(NamedTuple):
    predict: Predict
    name: str
    """As the package that computes names itself."""
    version: str


def setting(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


class PeerModel:
    """MODEL_PATH (.onnx, .tflite or .h5), held in memory and warm; answers for images as CARD_PATH describes.

    Reports what it serves, and the version of `framework`, the distribution that serves it.
    THREADS is the engine's number of threads; MICRO_BATCH is the maximum of images per call of the engine,
    0 for all; with DECODE_THREADS above 1, threads decode a batch concurrently. It is thread-safe, except
    with LiteRT and OpenVINO. DECODER=service decodes as ext-classify does, whose sources PYTHONPATH names.
    """

    def __init__(self, framework: str) -> None:
        card = json.loads(Path(os.environ["CARD_PATH"]).read_text(encoding="utf-8"))
        self._class_names: list[str] = card["class_names"]
        self._scale = np.float32(card["scale"])
        image = card["image"]
        self._shape = (image["height"], image["width"], image["channels"])
        self._mode = "L" if image["channels"] == 1 else "RGB"
        self._micro_batch = setting("MICRO_BATCH", 0)
        if os.environ.get("DECODER") == "service":
            self._decode = service_decoder(image)
        self._map = self._mapper(setting("DECODE_THREADS", 1))
        path = os.environ["MODEL_PATH"]
        engine = open_engine(path, self._shape, setting("THREADS", 1))
        self._predict = engine.predict
        for rows in (1, self._micro_batch or 64):
            self._probabilities(np.zeros((rows, *self._shape), np.uint8))
        report_served(framework, engine.name, engine.version, path)

    def answer_rows(self, rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """[[row number, base64], …] to [[row number, answer], …]."""
        images = [row[1] for row in rows]
        answers = self._answer(list(self._map(partial(attempt, self._decode_base64), images)))
        return [[row[0], answer] for row, answer in zip(rows, answers, strict=True)]

    def answer_files(self, files: Sequence[bytes]) -> list[Answer]:
        return self._answer(list(self._map(partial(attempt, self._decode), files)))

    def _decode_base64(self, text: str) -> Pixels:
        return self._decode(pybase64.b64decode(text, validate=True))

    def _decode(self, data: bytes) -> Pixels:
        height, width, _ = self._shape
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            ImageOps.exif_transpose(image, in_place=True)
            # Pillow's own conversion clips deep pixels to white.
            shallow = Image.fromarray(np.asarray(image) // 257) if image.mode == "I;16" else image
            upright = shallow if shallow.mode == self._mode else shallow.convert(self._mode)
            if upright.size != (width, height):
                upright = upright.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(upright).reshape(self._shape)

    def _answer(self, decoded: Sequence[Pixels | Answer]) -> list[Answer]:
        """One answer an image; what did not decode is an answer already."""
        images = [image for image in decoded if isinstance(image, np.ndarray)]
        if not images:
            return list(decoded)
        found = iter(self._probabilities(np.stack(images)).astype(np.float64).round(6).tolist())
        return [self._describe(next(found)) if isinstance(row, np.ndarray) else row for row in decoded]

    def _probabilities(self, images: Pixels) -> NDArray[np.float32]:
        step = self._micro_batch or len(images)
        batches = (images[start : start + step] for start in range(0, len(images), step))
        return np.concatenate([self._predict(batch * self._scale) for batch in batches])

    def _describe(self, probabilities: list[float]) -> Answer:
        confidence = max(probabilities)
        return {
            "label": self._class_names[probabilities.index(confidence)],
            "confidence": confidence,
            "probabilities": dict(zip(self._class_names, probabilities, strict=True)),
        }

    @staticmethod
    def _mapper(threads: int) -> Callable[..., Any]:
        return map if threads == 1 else ThreadPoolExecutor(threads).map


def attempt(decode: Callable[[Any], Pixels], image: Any) -> Pixels | Answer:
    """Pixels, or an error object in place of the answer, so that a bad row does not fail the batch."""
    try:
        return decode(image)
    # Pillow and pybase64 raise whatever the broken part of the image leads to.
    except Exception as error:  # noqa: BLE001
        return {"error": {"code": type(error).__name__, "message": str(error)}}


def service_decoder(image: Mapping[str, Any]) -> Callable[[bytes], Pixels]:
    from model.image import ImageSpec, decode  # noqa: PLC0415  # other peers have no package of the service
    from model.image_limits import ImageLimits  # noqa: PLC0415

    spec, limits = ImageSpec.model_validate(image), ImageLimits()
    return lambda data: decode(data, spec, limits)


def open_engine(path: str, shape: tuple[int, int, int], threads: int) -> Engine:
    """Its `predict` takes images (n, h, w, c), float32 0..255, and returns probabilities (n, k)."""
    if path.endswith(".tflite"):
        return open_litert(path, threads)
    if path.endswith(".onnx"):
        openvino = os.environ.get("ENGINE") == "openvino"
        return open_openvino(path, threads) if openvino else open_onnxruntime(path, threads)
    return open_tensorflow(path, shape, threads)


def open_litert(path: str, threads: int) -> Engine:
    """One interpreter, one image a call, except for a head with a signature of its own."""
    import ai_edge_litert  # noqa: PLC0415
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    signature, *others = interpreter.get_signature_list()
    outputs = interpreter.get_signature_runner(signature).get_output_details()
    name = "flattened" if others else "probabilities"
    output = outputs[name]["index"] if name in outputs else interpreter.get_output_details()[0]["index"]
    [images] = interpreter.get_input_details()

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        interpreter.set_tensor(images["index"], image[np.newaxis])
        interpreter.invoke()
        return interpreter.get_tensor(output)

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.concatenate([run(image) for image in batch])
        return interpreter.get_signature_runner("head")(inputs=found)["probabilities"] if others else found

    return Engine(predict, ai_edge_litert.__name__.removeprefix("ai_edge_"), version("ai-edge-litert"))


def open_openvino(path: str, threads: int) -> Engine:
    """Compiled for one image and for MICRO_BATCH: a graph of any number of images takes twice the time."""
    import openvino  # noqa: PLC0415

    properties = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    core, compiled = openvino.Core(), {}
    for rows in {1, setting("MICRO_BATCH", 1)}:
        graph = core.read_model(path)
        graph.reshape([rows, *[side.get_length() for side in list(graph.input().partial_shape)[1:]]])
        compiled[rows] = core.compile_model(graph, "CPU", properties)

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = len(batch) if len(batch) in compiled else 1
        calls = [compiled[rows](part)[0] for part in np.split(batch, len(batch) // rows)]
        return np.concatenate(calls)

    return Engine(predict, openvino.__name__, version("openvino"))


def open_onnxruntime(path: str, threads: int) -> Engine:
    import onnxruntime  # noqa: PLC0415  # each engine is loaded only where it serves

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", os.environ.get("SPINNING", "0"))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    [images] = session.get_inputs()

    def predict(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run(None, {images.name: batch})[0]

    return Engine(predict, onnxruntime.__name__, onnxruntime.__version__)


def open_tensorflow(path: str, shape: tuple[int, int, int], threads: int) -> Engine:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    network = keras.models.load_model(path, compile=False)
    run = tf.function(
        lambda images: network(images, training=False),
        input_signature=[tf.TensorSpec((None, *shape), tf.float32)],
    )
    return Engine(lambda batch: run(batch).numpy(), keras.backend.backend(), tf.__version__)
