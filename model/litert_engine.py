"""The engine that serves: LiteRT runs the compiled twin."""

import importlib
from queue import LifoQueue

import numpy as np
from numpy.typing import NDArray

from model.classifier import Answers, Images, join_answers
from model.errors import ArtifactError


class LiteRtClassifier:
    """LiteRT with XNNPACK: one single-threaded interpreter a core, each used by one thread at a time.

    Images run one by one: that is as fast as in batches, and no answer depends on its neighbours.
    """

    def __init__(self, compiled: bytes, scale: float, interpreters: int) -> None:
        self._idle: LifoQueue[_OneImage] = LifoQueue()
        for _ in range(interpreters):
            self._idle.put(_OneImage(compiled, scale))

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.answer(images).probabilities

    def answer(self, images: Images, *, with_features: bool = False) -> Answers:
        one_image = self._idle.get()
        try:
            return join_answers([one_image.answer(image, with_features=with_features) for image in images])
        finally:
            self._idle.put(one_image)


class _OneImage:
    """An interpreter, warmed, with its input and outputs found; releases the GIL while it runs."""

    def __init__(self, compiled: bytes, scale: float) -> None:
        # By name, for TensorFlow must do where this is not installed, as inside some warehouses.
        litert = importlib.import_module("ai_edge_litert.interpreter")
        try:
            self._interpreter = litert.Interpreter(model_content=compiled, num_threads=1)
        except ValueError as error:
            raise ArtifactError(f"The compiled twin must be a LiteRT network: {error}") from None
        self._interpreter.allocate_tensors()
        [details] = self._interpreter.get_input_details()
        self._input_shape = tuple(details["shape"][1:])
        self._input = self._interpreter.tensor(details["index"])
        self._outputs = self._find_outputs()
        self._scale = np.float32(scale)
        self._interpreter.invoke()  # the first run packs the weights

    def answer(self, image: NDArray[np.uint8], *, with_features: bool) -> Answers:
        if image.shape != self._input_shape:  # NumPy would stretch some to fit
            raise ValueError(f"An image must be {self._input_shape}. Received: {image.shape}.")
        self._scale_into_input(image)
        self._interpreter.invoke()
        return Answers(
            probabilities=self._interpreter.get_tensor(self._outputs["probabilities"]),  # (1, k), a copy
            embeddings=self._read("embedding"),
            features=self._read("features") if with_features else None,
        )

    def _scale_into_input(self, image: NDArray[np.uint8]) -> None:
        """Straight into the network's own memory, which nothing may hold on to while it runs."""
        pixels = self._input()[0]
        if image.shape[2] == 1 or image.strides[2] != 0:
            np.multiply(image, self._scale, out=pixels)
            return
        grey = np.multiply(image[:, :, 0], self._scale, dtype=np.float32)  # it is all channels
        for channel in range(image.shape[2]):
            pixels[:, :, channel] = grey

    def _read(self, name: str) -> NDArray[np.float32] | None:
        index = self._outputs.get(name)
        return None if index is None else self._interpreter.get_tensor(index)

    def _find_outputs(self) -> dict[str, int]:
        """Each named output's tensor. A twin of one output may leave it without a name."""
        details = self._interpreter.get_output_details()
        if len(details) == 1:
            return {"probabilities": details[0]["index"]}
        [signature] = self._interpreter.get_signature_list()
        named = self._interpreter.get_signature_runner(signature).get_output_details()
        return {name: detail["index"] for name, detail in named.items()}
