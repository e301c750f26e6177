"""A compiled model is used only with the .h5 that it was compiled from."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from model import compile as compiling
from model.artifact import (
    Artifact,
    CompiledPaths,
    in_cache,
    load_artifact,
    load_compiled,
    next_to_h5,
    read_compiled,
    save_card,
    sha256_of,
    write_compiled,
)
from model.compile import compile_artifact
from model.defaults import user_cache_dir
from model.engines import LiteRtClassifier
from model.errors import ArtifactError
from model.networks.keras_model import save_network
from model.tensorflow_engine import open_tensorflow
from tests.model.conftest import random_images, tiny_network

pytestmark = pytest.mark.slow

IMAGES = random_images(16)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow is not found, so that any compilation fails."""
    find_spec = importlib.util.find_spec

    def find_all_but_tensorflow(name: str, package: str | None = None) -> Any:
        return None if name == "tensorflow" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_tensorflow)


def retrain(artifact: Artifact, seed: int = 1) -> Artifact:
    """Replace the network in the .h5 and update its card, but keep the old compiled model."""
    save_network(tiny_network(seed), artifact.h5_path)
    changes = {"sha256": sha256_of(artifact.h5_path), "golden_probabilities": None}
    save_card(artifact.h5_path, artifact.card.model_copy(update=changes))
    return load_artifact(artifact.h5_path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestCompiling:
    def test_compiled_model_and_stamp_are_next_to_the_h5(self, artifact: Artifact) -> None:
        paths = next_to_h5(artifact)
        assert paths == CompiledPaths(artifact.h5_path.with_suffix(".tflite"))
        assert paths.stamp.name == "tiny.tflite.json"
        stamp = json.loads(paths.stamp.read_text(encoding="utf-8"))
        assert stamp["h5_sha256"] == artifact.card.sha256 == sha256_of(artifact.h5_path)
        assert stamp["sha256"] == sha256_of(paths.tflite)
        assert "tensorflow" in stamp["versions"]

    def test_compiled_model_takes_one_float_image(self, artifact: Artifact) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - only for this test

        interpreter = Interpreter(model_content=next_to_h5(artifact).tflite.read_bytes())
        (image,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert (image["shape"].tolist(), image["dtype"]) == ([1, *artifact.card.image.shape], np.float32)
        assert (outputs["shape"].tolist(), outputs["dtype"]) == ([1, 3], np.float32)

    @pytest.mark.parametrize("classes", [2, 4])
    def test_network_with_other_classes_than_its_card_is_refused(
        self, artifact: Artifact, classes: int
    ) -> None:
        names = tuple("abcd"[:classes])
        card = artifact.card.model_copy(update={"class_names": names, "golden_probabilities": None})
        with pytest.raises(ArtifactError, match="must match its card"):
            compile_artifact(save_card(artifact.h5_path, card))

    def test_command_reports_an_error_in_one_line(self, artifact: Artifact) -> None:
        flip_a_bit(artifact.h5_path)
        with pytest.raises(SystemExit, match="must have the sha256"):
            compiling.main([str(artifact.h5_path)])

    def test_command_compiles_next_to_the_h5(self, artifact: Artifact) -> None:
        paths = next_to_h5(artifact)
        paths.tflite.unlink()
        compiling.main([str(artifact.h5_path)])
        assert read_compiled(artifact, paths) is not None

    def test_dropout_is_off(self, tmp_path: Path) -> None:
        network = keras.Sequential([keras.Input((4, 4, 3)), layers.Dropout(0.5), layers.Flatten()])
        compiled = compiling.compile_network(network, (4, 4, 3))
        images = random_images(1)[:, :4, :4]
        answer = LiteRtClassifier(compiled, 1.0, 1).predict(images)
        assert np.array_equal(answer[0], images[0].ravel())


class TestLoading:
    @pytest.mark.usefixtures("without_tensorflow")
    def test_compiled_model_next_to_the_h5_needs_no_tensorflow(
        self, artifact: Artifact, cache_dir: Path
    ) -> None:
        assert load_compiled(artifact, cache_dir) == next_to_h5(artifact).tflite.read_bytes()
        assert not cache_dir.exists()

    def test_retrained_h5_is_compiled_into_the_cache(
        self, artifact: Artifact, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """From any working directory; the next start reads the cache and does not compile."""
        monkeypatch.chdir(tmp_path)
        stale = next_to_h5(artifact).tflite.read_bytes()
        retrained = retrain(artifact)
        compiled = load_compiled(retrained, cache_dir)
        cache_paths = in_cache(retrained, cache_dir)
        assert compiled == cache_paths.tflite.read_bytes() != stale
        assert next_to_h5(artifact).tflite.read_bytes() == stale
        served = LiteRtClassifier(compiled, 1.0, 1).predict(IMAGES)
        assert np.abs(served - open_tensorflow(retrained).predict(IMAGES)).max() <= 1e-5
        assert np.abs(served - LiteRtClassifier(stale, 1.0, 1).predict(IMAGES)).max() > 1e-2

        written = [path.stat() for path in (cache_paths.tflite, cache_paths.stamp)]
        assert load_compiled(retrained, cache_dir) == compiled
        for path, stat in zip((cache_paths.tflite, cache_paths.stamp), written, strict=True):
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        assert sorted(path.name for path in cache_dir.iterdir()) == sorted(
            [cache_paths.tflite.name, cache_paths.stamp.name]
        )

    @pytest.mark.usefixtures("without_tensorflow")
    @pytest.mark.parametrize(
        "spoilt", ["model", "stamp", "no-model", "no-stamp", "bad-stamp", "cache", "retrained"]
    )
    def test_without_tensorflow_the_error_names_the_command(
        self, artifact: Artifact, cache_dir: Path, spoilt: str
    ) -> None:
        paths = next_to_h5(artifact)
        match spoilt:
            case "model":
                flip_a_bit(paths.tflite)
            case "cache":
                cached = in_cache(artifact, cache_dir)
                write_compiled(artifact, cached, paths.tflite.read_bytes(), {})
                flip_a_bit(cached.tflite)
                flip_a_bit(paths.tflite)
            case "stamp":
                paths.stamp.write_text(paths.stamp.read_text().replace(artifact.card.sha256, "0" * 64))
            case "no-model":
                paths.tflite.unlink()
            case "no-stamp":
                paths.stamp.unlink()
            case "bad-stamp":
                paths.stamp.write_text("{")
            case _:
                artifact = retrain(artifact)
        with pytest.raises(ArtifactError) as caught:
            load_compiled(artifact, cache_dir)
        assert str(caught.value).endswith(f"run: ext-classify compile --model {artifact.h5_path}")
        assert cache_dir.exists() == (spoilt == "cache")

    @pytest.mark.usefixtures("without_tensorflow")
    def test_cached_model_is_used_instead_of_a_tampered_one(
        self, artifact: Artifact, cache_dir: Path
    ) -> None:
        genuine = next_to_h5(artifact).tflite.read_bytes()
        write_compiled(artifact, in_cache(artifact, cache_dir), genuine, {})
        flip_a_bit(next_to_h5(artifact).tflite)
        assert load_compiled(artifact, cache_dir) == genuine

    def test_compilation_error_is_one_line(self, artifact: Artifact, cache_dir: Path) -> None:
        artifact.h5_path.write_bytes(b"no network")
        card = artifact.card.model_copy(update={"sha256": sha256_of(artifact.h5_path)})
        with pytest.raises(ArtifactError, match=r"could not be compiled: .*not HDF5") as caught:
            load_compiled(save_card(artifact.h5_path, card), cache_dir)
        assert "\n" not in str(caught.value)
        assert not cache_dir.exists()

    def test_written_model_round_trips(self, artifact: Artifact, cache_dir: Path) -> None:
        paths = CompiledPaths(cache_dir / "deep" / "down.tflite")
        write_compiled(artifact, paths, b"model", {"tensorflow": "2"})
        assert read_compiled(artifact, paths) == b"model"
        assert sorted(path.name for path in paths.tflite.parent.iterdir()) == [
            "down.tflite",
            "down.tflite.json",
        ]


def test_cache_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_dir() == tmp_path / "ext-classify"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache_dir() == tmp_path / "home" / ".cache" / "ext-classify"


def test_serving_modules_import_no_tensorflow() -> None:
    modules = ["artifact", "engines", "evaluation.evaluate", "image", "training.folder"]
    code = (
        f"import sys, importlib; [importlib.import_module('model.' + name) for name in {modules}]; "
        "print({'tensorflow', 'keras', 'h5py', 'tqdm'} & {name.split('.')[0] for name in sys.modules})"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


def test_artifact_is_served_from_a_moved_folder(artifact: Artifact, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(artifact.h5_path.parent, moved)
    assert load_compiled(load_artifact(moved / "tiny.h5"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
