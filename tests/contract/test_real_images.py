"""The shipped artifact on every test image, through a running service, in each form of request."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH, user_cache_dir
from model.engines import open_classifier
from model.evaluation.evaluate import compare, predict_all
from model.training.folder import load_part
from model.training.metrics import measure
from tests.app.forms import text_of
from tests.running import running_service

pytestmark = pytest.mark.slow

BROKEN = ["", "?", text_of(b"GIF89a"), 7, None, {"a": 1}, "http://a/b", "https://a/b", "@s/a", "QUJD"]


@pytest.fixture(scope="module")
def service() -> Iterator[httpx.Client]:
    with running_service() as url, httpx.Client(base_url=url, timeout=180) as client:
        yield client


@pytest.fixture(scope="module")
def images(neu_dir: Path) -> list[tuple[str, bytes]]:
    """The class folder and content of all 72 test images."""
    paths = sorted((neu_dir / "test").glob("*/*"))
    assert len(paths) == 72
    return [(path.parent.name, path.read_bytes()) for path in paths]


def batch_outcomes(service: httpx.Client, sources: list[object]) -> list[dict[str, object]]:
    rows = [[number, source] for number, source in enumerate(sources)]
    data = service.post("/classify", json={"data": rows}).json()["data"]
    assert [number for number, _ in data] == list(range(len(sources)))
    return [outcome for _, outcome in data]


def test_three_forms_agree_on_every_test_image(
    service: httpx.Client, images: list[tuple[str, bytes]]
) -> None:
    batch = batch_outcomes(service, [text_of(image) for _, image in images])
    raw = [
        service.post("/classify", content=image, headers={"Content-Type": "image/png"}).json()
        for _, image in images
    ]
    files = [("file", (f"{number}.png", image)) for number, (_, image) in enumerate(images)]
    uploaded = service.post("/classify", files=files).json()["results"]
    assert batch == raw
    assert batch == [{k: v for k, v in result.items() if k != "filename"} for result in uploaded]
    nearest = [outcome["label"] or outcome["nearest_label"] for outcome in batch]
    right = sum(name == label for name, (label, _) in zip(nearest, images, strict=True))
    assert right == load_artifact(DEFAULT_MODEL_PATH).card.metrics["test"]["correct"]
    assert sum(bool(outcome["abstained"]) for outcome in batch) <= 2


def test_broken_rows_do_not_change_other_rows(service: httpx.Client, images: list[tuple[str, bytes]]) -> None:
    good = [text_of(image) for _, image in images[:54]]
    mixed: list[object] = list(good)
    for place, source in enumerate(BROKEN):
        mixed.insert(place * 6, source)
    clean = batch_outcomes(service, list(good))
    answers = batch_outcomes(service, mixed)
    answered = [o for o in answers if o is not None and o["error"] is None]
    assert json.dumps(answered) == json.dumps(clean)
    assert len(answers) - len(answered) == 10


def test_bmp_has_the_outcome_of_its_png(service: httpx.Client, images: list[tuple[str, bytes]]) -> None:
    for _, png in images[::12]:
        file = BytesIO()
        Image.open(BytesIO(png)).save(file, "BMP")
        assert batch_outcomes(service, [text_of(file.getvalue())]) == batch_outcomes(service, [text_of(png)])


def test_same_image_has_the_same_answer_in_any_batch_and_place(
    service: httpx.Client, images: list[tuple[str, bytes]]
) -> None:
    """The outcome of an image does not depend on its batch."""
    sources: list[object] = [text_of(image) for _, image in images]
    alone = [batch_outcomes(service, [source])[0] for source in sources]
    for size in (3, 16, 72):
        order = list(range(72))[::-1] if size == 16 else list(range(72))
        for start in range(0, 72, size):
            places = order[start : start + size]
            assert batch_outcomes(service, [sources[p] for p in places]) == [alone[p] for p in places]


def test_engines_agree_over_the_whole_test_set(neu_dir: Path) -> None:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    data = load_part(neu_dir, "test", artifact.card.class_names, artifact.card.image)
    tensorflow, litert = (
        predict_all(open_classifier(artifact, engine, 2, user_cache_dir()), data, 2)
        for engine in ("tensorflow", "litert")
    )
    parity = compare(tensorflow, litert)
    assert parity.labels_equal == len(data)
    assert parity.max_difference <= 1e-5
    assert measure(litert, data.labels).correct == artifact.card.metrics["test"]["correct"]
