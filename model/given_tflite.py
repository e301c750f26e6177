"""A .tflite file that is served as it was given: NumPy computes what is otherwise compiled into a network."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ArtifactError
from model.preprocessing import Ending, Preprocessing, softmax

Shape = tuple[int | None, ...]


class GivenTflite:
    """Runs a .tflite with one input and one output, float or quantised; used by one thread at a time."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - some warehouses have TensorFlow only

        try:
            self._interpreter = Interpreter(model_content=content, num_threads=1)
        except ValueError as error:
            raise ArtifactError(f"The network must be a LiteRT model: {error}") from None
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ArtifactError(
                "A network must have one input and one output. "
                f"Received: {len(inputs)} inputs and {len(outputs)} outputs."
            )
        self._input, self._output = inputs[0], outputs[0]
        self._allocated: tuple[int, ...] = ()

    @property
    def input_shape(self) -> Shape:
        return _shape_of(self._input)

    @property
    def output_shape(self) -> Shape:
        return _shape_of(self._output)

    def run(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs (1, k), float32, for one input (1, ...), float32."""
        if values.shape != self._allocated:
            self._interpreter.resize_tensor_input(self._input["index"], values.shape)
            self._interpreter.allocate_tensors()
            self._allocated = values.shape
        self._interpreter.set_tensor(self._input["index"], _quantise(values, self._input))
        self._interpreter.invoke()
        outputs = _dequantise(self._interpreter.get_tensor(self._output["index"]), self._output)
        return outputs.reshape(1, -1)

    def probabilities(
        self, image: NDArray[np.uint8], preprocessing: Preprocessing, ending: Ending
    ) -> NDArray[np.float32]:
        """Probabilities (1, k) for one image (h, w, c)."""
        return _to_probabilities(self.run(self._arrange(_preprocess(image, preprocessing))), ending)

    def _arrange(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = self.input_shape
        if len(shape) == 4:
            is_channels_first = shape[1] == image.shape[-1] != shape[-1]
            return (np.moveaxis(image, -1, 0) if is_channels_first else image)[np.newaxis]
        return image.reshape(1, *(side or -1 for side in shape[1:]))


def _shape_of(details: dict[str, Any]) -> Shape:
    """(None, ...) with None for every dimension that may change."""
    signature = details.get("shape_signature", details["shape"]).tolist()
    return (None, *(None if side == -1 else int(side) for side in signature[1:]))


def _quantise(values: NDArray[np.float32], details: dict[str, Any]) -> NDArray[Any]:
    kind = details["dtype"]
    scale, zero = details["quantization"]
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        whole = values if not scale else values / np.float32(scale) + zero
        return np.rint(whole).clip(limits.min, limits.max).astype(kind)
    return values.astype(kind)


def _dequantise(values: NDArray[Any], details: dict[str, Any]) -> NDArray[np.float32]:
    scale, zero = details["quantization"]
    floats = values.astype(np.float32)
    return (
        (floats - zero) * np.float32(scale) if scale and np.issubdtype(values.dtype, np.integer) else floats
    )


def _preprocess(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    ordered = image[..., ::-1] if preprocessing.order == "bgr" else image
    scale, offset = np.array(preprocessing.scale, np.float32), np.array(preprocessing.offset, np.float32)
    values: NDArray[np.float32] = ordered.astype(np.float32) * scale + offset
    return values


def _to_probabilities(outputs: NDArray[np.float32], ending: Ending) -> NDArray[np.float32]:
    match ending:
        case "logits":
            return softmax(outputs)
        case "logit":
            return softmax(np.concatenate([np.zeros_like(outputs), outputs], axis=1))
        case "sigmoid":
            return np.concatenate([1 - outputs, outputs], axis=1)
        case "multi_label_logits":
            both = softmax(np.concatenate([np.zeros_like(outputs), outputs]), axis=0)
            return both[1:]
        case "probabilities":
            outputs /= outputs.sum(axis=1, keepdims=True)  # quantised ones sum to 1 only nearly
    return outputs
