import json

import pytest
from starlette import datastructures, requests
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient

from app.api.asgi import Service, error_response
from app.api.body import MAX_QUERY_BYTES
from app.errors import Unauthorized
from app.main import create_app
from app.settings import Settings


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
def test_query_of_a_classification_has_a_maximum_length(
    body: bytes, content_type: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastructures, "parse_qsl", parse_nothing)
    headers = {"Content-Type": content_type}
    answer = client.post("/classify?" + "a&" * MAX_QUERY_BYTES, content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_batch"


def test_query_may_have_other_parameters(client: TestClient) -> None:
    query = "evidence=false&" + "a" * (MAX_QUERY_BYTES - 15)
    answer = client.post(f"/classify?{query}", json={"data": [[0, None]]})
    assert answer.json() == {"data": [[0, None]]}


def test_middleware_of_the_mounted_application_is_rejected(client: TestClient) -> None:
    assert isinstance(client.app, Service)
    with pytest.raises(RuntimeError, match="Wrap the ASGI application"):
        client.app.add_middleware(CORSMiddleware, allow_origins=["*"])
    with pytest.raises(RuntimeError, match="Wrap the ASGI application"):
        client.app.middleware("http")


def test_middleware_around_the_service_covers_every_path(client: TestClient, sample: bytes) -> None:
    assert isinstance(client.app, Service)
    wrapped = TestClient(CORSMiddleware(client.app, allow_origins=["https://mill.example"]))
    headers = {"Origin": "https://mill.example", "Content-Type": "image/png"}
    for response in (
        wrapped.get("/healthz", headers=headers),
        wrapped.post("/classify", content=sample, headers=headers),
    ):
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://mill.example"


def test_mounted_service_answers_below_its_prefix(client: TestClient, sample: bytes) -> None:
    """Also behind `uvicorn --root-path`, which sets the same key of the scope."""
    assert isinstance(client.app, Service)
    mounted = TestClient(Starlette(routes=[Mount("/steel", client.app)]))
    assert mounted.get("/steel/healthz").status_code == 200
    image = {"Content-Type": "image/png"}
    assert mounted.post("/steel/classify", content=sample, headers=image).status_code == 200
    assert mounted.get("/steel/classify").json()["error"]["code"] == "invalid_batch"
    assert mounted.put("/steel/classify").headers["allow"] == "GET, POST"


@pytest.mark.slow
def test_service_that_has_not_started_up_fails_at_once() -> None:
    """As with `uvicorn --lifespan off`."""
    client = TestClient(create_app(Settings()))  # runs the lifespan only when it is entered
    with pytest.raises(RuntimeError, match="lifespan"):
        client.get("/readyz")
    with client:
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("message", ["half of a pair: \ud800", "\udfff" * 1000, "whole: \U0001f600", "é"])
def test_every_message_can_be_sent(message: str) -> None:
    response = error_response(Unauthorized(message))
    assert response.status_code == 401
    sent = json.loads(bytes(response.body))["error"]["message"]
    assert sent == message.encode("utf-8", "backslashreplace").decode()
