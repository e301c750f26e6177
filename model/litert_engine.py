"""The engine for serving: LiteRT runs the compiled model."""

import importlib
from queue import LifoQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.classifier import Answers, Images, join_answers
from model.errors import ArtifactError


class LiteRtClassifier:
    """LiteRT with XNNPACK: one single-threaded interpreter per core, each used by one thread at a time.

    The network runs once per image, which is as fast as in batches; only a heavy head runs once per call. The
    output for an image is bit-identical in every batch.
    """

    def __init__(self, compiled: bytes, scale: float, interpreters: int) -> None:
        self._idle: LifoQueue[_Network] = LifoQueue()
        for _ in range(interpreters):
            self._idle.put(_open_network(compiled, scale))

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        network = self._idle.get()
        try:
            return network.answer(images, with_features=with_features)
        finally:
            self._idle.put(network)


class _Network(Protocol):
    """A warmed-up network, used by one thread at a time."""

    def answer(self, images: Images, *, with_features: bool) -> Answers: ...


class _Whole:
    """A network that takes one image per call."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        self._one_image = _OneImage(interpreter, scale)
        self._interpreter = interpreter
        self._outputs = self._find_outputs()

    def answer(self, images: Images, *, with_features: bool) -> Answers:
        return join_answers([self._answer_one(image, with_features=with_features) for image in images])

    def _answer_one(self, image: NDArray[np.uint8], *, with_features: bool) -> Answers:
        self._one_image.run(image)
        return Answers(
            probabilities=self._interpreter.get_tensor(self._outputs["probabilities"]),  # (1, k), a copy
            embeddings=self._read("embedding"),
            features=self._read("features") if with_features else None,
        )

    def _read(self, name: str) -> NDArray[np.float32] | None:
        index = self._outputs.get(name)
        return None if index is None else self._interpreter.get_tensor(index)

    def _find_outputs(self) -> dict[str, int]:
        """Tensor index of each named output. A compiled model with one output may leave it unnamed."""
        details = self._interpreter.get_output_details()
        if len(details) == 1:
            return {"probabilities": details[0]["index"]}
        [signature] = self._interpreter.get_signature_list()
        named = self._interpreter.get_signature_runner(signature).get_output_details()
        return {name: detail["index"] for name, detail in named.items()}


class _BodyAndHead:
    """A network with two signatures: the body runs once per image, the head once for n flattened images."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        self._body = _OneImage(interpreter, scale)
        self._interpreter = interpreter
        [flattened] = interpreter.get_output_details()
        self._flattened = flattened["index"]
        self._run_head(np.zeros(flattened["shape"], np.float32))  # the first run packs the weights

    def answer(self, images: Images, *, with_features: bool) -> Answers:  # noqa: ARG002 - no features
        return Answers(self._run_head(np.concatenate([self._run_body(image) for image in images])))

    def _run_body(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._body.run(image)
        flattened: NDArray[np.float32] = self._interpreter.get_tensor(self._flattened)  # (1, d), a copy
        return flattened

    def _run_head(self, flattened: NDArray[np.float32]) -> NDArray[np.float32]:
        # Created per call (3 microseconds): while a runner exists, no other signature may run.
        head = self._interpreter.get_signature_runner("head")
        probabilities: NDArray[np.float32] = head(inputs=flattened)["probabilities"]
        return probabilities


class _OneImage:
    """An interpreter's first signature, warmed up; releases the GIL while it runs."""

    def __init__(self, interpreter: Any, scale: float) -> None:
        interpreter.allocate_tensors()
        [details] = interpreter.get_input_details()
        self._interpreter = interpreter
        self._input_shape = tuple(details["shape"][1:])
        self._input = interpreter.tensor(details["index"])
        self._scale = np.float32(scale)
        interpreter.invoke()  # the first run packs the weights

    def run(self, image: NDArray[np.uint8]) -> None:
        if image.shape != self._input_shape:  # NumPy would broadcast some shapes
            raise ValueError(f"An image must be of shape {self._input_shape}. Received: {image.shape}.")
        self._scale_into_input(image)
        self._interpreter.invoke()

    def _scale_into_input(self, image: NDArray[np.uint8]) -> None:
        """Write directly to the input tensor. No reference to its memory may exist while the network runs."""
        pixels = self._input()[0]
        if image.shape[2] == 1 or image.strides[2] != 0:
            np.multiply(image, self._scale, out=pixels)
            return
        grey = np.multiply(image[:, :, 0], self._scale, dtype=np.float32)  # all channels are equal
        for channel in range(image.shape[2]):
            pixels[:, :, channel] = grey


def _open_network(compiled: bytes, scale: float) -> _Network:
    """Open a compiled model. Raises ArtifactError if it is not a LiteRT model."""
    # Imported lazily: some Snowflake warehouses have TensorFlow only.
    litert = importlib.import_module("ai_edge_litert.interpreter")
    try:
        interpreter = litert.Interpreter(model_content=compiled, num_threads=1)
    except ValueError as error:
        raise ArtifactError(f"The compiled model must be a LiteRT model: {error}") from None
    kind = _BodyAndHead if "head" in interpreter.get_signature_list() else _Whole
    return kind(interpreter, scale)
