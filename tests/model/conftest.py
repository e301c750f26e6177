"""A tiny artifact, created once per session, and copies that tests may change."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from keras import layers

from model.artifact import Artifact, load_artifact
from model.compile import compile_artifact
from model.image import ImageSpec
from model.training import fit
from model.training.fit import TextureStatistics, save

CLASS_NAMES = ("crack", "dent", "scratch")
SPEC = ImageSpec(height=16, width=20, channels=3)


def tiny_network(
    seed: int = 0,
    spec: ImageSpec = SPEC,
    classes: int = len(CLASS_NAMES),
    activation: str = "softmax",
    hidden: Sequence[int] = (),
) -> keras.Model:
    """A convolution and dense layers with random weights, so that outputs differ between images."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(spec.shape),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=2, activation="elu"),
            layers.Flatten(),
            *(layers.Dense(units, activation="elu") for units in hidden),
            layers.Dense(
                classes, activation=activation, kernel_initializer=keras.initializers.RandomNormal()
            ),
        ]
    )


def random_images(count: int, spec: ImageSpec = SPEC, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *spec.shape), dtype=np.uint8)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An .h5, its card, its compiled model and its stamp. Read-only."""
    h5_path = tmp_path_factory.mktemp("pristine") / "tiny.h5"
    artifact = save(tiny_network(), h5_path, {"class_names": CLASS_NAMES, "image": SPEC})
    compile_artifact(artifact)
    return artifact


@pytest.fixture(scope="session")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same with a heavy head. Read-only."""
    h5_path = tmp_path_factory.mktemp("heavy") / "tiny.h5"
    artifact = save(tiny_network(hidden=[4096]), h5_path, {"class_names": CLASS_NAMES, "image": SPEC})
    compile_artifact(artifact)
    return artifact


@pytest.fixture
def artifact(pristine: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the tiny artifact with its compiled model, for the test to change."""
    folder = tmp_path / "artifact"
    shutil.copytree(pristine.h5_path.parent, folder)
    return load_artifact(folder / pristine.h5_path.name)


@pytest.fixture(scope="module")
def shared_statistics() -> Iterator[Callable[[ImageSpec, int], TextureStatistics]]:
    """Compiling their network takes seconds: the module's trainings with images of one kind share it."""
    shared = functools.cache(TextureStatistics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "TextureStatistics", shared)
        yield shared
