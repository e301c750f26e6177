"""A file that holds code is refused before Keras or TensorFlow loads it, and other files are recognised."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import pytest
import tensorflow as tf
import tf_keras

from model.errors import ArtifactError
from model.networks.files import inspect_network, rewritten_config
from model.networks.keras_model import load_keras
from tests.model.kinds import classifier, rescaling

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def with_lambda(k: Any) -> Any:
    return k.Sequential([k.Input((16, 16, 3)), k.layers.Lambda(lambda x: x), k.layers.Flatten()])


def nested_lambda(k: Any) -> Any:
    inputs = k.Input((16, 16, 3))
    return k.Model(inputs, k.layers.Dense(3)(with_lambda(k)(inputs)))


def wrapped_lambda(k: Any) -> Any:
    inputs = k.Input((16, 16, 3))
    return k.Model(inputs, k.layers.TimeDistributed(k.layers.Lambda(lambda x: x))(inputs))


@pytest.mark.parametrize("build", [with_lambda, nested_lambda, wrapped_lambda])
@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_lambda_layer_is_refused_wherever_it_hides(
    tmp_path: Path, build: Callable[[Any], Any], library: Any, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    build(library).save(path)
    with pytest.raises(ArtifactError, match="code"):
        inspect_network(path)


def change_config(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)


@pytest.mark.parametrize(
    "activation",
    [
        {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
        {"module": "keras_attack.layers", "class_name": "Dense", "config": {}},
        {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "own>Lambda"},
        {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}},
        {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
        {"class_name": "TFSMLayer", "config": {"filepath": "/other"}},
        {"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "WriteFile"}}},
        {"class_name": "TensorFlowOpLayer", "config": {"node_def": '{"op": "ReadFile"}'}},
        {"class_name": "TensorFlowOpLayer", "config": {}},
    ],
)
def test_configuration_that_names_foreign_code_is_refused(tmp_path: Path, activation: dict[str, Any]) -> None:
    path = tmp_path / "network.h5"
    classifier()(tf_keras).save(path)

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = activation

    change_config(path, change)
    with pytest.raises(ArtifactError, match="must"):
        inspect_network(path)


def test_saved_model_that_writes_files_is_refused(tmp_path: Path) -> None:
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    def serve(images: tf.Tensor) -> tf.Tensor:
        tf.io.write_file("/tmp/written", "by a network")  # noqa: S108 - it is never run
        return images

    tf.saved_model.save(module, str(tmp_path / "folder"), signatures={"serving_default": serve})
    with pytest.raises(ArtifactError, match="WriteFile"):
        inspect_network(tmp_path / "folder")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("network.h5", b"<!DOCTYPE html>", "Received"),
        ("network.keras", b"PK\x03\x04", "no .keras file"),
    ],
)
def test_other_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        inspect_network(tmp_path / name)


def test_zip_without_a_network_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(ArtifactError, match=r"no \.keras file"):
        inspect_network(tmp_path / "a.keras")


def test_folder_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="SavedModel"):
        inspect_network(tmp_path)


@pytest.mark.parametrize(("library", "reader"), [(keras, "keras3"), (tf_keras, "keras2")])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_version_in_the_file_chooses_the_reader(
    tmp_path: Path, library: Any, reader: str, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    rescaling(library).save(path)
    found = inspect_network(path)
    assert (found.reader, found.version) == (reader, library.__version__)
    assert "Rescaling" in found.layers


def test_file_without_a_version_is_read_by_keras_2(tmp_path: Path) -> None:
    path = tmp_path / "network.h5"
    rescaling(tf_keras).save(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    assert inspect_network(path).reader == "keras2"


def test_half_precision_fixed_batches_and_old_modules_are_rewritten() -> None:
    config = {
        "module": "keras.engine.functional",
        "batch_shape": [8, 4, 4, 3],
        "dtype": {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}},
        "layers": [{"batch_input_shape": [None, 4], "dtype": "float16"}],
    }
    assert rewritten_config(config) == {
        "module": "keras.src.engine.functional",
        "batch_shape": [None, 4, 4, 3],
        "dtype": {"class_name": "DTypePolicy", "config": {"name": "float32"}},
        "layers": [{"batch_input_shape": [None, 4], "dtype": "float32"}],
    }


def test_losses_and_metrics_of_the_author_are_no_part_of_the_network(tmp_path: Path) -> None:
    network = classifier()(keras)
    network.compile("adam", loss=lambda truth, answer: answer - truth)
    inputs = keras.Input((16, 16, 3))
    keras.Model(inputs, network(inputs)).save(tmp_path / "network.keras")
    file = inspect_network(tmp_path / "network.keras")
    assert "compile_config" in str(file.config)
    assert "compile_config" not in str(rewritten_config(file.config))
    assert load_keras(file).count_params() == network.count_params()
