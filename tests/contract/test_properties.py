"""Snowflake's contract over HTTP for random rows: numbers, order, row errors, statuses, retries."""

import gzip
import json
import uuid
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.names import BATCH_ID_HEADER
from app.outcome import Outcome
from tests.app.forms import text_of
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow

OUTCOME_KEYS = set(Outcome.__annotations__)
IMAGES = [text_of(path.read_bytes()) for path in sorted(SAMPLES.glob("*.png"))]

junk = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=40)
    | st.lists(st.text(max_size=3), max_size=2)
)
sources = (
    st.none()
    | st.sampled_from(IMAGES)
    | st.sampled_from(
        ["https://a.example.com/b.png", "@db.s.images/a.png", "AAAA", "iVBORw0KGgo=", "89504E47"]
    )
    | st.binary(max_size=60).map(text_of)
    | junk
)
options = (
    st.none() | st.just({"evidence": True}) | st.just({"evidence": 1}) | st.dictionaries(st.text(), junk)
)
rows = st.tuples(st.integers(-(1 << 63), (1 << 63) - 1), sources).map(list) | st.tuples(
    st.integers(0, 1 << 40), sources, options
).map(list)
batches = st.lists(rows, min_size=1, max_size=8)

few = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def post(client: TestClient, body: bytes, **headers: str) -> Any:
    return client.post("/classify", content=body, headers={"content-type": "application/json", **headers})


@few
@given(batches)
def test_each_row_is_answered_with_its_number_in_order(client: TestClient, batch: list[list[Any]]) -> None:
    answer = post(client, json.dumps({"data": batch}).encode())
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert [number for number, _ in data] == [row[0] for row in batch]
    for (_, outcome), (_, source, *_) in zip(data, batch, strict=True):
        bad_options = (
            outcome is not None and outcome["error"] and outcome["error"]["code"] == "invalid_options"
        )
        assert (outcome is None) == (source is None) or bad_options
        if outcome is None:
            continue
        assert set(outcome) == OUTCOME_KEYS
        decided = outcome["label"] is not None or outcome["abstained"]
        assert decided == (outcome["error"] is None)
        assert (outcome["confidence"] is None) == (outcome["label"] is None)
        assert (outcome["nearest_confidence"] is None) == (outcome["nearest_label"] is None)


@few
@given(batches, st.sampled_from(IMAGES), st.data())
def test_image_has_the_same_outcome_in_any_batch(
    client: TestClient, batch: list[list[Any]], image: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(batch)))
    mixed = [*batch[:place], [7, image], *batch[place:]]
    [[_, alone]] = post(client, json.dumps({"data": [[7, image]]}).encode()).json()["data"]
    assert post(client, json.dumps({"data": mixed}).encode()).json()["data"][place] == [7, alone]


@few
@given(batches, st.sampled_from(["identity", "gzip", "deflate"]))
def test_repeated_batch_gets_the_same_bytes(
    client: TestClient, batch: list[list[Any]], encoding: str
) -> None:
    body = json.dumps({"data": batch}).encode()
    encoded = {"identity": body, "gzip": gzip.compress(body), "deflate": zlib.compress(body)}[encoding]
    headers = {BATCH_ID_HEADER: str(uuid.uuid4()), "content-encoding": encoding}
    first, again = (post(client, encoded, **headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert (
        client.get("/classify", headers={BATCH_ID_HEADER: headers[BATCH_ID_HEADER]}).content == first.content
    )


@few
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.builds(json.dumps, junk).map(str.encode)
)
def test_invalid_batch_is_a_client_error(client: TestClient, body: bytes) -> None:
    answer = post(client, body)
    assume(
        answer.json() != {"data": []}
    )  # Hypothesis also tries constants of the code, such as an empty batch
    assert answer.status_code in {400, 413, 422}
    [error] = answer.json().values()
    assert set(error) == {"code", "message", "retryable"}
    assert error["retryable"] is False
