"""Files that people take for a network are recognised, and the message names what helps."""

import zipfile
from pathlib import Path

import h5py
import keras
import pytest
from keras import layers

from model.artifact import load_artifact, save_card
from model.defaults import SHIPPED_MODELS
from model.errors import ArtifactError
from model.model_file import fault_of, import_command, inspect_file, refuse_unusable
from model.networks.keras_model import save_network
from tests.model.conftest import tiny_network

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def write_weights(path: Path) -> None:
    tiny_network().save_weights(path.with_suffix(".weights.h5"))
    path.with_suffix(".weights.h5").rename(path)


def write_keras_2_weights(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv2d"]


def write_foreign_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["table"] = [1, 2, 3]


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keras_model.h5", b"")
        archive.writestr("labels.txt", b"0 ROCK")


def write_pytorch(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02")


def write_keras(path: Path) -> None:
    tiny_network().save(path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


def write_lambda(path: Path) -> None:
    code = layers.Lambda(lambda x: x)
    save_network(keras.Sequential([keras.Input((8, 8, 3)), keras.Sequential([code]), layers.Flatten()]), path)


def write_saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").touch()


@pytest.mark.parametrize(
    ("write", "kind", "advice"),
    [
        (write_weights, "weights", "load_weights"),
        (write_keras_2_weights, "weights", "load_weights"),
        (write_foreign_hdf5, "hdf5", "network.save"),
        (lambda path: path.write_bytes(POINTER), "lfs_pointer", "git lfs pull"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "html", "raw file"),
        (lambda path: path.write_bytes(b""), "empty", "again"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00"), "other", "network.save"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "zip", "unzip"),
        (write_zip, "zip", "keras_model.h5"),
        (write_pytorch, "pytorch", "torch.onnx.export"),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch"), "onnx", "onnx2tf"),
        (lambda path: path.write_text(tiny_network().to_json()), "layers", "model_from_json"),
        (write_lambda, "keras_h5", "Lambda"),
        (Path.mkdir, "folder", "inside"),
    ],
)
def test_unusable_file_is_recognised(write: object, kind: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "network.h5"
    write(path)  # type: ignore[operator]
    found = inspect_file(path)
    assert found.kind == kind
    assert advice in str(fault_of(found))
    with pytest.raises(ArtifactError, match="Received:"):
        load_artifact(path)


@pytest.mark.parametrize("path", SHIPPED_MODELS.values(), ids=str)
def test_shipped_networks_are_recognised(path: Path) -> None:
    found = inspect_file(path)
    assert (found.kind, found.outputs, fault_of(found)) == ("keras_h5", 6, None)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (write_keras, "keras_zip"),
        (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3"), "tflite"),
        (write_saved_model, "saved_model"),
    ],
)
def test_network_without_a_card_is_imported(write: object, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "network.h5"
    write(path)  # type: ignore[operator]
    found = inspect_file(path)
    assert (found.kind, fault_of(found)) == (kind, None)
    with pytest.raises(ArtifactError) as missing:
        load_artifact(path)
    assert import_command(path) in str(missing.value)


def test_replaced_file_with_a_card_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "network.h5"
    artifact = load_artifact(SHIPPED_MODELS["texture"])
    path.write_bytes(POINTER)
    save_card(path, artifact.card)
    with pytest.raises(ArtifactError, match="git lfs pull"):
        load_artifact(path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("functional", [False, True])
def test_number_of_names_must_be_that_of_the_outputs(
    tmp_path: Path, *, nested: bool, functional: bool
) -> None:
    network = tiny_network()
    if functional:
        inputs = keras.Input(network.input_shape[1:])
        network = keras.Model(inputs, layers.Dense(3, name="end")(layers.Flatten()(inputs)))
    if nested:
        network = keras.Sequential([keras.Input(network.input_shape[1:]), network, layers.Softmax()])
    path = tmp_path / "network.h5"
    save_network(network, path)
    assert refuse_unusable(path, ["a", "b", "c"]).outputs == 3
    with pytest.raises(ArtifactError, match="each of the 3 outputs"):
        refuse_unusable(path, ["a", "b"])
