"""What a network's file says about itself, read without Keras: writer, layers and code."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py

from model.errors import ArtifactError
from model.model_file import parts_of, refuse_unusable

Reader: TypeAlias = Literal["keras3", "keras2", "saved_model", "tflite"]

# Layers that run code, load other files, or call a function that the file names.
_CODE_LAYERS = frozenset(
    {
        "Lambda", "__lambda__", "ClassMethod", "FlaxLayer", "InstanceMethod", "InstanceProperty",
        "IntegerLookup", "JaxLayer", "StringLookup", "TFSMLayer", "TextVectorization", "TorchModuleWrapper",
    }
)  # fmt: skip
# Layers that call the TensorFlow function which their configuration names.
_TENSORFLOW_CALLS = frozenset({"TFOpLambda", "SlicingOpLambda"})
OPERATION_LAYER = "TensorFlowOpLayer"
# What preprocess_input and arithmetic on tensors write. None of them reads or writes outside the graph.
_PURE_FUNCTIONS = {
    f"{prefix}{name}"
    for name in (
        "abs", "add", "add_n", "argmax", "broadcast_to", "cast", "clip_by_value",
        "compat.v1.nn.bias_add", "compat.v1.transpose", "concat", "convert_to_tensor", "divide",
        "einsum", "exp", "expand_dims", "gather", "identity", "image.adjust_contrast",
        "image.central_crop", "image.extract_patches", "image.grayscale_to_rgb",
        "image.per_image_standardization", "image.resize", "image.resize_with_crop_or_pad",
        "image.resize_with_pad", "image.rgb_to_grayscale", "keras.backend.bias_add", "l2_normalize",
        "linalg.l2_normalize", "linalg.matmul", "log", "matmul", "maximum", "minimum", "multiply",
        "negative", "nn.avg_pool2d", "nn.bias_add", "nn.depth_to_space", "nn.elu", "nn.gelu",
        "nn.l2_normalize", "nn.leaky_relu", "nn.local_response_normalization", "nn.max_pool2d",
        "nn.relu", "nn.relu6", "nn.sigmoid", "nn.silu", "nn.softmax", "nn.space_to_depth", "nn.swish",
        "ones_like", "pad", "pow", "reduce_max", "reduce_mean", "reduce_min", "reduce_std",
        "reduce_sum", "reduce_variance", "reshape", "reverse", "rsqrt", "shape", "sigmoid", "slice",
        "split", "sqrt", "square", "squeeze", "stack", "strided_slice", "subtract", "tanh", "tile",
        "transpose", "truediv", "unstack", "zeros_like",
    )
    for prefix in ("", "math.", "__operators__.", "compat.v1.")
} | {"__operators__.getitem"}  # fmt: skip
# TensorFlow before 2.4 wrote the operations themselves, as layers.
_PURE_OPERATIONS = {
    "Abs", "Add", "AddV2", "AvgPool", "BatchMatMulV2", "BiasAdd", "Cast", "ConcatV2", "DepthToSpace",
    "Elu", "Exp", "ExpandDims", "GatherV2", "Identity", "LRN", "LeakyRelu", "Log", "MatMul", "Max",
    "MaxPool", "Maximum", "Mean", "Min", "Minimum", "MirrorPad", "Mul", "Neg", "Pack", "Pad", "PadV2",
    "Pow", "RealDiv", "Relu", "Relu6", "Reshape", "ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2",
    "Rsqrt", "Selu", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split",
    "SplitV", "Sqrt", "Square", "SquaredDifference", "Squeeze", "StridedSlice", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Unpack",
}  # fmt: skip
_KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")
# Functions must be activations, because Keras would call any other of its own or of Python's that is named.
_ACTIVATIONS = frozenset(
    {
        "celu", "elu", "exponential", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh",
        "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid",
        "silu", "softmax", "softmax_v2", "softplus", "softsign", "swish", "tanh",
    }
)  # fmt: skip
# Operations of a SavedModel's graph that read or write files, call Python or use the network.
_IMPURE_OPERATIONS = (
    b"ReadFile", b"WriteFile", b"MatchingFiles", b"PyFunc", b"PyFuncStateless", b"EagerPyFunc",
    b"LoadLibrary", b"WholeFileReaderV2", b"RpcCall",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkFile:
    """A file that holds a network, and no code."""

    path: Path
    reader: Reader
    version: str
    """Of the Keras that wrote it; empty if unknown."""
    config: dict[str, Any] = field(default_factory=dict)
    """Keras's configuration of the network; empty for other formats."""
    backend: str = "tensorflow"
    """Of the Keras that wrote it."""

    @property
    def writer(self) -> str:
        match self.reader:
            case "keras3" | "keras2":
                return f"Keras {self.version}" if self.version else "a Keras before 2"
            case "saved_model":
                return f"TensorFlow {self.version}".strip() + ", as a SavedModel"
        return "TensorFlow, as a LiteRT model"

    @property
    def layers(self) -> list[str]:
        """Class of every layer, nested ones included."""
        return [str(part["class_name"]) for part in parts_of(self.config)]


def inspect_network(path: Path) -> NetworkFile:
    """Recognise a network's file. Raises ArtifactError if it is none, or contains code."""
    match refuse_unusable(path).kind:
        case "keras_h5":
            return _inspect_h5(path)
        case "keras_zip":
            return _inspect_zip(path)
        case "saved_model":
            return _inspect_saved_model(path)
    return NetworkFile(path, "tflite", "")


def rewritten_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration to load: float32 instead of mixed precision, any batch size, known modules."""
    changed: dict[str, Any] = mapped(_without_training(config), _rewritten)
    return changed


def mapped(config: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A configuration with a change to every object, innermost first."""
    if isinstance(config, list):
        return [mapped(value, change) for value in config]
    if not isinstance(config, dict):
        return config
    return change({name: mapped(value, change) for name, value in config.items()})


def _without_training(config: Any) -> Any:
    """Without losses, metrics and optimizers, which inference does not need and which may be custom."""
    return mapped(config, lambda part: {name: part[name] for name in part if name != "compile_config"})


def _inspect_h5(path: Path) -> NetworkFile:
    try:
        with h5py.File(path, "r") as file:
            found = _of_keras(path, file.attrs["model_config"], file.attrs.get("keras_version", ""))
            return replace(found, backend=_text(file.attrs.get("backend", "tensorflow")))
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is not a Keras .h5 model: {error}") from None


def _inspect_zip(path: Path) -> NetworkFile:
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            return _of_keras(path, archive.read("config.json"), metadata.get("keras_version", ""))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is not a .keras file: {error}") from None


def _inspect_saved_model(path: Path) -> NetworkFile:
    graph = path / "saved_model.pb"
    content = graph.read_bytes()
    for operation in _IMPURE_OPERATIONS:
        # A node's operation in its protocol buffer: field 2, its length and its name.
        if b"\x12" + bytes([len(operation)]) + operation in content:
            raise _code_in(graph, operation.decode())
    return NetworkFile(path, "saved_model", "")


def _of_keras(path: Path, config: str | bytes, version: str | bytes) -> NetworkFile:
    parsed = json.loads(config)
    if not isinstance(parsed, dict):
        raise ArtifactError(f"{path} must hold a network. Received: {str(parsed)[:40]}")
    written_by = _text(version)
    _refuse_code(path, _without_training(parsed))
    major = written_by.partition(".")[0]
    return NetworkFile(
        path, "keras3" if major.isdecimal() and int(major) >= 3 else "keras2", written_by, parsed
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    for part in parts_of(config):
        for name in (part["class_name"], part.get("registered_name")):
            short = str(name).rpartition(">")[2].rpartition(".")[2]
            if short in _CODE_LAYERS:
                raise _code_in(path, f"a {short} layer")
        _refuse_call(path, part)
        _refuse_module(path, part)


def _refuse_call(path: Path, part: dict[str, Any]) -> None:
    if part["class_name"] in _TENSORFLOW_CALLS:
        called = (part.get("config") or {}).get("function")
        if called not in _PURE_FUNCTIONS:
            raise _code_in(path, f"a call of tf.{called}")
    if part["class_name"] == OPERATION_LAYER:
        operation = operation_of(part)
        if operation not in _PURE_OPERATIONS:
            raise _code_in(path, f"the operation {operation}")


def _code_in(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"A network must not contain code. Received: {what} in {path}.")


def operation_of(part: dict[str, Any]) -> str | None:
    """The TensorFlow operation of a layer that computes only that."""
    node = (part.get("config") or {}).get("node_def")
    # Some versions wrote it as text.
    node = json.loads(node) if isinstance(node, str) else node
    return node.get("op") if isinstance(node, dict) else None


def _refuse_module(path: Path, part: dict[str, Any]) -> None:
    """Refuse classes and functions of other packages than Keras, which Keras would import by name."""
    module, is_function = part.get("module"), part["class_name"] == "function"
    if is_function and part.get("config") not in _ACTIVATIONS:
        module = f"{module}.{part.get('config')}"
    elif module is None or (is_function and module == "builtins") or _is_of_keras(str(module)):
        return
    raise ArtifactError(
        f"A network must consist of Keras's own layers. Received: {part['class_name']} of {module} in {path}."
    )


def _is_of_keras(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in _KERAS_PACKAGES)


def _rewritten(changed: dict[str, Any]) -> Any:
    if changed.get("class_name") == "function":
        return changed.get("config")  # the name of an activation
    for name in ("batch_shape", "batch_input_shape"):
        shape = changed.get(name)
        if isinstance(shape, list) and shape and isinstance(shape[0], int):
            changed[name] = [None, *shape[1:]]
    if changed.get("class_name") in {"DTypePolicy", "Policy"} and _is_half(changed.get("config")):
        changed["config"] = {**changed["config"], "name": "float32"}
    # Where Keras 2.12 had what tf_keras has in keras.src.
    if str(changed.get("module")).startswith("keras.engine."):
        changed["module"] = changed["module"].replace("keras.", "keras.src.", 1)
    if changed.get("dtype") in _HALF:
        changed["dtype"] = "float32"
    return changed


_HALF = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


def _is_half(config: object) -> bool:
    return isinstance(config, dict) and config.get("name") in _HALF
