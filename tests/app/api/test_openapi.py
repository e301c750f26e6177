"""The OpenAPI document matches what the service accepts and returns."""

import base64
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.forms import text_of


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operation(document: Any) -> Any:
    return document["paths"]["/classify"]["post"]


def validate(document: Any, schema: Any, value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def schema_of(document: Any, name: str) -> Any:
    return {"$ref": f"#/components/schemas/{name}"}


def test_document_works_behind_a_path_prefix(document: Any) -> None:
    assert document["servers"] == [{"url": "."}]


def test_three_forms_are_documented(document: Any) -> None:
    assert set(operation(document)["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
        "application/octet-stream",
        "image/*",
    }


def test_documented_example_is_classified(client: TestClient, document: Any) -> None:
    media = operation(document)["requestBody"]["content"]["application/json"]
    validate(document, media["schema"], media["example"])
    [[_, outcome], [_, null]] = client.post("/classify", json=media["example"]).json()["data"]
    assert outcome["error"] is None
    assert null is None


def test_answers_are_as_documented(client: TestClient, document: Any, sample: bytes) -> None:
    batch = {"data": [[0, text_of(sample)], [1, None], [2, "?"], [3, base64.b64encode(b"x").decode()]]}
    validate(document, schema_of(document, "BatchAnswer"), client.post("/classify", json=batch).json())
    files = client.post("/classify", files=[("a", ("a.png", sample)), ("b", ("b", b"x"))]).json()
    validate(document, schema_of(document, "FilesAnswer"), files)
    image = client.post("/classify", content=sample, headers={"Content-Type": "image/png"}).json()
    validate(document, schema_of(document, "Outcome"), image)
    for answer in (files, image):
        validate(
            document, operation(document)["responses"]["200"]["content"]["application/json"]["schema"], answer
        )


def test_documented_answers_are_valid(document: Any) -> None:
    media = operation(document)["responses"]["200"]["content"]["application/json"]
    assert len(media["examples"]) == 3
    for example in media["examples"].values():
        validate(document, media["schema"], example["value"])


def test_outcome_schema_allows_no_missing_key(document: Any) -> None:
    outcome = document["components"]["schemas"]["Outcome"]
    assert set(outcome["required"]) == set(outcome["properties"])


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [("application/json", b"{", 400), ("text/plain", b"x", 415), ("application/json", b"{}", 422)],
)
def test_refusals_are_as_documented(
    client: TestClient, document: Any, content_type: str, body: bytes, status: int
) -> None:
    answer = client.post("/classify", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status
    documented = operation(document)["responses"][str(status)]["content"]["application/json"]["schema"]
    validate(document, documented, answer.json())


def test_front_page_leads_to_the_documentation_where_there_is_no_other() -> None:
    with TestClient(create_app(Settings(show_playground=False))) as client:
        assert "swagger-ui" in client.get("/").text


def test_documentation_asks_nothing_of_the_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page.replace("https://fastapi.tiangolo.com", "")
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"docs/assets/{asset}" in page
        assert client.get(f"/docs/assets/{asset}").status_code == 200
