"""Load and save Keras networks, and what the service, the card and the report read of them."""

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src import ops

from model.arrays import ArrayJson, Floats
from model.errors import ArtifactError
from model.networks.files import NetworkFile, Reader, inspect_network, mapped, rewritten_config


def load_network(h5_path: Path) -> Any:
    """Load a network for inference with the Keras that wrote it: a keras.Model or a tf_keras.Model.

    Mixed precision becomes float32 and a fixed batch size becomes any. Raises ArtifactError if the file
    contains code: Keras ignores safe_mode for .h5 (CVE-2025-9905) and tf_keras runs Lambda layers, so the
    configuration is checked before any layer is built.
    """
    return load_keras(inspect_network(h5_path))


_ADVICE = "If the Keras that wrote it loads it, save it there as .keras: Keras cannot restore every .h5."

_LONGEST_REASON = 400  # characters; Keras quotes whole configurations


def load_keras(file: NetworkFile) -> Any:
    """Load a file that Keras wrote, as `load_network` does."""
    library = _library(file.reader)
    custom_objects: dict[str, Any] = {} if file.reader == "keras3" else _known_to_authors(library)
    config = rewritten_config(file.config)
    if file.reader == "keras3" and h5py.is_hdf5(file.path):
        config = mapped(config, partial(_name_operation, found=custom_objects))
    with tempfile.TemporaryDirectory() as folder:
        path = _with_config(file, config, Path(folder))
        try:
            network = library.models.load_model(path, compile=False, custom_objects=custom_objects)
        # For a broken file, Keras and h5py raise many types of exceptions.
        except Exception as error:
            reason = " ".join(str(error).split())[:_LONGEST_REASON]
            raise ArtifactError(f"{file.path} is not a Keras .h5 model: {reason}. {_ADVICE}") from error
    if file.backend == "theano":
        _flip_kernels(network, library)
    if file.reader == "keras2" and isinstance(network, library.Sequential) and not network.built:
        raise ArtifactError(f"A network must have an input shape. Received: none, in {file.path}.")
    return network


def _flip_kernels(network: Any, library: Any) -> None:
    """Theano computed convolutions, TensorFlow computes correlations; Keras 2.3 flipped the same kernels."""
    kinds = library.layers
    for layer in network.layers:
        if isinstance(layer, library.Model):
            _flip_kernels(layer, library)
        # Classes that inherit from these, such as SeparableConv2D, are stored as they are computed.
        elif type(layer) in (kinds.Conv1D, kinds.Conv2D, kinds.Conv2DTranspose):
            kernel, *others = layer.get_weights()
            layer.set_weights([np.flip(kernel, axis=tuple(range(kernel.ndim - 2))), *others])


def _known_to_authors(library: Any) -> dict[str, Any]:
    """Objects that authors of Keras 2 gave to load_model, by the names in their files.

    `FixedDropout` is of the package efficientnet; TensorFlow names its own functions differently than Keras.
    """
    return {
        "FixedDropout": library.layers.Dropout,
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6,
        "softmax_v2": tf.nn.softmax,
    }


def library_of(network: Any) -> Any:
    """The package keras or tf_keras that the network's class is from."""
    return _library(
        "keras2" if any(c.__module__.startswith("tf_keras.") for c in type(network).mro()) else "keras3"
    )


def _library(reader: Reader) -> Any:
    if reader != "keras2":
        return keras
    try:
        import tf_keras  # noqa: PLC0415 - only networks of Keras 2 need it
    except ModuleNotFoundError:
        raise ArtifactError(
            "A network of Keras 2 is read by tf_keras, which is not installed. Run: make dev"
        ) from None
    return tf_keras


# Those of ops.core that are not here take functions.
_OPERATIONS = {**vars(ops.image), **vars(ops.nn), **vars(ops.numpy), "Cast": ops.core.Cast}


def _name_operation(changed: dict[str, Any], found: dict[str, type]) -> dict[str, Any]:
    """Rename an operation of arithmetic on tensors, and add its class to `found`.

    An .h5 names them without their module, and some names are those of layers too.
    """
    name, own = changed.get("class_name"), changed.get("config")
    kind = _OPERATIONS.get(name) if isinstance(name, str) else None
    # Only layers have `trainable`.
    is_operation = isinstance(own, dict) and "name" in own and "trainable" not in own
    if is_operation and isinstance(kind, type) and issubclass(kind, keras.Operation):
        changed["class_name"] = f"Operation{name}"
        found[changed["class_name"]] = kind
    return changed


def _with_config(file: NetworkFile, config: dict[str, Any], folder: Path) -> Path:
    """The file's path, or that of a copy in `folder` if the configuration differs from the file's."""
    suffix = ".h5" if h5py.is_hdf5(file.path) else ".keras"
    if config == file.config:
        if file.path.suffix == suffix:
            return file.path
        # Keras recognises formats by suffix.
        link = folder / f"network{suffix}"
        link.symlink_to(file.path.resolve())
        return link
    if h5py.is_hdf5(file.path):
        copy = folder / "network.h5"
        shutil.copyfile(file.path, copy)
        with h5py.File(copy, "r+") as h5:
            h5.attrs["model_config"] = json.dumps(config)
        return copy
    copy = folder / "network.keras"
    with zipfile.ZipFile(file.path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            content = json.dumps(config) if name == "config.json" else source.read(name)
            target.writestr(name, content)
    return copy


def save_network(network: keras.Model, h5_path: Path) -> None:
    """Write a Keras .h5 without the state of the optimizer, which inference does not need."""
    # Keras warns at each save that .h5 is a legacy format.
    logging.disable(logging.WARNING)
    try:
        network.save(h5_path, include_optimizer=False)
    finally:
        logging.disable(logging.NOTSET)


@dataclass(frozen=True)
class Head:
    """The end of a network: global average pooling and one dense layer, so scores are sums over positions."""

    features: keras.KerasTensor
    """(n, gh, gw, d), before pooling."""
    embedding: keras.KerasTensor
    """(n, d), after pooling."""
    class_weights: Floats
    """(d, k)."""


def find_head(network: Any) -> Head | None:
    """Head of a network that ends in pooling and a dense layer, dropout and softmax allowed; else None."""
    kinds = library_of(network).layers
    end = [layer for layer in network.layers if not _keeps_scores(layer, kinds)]
    if len(end) < 2 or not isinstance(end[-1], kinds.Dense):
        return None
    pooling, dense = end[-2:]
    if not isinstance(pooling, kinds.GlobalAveragePooling2D) or pooling.keepdims:
        return None
    if pooling.data_format != "channels_last":
        return None
    try:
        return Head(pooling.input, pooling.output, np.asarray(dense.kernel))
    except AttributeError:  # tf_keras: the layer has been called in another network too
        return None


def _keeps_scores(layer: Any, kinds: Any) -> bool:
    """Whether a layer leaves the order of scores as it is."""
    if isinstance(layer, kinds.Activation):
        return getattr(layer.activation, "__name__", "") in {"linear", "sigmoid", "softmax"}
    return isinstance(layer, kinds.Dropout | kinds.Softmax)


def named_outputs(network: Any) -> dict[str, keras.KerasTensor]:
    """`probabilities` and, if the network has a head, `embedding` and `features`."""
    [probabilities] = network.outputs
    head = find_head(network)
    shown = {} if head is None else {"embedding": head.embedding, "features": head.features}
    return {"probabilities": probabilities, **shown}


def class_weights_of(network: keras.Model) -> ArrayJson | None:
    """The head's weights (d, k) for the card, or None without a head."""
    head = find_head(network)
    return None if head is None else ArrayJson.from_array(head.class_weights)


def count_macs(network: keras.Model) -> int:
    """Multiply-accumulate operations of all convolutions and dense layers for one image."""
    # The product is right for a depthwise kernel (h, w, c, 1) too, which does not sum over channels.
    return sum(
        int(np.prod(layer.output.shape[1:-1])) * int(np.prod(layer.kernel.shape))
        for layer in _layers_of(network)
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense)
    )


def _layers_of(network: keras.Model) -> Iterator[keras.layers.Layer]:
    """The network's layers, with nested networks replaced by their layers."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer
