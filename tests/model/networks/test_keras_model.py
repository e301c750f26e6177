"""The recipe is the published one, and files that contain code are never loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from model.artifact import ArtifactCard
from model.errors import ArtifactError
from model.image import ImageSpec
from model.networks.keras_model import count_macs, load_network, save_network
from model.networks.network import network_of, refuse_mismatch
from model.training.recipe import recipe_cnn
from tests.model.conftest import CLASS_NAMES, SPEC, random_images, tiny_network

NEU = ImageSpec(height=200, width=200, channels=3)


@pytest.fixture(scope="module")
def recipe() -> keras.Model:
    return recipe_cnn(NEU, 6)


class TestRecipe:
    def test_it_has_the_published_parameters(self, recipe: keras.Model) -> None:
        assert recipe.count_params() == 3_445_446

    def test_layers_are_the_published_ones(self, recipe: keras.Model) -> None:
        assert [type(layer).__name__ for layer in recipe.layers] == [
            "Rescaling",
            *["Conv2D", "MaxPooling2D"] * 3,
            "Flatten",
            "Dense",
            "Dropout",
            "Dense",
        ]

    def test_convolutions_are_the_published_ones(self, recipe: keras.Model) -> None:
        convolutions = [layer for layer in recipe.layers if isinstance(layer, layers.Conv2D)]
        assert [
            (c.filters, c.kernel_size, c.strides, c.dilation_rate, c.padding, c.activation.__name__)
            for c in convolutions
        ] == [
            (64, (2, 2), (2, 2), (1, 1), "valid", "elu"),
            (128, (2, 2), (2, 2), (1, 1), "valid", "elu"),
            (256, (2, 2), (1, 1), (2, 2), "valid", "elu"),
        ]

    def test_head_is_the_published_one(self, recipe: keras.Model) -> None:
        hidden, dropout, output = recipe.layers[-3:]
        assert (hidden.units, hidden.activation.__name__) == (512, "elu")
        assert dropout.rate == 0.3
        assert (output.units, output.activation.__name__) == (6, "softmax")

    def test_it_costs_44_million_multiplications_an_image(self, recipe: keras.Model) -> None:
        assert count_macs(recipe) == 44_547_072

    def test_it_scales_pixels_by_itself(self, recipe: keras.Model) -> None:
        images = random_images(2, NEU).astype(np.float32)
        inner = keras.Sequential(recipe.layers[1:])
        inside = recipe(images, training=False)
        assert np.allclose(inside, inner(images / 255, training=False), atol=1e-6)
        assert not np.allclose(inside, inner(images, training=False), atol=1e-2)

    def test_it_takes_other_images_and_classes(self) -> None:
        network = recipe_cnn(ImageSpec(height=64, width=96, channels=1), 4)
        assert network.input_shape == (None, 64, 96, 1)
        assert network.output_shape == (None, 4)


class TestLoading:
    def test_saved_network_predicts_as_before(self, tmp_path: Path) -> None:
        network = tiny_network()
        save_network(network, tmp_path / "n.h5")
        images = random_images(3).astype(np.float32)
        loaded = load_network(tmp_path / "n.h5")
        assert np.array_equal(loaded(images, training=False), network(images, training=False))

    def test_saved_network_contains_no_optimizer(self, tmp_path: Path) -> None:
        network = tiny_network()
        network.compile(optimizer="adam", loss="categorical_crossentropy")
        save_network(network, tmp_path / "n.h5")
        with h5py.File(tmp_path / "n.h5") as file:
            assert "optimizer_weights" not in file
            assert "training_config" not in file.attrs

    @pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
    def test_file_that_is_no_h5_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "n.h5"
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"n\.h5, an? (empty|file that is not HDF5|HDF5 file)"):
            load_network(path)

    def test_h5_without_a_network_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "weights.h5", "w") as file:
            file.create_dataset("weights", data=np.zeros(3))
        with pytest.raises(ArtifactError, match="HDF5 file that Keras did not write"):
            load_network(tmp_path / "weights.h5")

    def test_truncated_h5_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "n.h5"
        save_network(tiny_network(), path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ArtifactError, match=r"not a Keras"):
            load_network(path)

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"none\.h5"):
            load_network(tmp_path / "none.h5")


def with_lambda() -> keras.Model:
    return keras.Sequential([keras.Input(SPEC.shape), layers.Lambda(lambda x: x), layers.Flatten()])


def nested_in_sequential() -> keras.Model:
    return keras.Sequential([keras.Input(SPEC.shape), with_lambda(), layers.Dense(3, activation="softmax")])


def nested_in_functional() -> keras.Model:
    inputs = keras.Input(SPEC.shape)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(nested_in_sequential()(inputs)))


def wrapped_in_a_layer() -> keras.Model:
    inputs = keras.Input(SPEC.shape)
    return keras.Model(inputs, layers.TimeDistributed(layers.Lambda(lambda x: x))(inputs))


class TestCode:
    @pytest.mark.parametrize(
        "build", [with_lambda, nested_in_sequential, nested_in_functional, wrapped_in_a_layer]
    )
    def test_lambda_layer_is_refused_wherever_it_hides(
        self, tmp_path: Path, build: Callable[[], keras.Model]
    ) -> None:
        path = tmp_path / "n.h5"
        save_network(build(), path)
        with pytest.raises(ArtifactError, match="Lambda layer"):
            load_network(path)

    def test_serialized_function_as_an_activation_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "n.h5"
        save_network(tiny_network(), path)
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            code = {"code": "4wAAAAA=", "defaults": None, "closure": None}
            config["config"]["layers"][-1]["config"]["activation"] = {
                "class_name": "__lambda__",
                "config": {"class_name": "function", "config": "relu", "value": code},
            }
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(ArtifactError):
            load_network(path)


class TestMismatch:
    CARD = ArtifactCard(class_names=CLASS_NAMES, image=SPEC, scale=1.0, sha256="0" * 64)

    def test_network_of_the_card_is_accepted(self) -> None:
        refuse_mismatch(network_of(tiny_network()), self.CARD)

    @pytest.mark.parametrize(
        "network",
        [
            lambda: tiny_network(classes=4),
            lambda: tiny_network(spec=ImageSpec(height=16, width=21, channels=3)),
            lambda: tiny_network(spec=ImageSpec(height=16, width=20, channels=1)),
            lambda: keras.Sequential([keras.Input(SPEC.shape), layers.Conv2D(3, 3)]),
        ],
        ids=["classes", "width", "channels", "no-vector"],
    )
    def test_other_network_is_refused(self, network: Callable[[], keras.Model]) -> None:
        with pytest.raises(ArtifactError, match=r"its card: \(None, 16, 20, 3\) and \(None, 3\)"):
            refuse_mismatch(network_of(network()), self.CARD)
