"""What all peers share: image files to pixels, pixels to probabilities, probabilities to answers.

It runs in environments of its own, where no package of this repository is installed.
"""

import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
    """MODEL_PATH (.onnx or .h5), held in memory and warm, that answers for images as CARD_PATH describes.

    Reports what it serves, and the version of `framework`, the distribution that serves it.
    THREADS is the engine's number of threads; MICRO_BATCH is the maximum of images per call of the engine,
    0 for all; with DECODE_THREADS above 1, threads decode a batch concurrently. It is thread-safe.
    """

    def __init__(self, framework: str) -> None:
        card = json.loads(Path(os.environ["CARD_PATH"]).read_text(encoding="utf-8"))
        self._class_names: list[str] = card["class_names"]
        self._scale = np.float32(card["scale"])
        image = card["image"]
        self._shape = (image["height"], image["width"], image["channels"])
        self._mode = "L" if image["channels"] == 1 else "RGB"
        self._micro_batch = setting("MICRO_BATCH", 0)
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
            upright = image if image.mode == self._mode else image.convert(self._mode)
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


def open_engine(path: str, shape: tuple[int, int, int], threads: int) -> Engine:
    """Its `predict` takes images (n, h, w, c), float32 0..255, and returns probabilities (n, k)."""
    return (
        open_onnxruntime(path, threads) if path.endswith(".onnx") else open_tensorflow(path, shape, threads)
    )


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
