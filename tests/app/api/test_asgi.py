import json
from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from starlette import datastructures, requests
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.admission import Admission
from app.api.asgi import Service, error_response
from app.api.body import MAX_QUERY_BYTES
from app.api.classify import ADMITTED
from app.errors import Overloaded, ServiceError, Unauthorized
from app.main import create_app
from app.server.framing import BadRequest
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
    assert mounted.put("/steel/classify").headers["allow"] == "GET, HEAD, POST"


GET_PATHS = (
    "/",
    "/healthz",
    "/readyz",
    "/model",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/playground/playground.js",
)


@pytest.mark.parametrize(
    "path", [*GET_PATHS, "/docs/assets/swagger-ui.css", "/playground/samples", "/classify"]
)
def test_head_has_the_status_and_headers_of_get_and_no_body(client: TestClient, path: str) -> None:
    """Azure Front Door probes with HEAD."""
    got, head = client.get(path, follow_redirects=False), client.head(path, follow_redirects=False)
    assert (head.status_code, head.content) == (got.status_code, b"")
    if path != "/metrics":  # which counts itself
        assert head.headers == got.headers


def test_methods_of_a_path_include_head(client: TestClient) -> None:
    assert client.delete("/readyz").headers["allow"] == "GET, HEAD"
    assert client.head("/none").status_code == 404


PAGE = "https://mill.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


@pytest.fixture(scope="module")
def behind_gateway() -> Iterator[TestClient]:
    """With a path prefix, CORS and a required key."""
    with TestClient(
        create_app(Settings(root_path="prod/", cors_origins=(PAGE.upper(),), auth=("jwt",), **JWT))
    ) as client:
        yield client


JWT = {"jwt_issuer": "https://i.example", "jwt_audience": "a", "jwt_jwks_url": "https://i.example/keys"}


@pytest.mark.parametrize(
    ("prefix", "status"), [("", 200), ("/prod", 200), ("/production", 401), ("/prod/prod", 401)]
)
def test_paths_may_have_the_prefix_of_a_gateway(behind_gateway: TestClient, prefix: str, status: int) -> None:
    assert behind_gateway.get(f"{prefix}/healthz").status_code == status
    assert behind_gateway.post(f"{prefix}/classify", content=b"x").status_code == 401


@pytest.mark.parametrize("root_path", ["/a b", "/a?b", "//a//b", "/ä"])
def test_prefix_that_no_path_has_is_rejected(root_path: str) -> None:
    with pytest.raises(ValidationError):
        Settings(root_path=root_path)


def test_preflight_is_answered_without_credentials(behind_gateway: TestClient) -> None:
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": "authorization,content-type,x-api-key"}
    answer = behind_gateway.options("/prod/classify", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-api-key"
    assert "POST" in answer.headers["access-control-allow-methods"]
    foreign = behind_gateway.options("/classify", headers={**headers, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in foreign.headers


def test_page_may_read_errors_and_their_headers(behind_gateway: TestClient) -> None:
    for answer in (
        behind_gateway.post("/classify", content=b"x", headers={"Origin": PAGE}),
        behind_gateway.get("/none", headers={"Origin": PAGE}),
    ):
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


def test_rejection_under_overload_can_be_read_too(behind_gateway: TestClient) -> None:
    """The cheap one would lack the headers."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "headers": [(b"content-type", b"image/png")],
    }
    assert isinstance(behind_gateway.app, Service)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Admission, "refuse_rows", refuse_all)
        assert behind_gateway.app.refuse_at_once(scope) is None


@pytest.mark.parametrize("other_caller", [False, True])
def test_image_that_was_admitted_by_its_head_is_not_refused_by_the_next_check(
    other_caller: bool, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Service.__call__

    async def admit_by_head(service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        assert service.refuse_at_once(scope) is None
        if other_caller:
            scope["state"][ADMITTED] = "someone else"
        monkeypatch.setattr(Admission, "refuse_rows", refuse_all)
        await call(service, scope, receive, send)

    monkeypatch.setattr(Service, "__call__", admit_by_head)
    answer = client.post("/classify", content=b"no image", headers={"Content-Type": "image/png"})
    assert answer.status_code == (429 if other_caller else 200)


def refuse_all(*_: object, **__: object) -> None:
    raise Overloaded("full", 1)


def test_cors_is_off_by_default(client: TestClient) -> None:
    assert client.options("/classify", headers=PREFLIGHT).status_code == 405
    assert "access-control-allow-origin" not in client.get("/healthz", headers={"Origin": PAGE}).headers


@pytest.mark.parametrize(
    "origin", ["mill.example", "https://mill.example/", "null", "https://a b", "https://*.mill.example"]
)
def test_origin_without_a_scheme_or_with_a_path_is_rejected(origin: str) -> None:
    with pytest.raises(ValidationError):
        Settings(cors_origins=(origin,))


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


def test_only_statuses_that_snowflake_retries_are_called_retryable() -> None:
    """408 is not among them: Snowflake fails the query."""
    kinds: list[type[ServiceError | BadRequest]] = [
        *ServiceError.__subclasses__(),
        *BadRequest.__subclasses__(),
    ]
    retryable = {kind.status for kind in kinds if kind.retryable}
    assert retryable == {429, 503}
