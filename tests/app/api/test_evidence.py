"""Evidence on request in every form, and abstention on images of no class."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.main import create_app
from app.names import BATCH_ID_HEADER
from app.settings import Settings
from model.defaults import DEFAULT_MODEL_PATH
from model.image import encode_png
from tests.app.forms import post_rows, post_source, text_of

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def recipe() -> Iterator[TestClient]:
    """The published network, which has no global average pooling and therefore no evidence."""
    path = DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5")
    with TestClient(create_app(Settings(model_path=path))) as client:
        yield client


def test_only_rows_that_request_evidence_get_it(client: TestClient, sample: bytes) -> None:
    text = text_of(sample)
    data = post_rows(client, [[0, text], [1, text, {"evidence": True}], [2, text, {"evidence": False}]])
    plain, explained, refused = (outcome for _, outcome in data)
    assert plain["evidence"] is None
    assert refused == plain
    assert {**explained, "evidence": None} == plain
    assert set(explained["evidence"]) == {"box", "heatmap_png"}


def test_forms_without_rows_request_evidence_in_the_query(client: TestClient, sample: bytes) -> None:
    raw = client.post("/classify?evidence=true", content=sample, headers=PNG).json()
    [file] = client.post("/classify?evidence=true", files={"a": ("a.png", sample)}).json()["results"]
    batch = client.post("/classify?evidence=true", json={"data": [[0, text_of(sample)]]}).json()["data"][0][1]
    assert raw["evidence"] == file["evidence"] == batch["evidence"] is not None
    assert client.post("/classify?evidence=false", content=sample, headers=PNG).json()["evidence"] is None


def test_row_option_takes_precedence_over_the_query(client: TestClient, sample: bytes) -> None:
    body = {"data": [[0, text_of(sample), {"evidence": False}]]}
    [[_, outcome]] = client.post("/classify?evidence=true", json=body).json()["data"]
    assert outcome["evidence"] is None


@pytest.mark.parametrize("value", ["yes", "", "1", "TRUE"])
def test_query_of_another_value_is_refused(client: TestClient, sample: bytes, value: str) -> None:
    answer = client.post(f"/classify?evidence={value}", content=sample, headers=PNG)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_batch"
    assert repr(value) in answer.json()["error"]["message"]


@pytest.mark.parametrize("size", [(200, 200), (640, 130), (33, 700)])
def test_box_and_heatmap_are_in_the_proportions_of_the_source(
    client: TestClient, sample: bytes, size: tuple[int, int]
) -> None:
    resized = np.asarray(Image.open(io.BytesIO(sample)).convert("L").resize(size))
    outcome = client.post("/classify?evidence=true", content=encode_png(resized), headers=PNG).json()
    x0, y0, x1, y1 = outcome["evidence"]["box"]
    assert 0 <= x0 < x1 <= size[0]
    assert 0 <= y0 < y1 <= size[1]
    heatmap = Image.open(io.BytesIO(base64.b64decode(outcome["evidence"]["heatmap_png"])))
    assert heatmap.width / heatmap.height == pytest.approx(size[0] / size[1], rel=0.15)


def test_evidence_is_in_the_image_as_it_is_seen(client: TestClient, sample: bytes) -> None:
    """EXIF orientation 6 turns the picture by a quarter; boxes refer to the upright picture."""
    picture = Image.open(io.BytesIO(sample)).convert("L").resize((300, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    outcome = client.post("/classify?evidence=true", content=file.getvalue(), headers=PNG).json()
    heatmap = Image.open(io.BytesIO(base64.b64decode(outcome["evidence"]["heatmap_png"])))
    assert heatmap.height > 2 * heatmap.width


def test_broken_image_has_no_evidence(client: TestClient) -> None:
    [[_, outcome]] = post_rows(client, [[0, text_of(b"GIF89a"), {"evidence": True}]])
    assert outcome["evidence"] is None
    assert outcome["error"]["code"] == "unsupported_format"


def test_network_without_a_head_answers_null(recipe: TestClient, sample: bytes) -> None:
    outcome = recipe.post("/classify?evidence=true", content=sample, headers=PNG).json()
    assert outcome["label"] is not None
    assert outcome["evidence"] is None
    assert outcome["abstained"] is False


def frames() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (200, 200)
    return {
        "black": np.zeros(shape),
        "white": np.full(shape, 255),
        "grey": np.full(shape, 128),
        "faint noise": 90 + random.normal(0, 1, shape),
        "normal noise": 128 + random.normal(0, 40, shape),
        "uniform noise": random.uniform(0, 255, shape),
        "salt and pepper": random.choice((0, 255), shape),
    }


@pytest.mark.parametrize("name", frames())
def test_blank_and_noisy_frames_are_abstained_on(client: TestClient, name: str) -> None:
    pixels = np.rint(np.clip(frames()[name], 0, 255)).astype(np.uint8)
    outcome = post_source(client, text_of(encode_png(pixels)))
    assert outcome["abstained"] is True
    assert outcome["reason"] == "out_of_distribution"
    assert outcome["label"] is outcome["confidence"] is None
    assert outcome["nearest_label"] == max(outcome["probabilities"], key=outcome["probabilities"].get)
    assert outcome["nearest_confidence"] == outcome["probabilities"][outcome["nearest_label"]]
    assert outcome["error"] is None


def test_response_beyond_snowflake_s_limit_is_refused(
    client: TestClient, sample: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.classify.MAX_ANSWER_BYTES", 3000)
    body = {"data": [[n, text_of(sample), {"evidence": n < 2}] for n in range(4)]}
    answer = client.post("/classify", json=body, headers={BATCH_ID_HEADER: "of evidence"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "answer_too_large"
    assert "MAX_BATCH_ROWS" in answer.json()["error"]["message"]
    assert client.post("/classify", json=body).status_code == 200, "other clients accept larger responses"
    plain = client.post("/classify", json={"data": body["data"][2:]}, headers={BATCH_ID_HEADER: "of none"})
    assert plain.status_code == 200
