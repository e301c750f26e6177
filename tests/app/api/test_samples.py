"""The playground offers the samples of the network that serves, and no others."""

import shutil
from pathlib import Path

from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from model.defaults import DEFAULT_MODEL_PATH, SHIPPED_MODELS, find_samples, samples_folder
from tests.conftest import SAMPLES


def copy_network(folder: Path) -> Path:
    for suffix in (".h5", ".json", ".tflite", ".tflite.json"):
        shutil.copy(DEFAULT_MODEL_PATH.with_suffix(suffix), folder)
    return folder / DEFAULT_MODEL_PATH.name


def test_shipped_networks_have_the_drawn_samples() -> None:
    assert [find_samples(path) for path in SHIPPED_MODELS.values()] == [SAMPLES, SAMPLES]


def test_another_network_without_samples_offers_none(tmp_path: Path) -> None:
    h5_path = copy_network(tmp_path)
    samples_folder(h5_path).mkdir()
    with TestClient(create_app(Settings(model_path=h5_path))) as client:
        assert client.get("/playground/samples").json() == []
        assert client.get("/playground/samples/crazing.png").status_code == 404


def test_own_samples_are_served(tmp_path: Path) -> None:
    h5_path = copy_network(tmp_path)
    folder = samples_folder(h5_path)
    folder.mkdir()
    shutil.copy(SAMPLES / "rolled.png", folder / "00-a b ü.png")
    with TestClient(create_app(Settings(model_path=h5_path))) as client:
        assert client.get("/playground/samples").json() == ["00-a b ü.png"]
        assert client.get("/playground/samples/00-a b ü.png").content == (SAMPLES / "rolled.png").read_bytes()
