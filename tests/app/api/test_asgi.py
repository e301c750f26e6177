import pytest
from starlette import datastructures, requests
from starlette.testclient import TestClient

from app.api.body import MAX_QUERY_BYTES


def parse_nothing(text: str, **_: object) -> list[tuple[str, str]]:
    assert text == "", "nothing reads it, so nothing may parse it"
    return []


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/metrics", "/model", "/docs", "/openapi.json", "/none"]
)
def test_cookies_and_query_of_a_page_are_not_parsed(
    path: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = client.get(path).status_code
    monkeypatch.setattr(requests, "cookie_parser", parse_nothing)
    monkeypatch.setattr(datastructures, "parse_qsl", parse_nothing)
    assert client.get(f"{path}?a=1", headers={"Cookie": 'a="\\\\"'}).status_code == status


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"x", "image/png"),
        (b'{"data":[[0,null]]}', "application/json"),
        (b"x", "multipart/form-data; boundary=b"),
    ],
)
def test_query_of_a_classification_has_a_length(
    body: bytes, content_type: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastructures, "parse_qsl", parse_nothing)
    headers = {"Content-Type": content_type}
    answer = client.post("/classify?" + "a&" * MAX_QUERY_BYTES, content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "A query must have at most 1024 bytes. Received: 2048."


def test_query_may_have_other_parameters(client: TestClient) -> None:
    query = "evidence=false&" + "a" * (MAX_QUERY_BYTES - 15)
    answer = client.post(f"/classify?{query}", json={"data": [[0, None]]})
    assert answer.json() == {"data": [[0, None]]}
