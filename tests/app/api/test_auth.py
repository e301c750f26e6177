import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.testclient import TestClient

from app import settings
from app.api.auth import create_guards, line_of, make_key
from app.main import create_app
from app.names import BATCH_ID_HEADER
from app.settings import Settings
from tests.app.api.test_tokens import AUDIENCE, ISSUER, Issuer, token_of

KEY = make_key()
GUARDED = [
    ("POST", "/classify"),
    ("GET", "/classify"),
    ("GET", "/model"),
    ("GET", "/metrics"),
    ("GET", "/doctor"),
    ("GET", "/other"),
]
OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{line_of('mill', KEY)}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


@pytest.fixture(scope="module")
def guarded(keys_file: Path, issuer: Issuer) -> Iterator[TestClient]:
    """A service that requires an API key or a token."""
    settings = Settings(
        auth=("api_key", "jwt"),
        api_keys_file=keys_file,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_jwks_url=issuer.url,
    )
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer a.b.c"},
        {"Sf-Context-Current-User": "ADMIN"},
    ],
)
def test_request_without_valid_credentials_is_rejected(
    guarded: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = guarded.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("headers", "received"),
    [
        ({}, "neither"),
        ({"X-API-Key": ""}, "neither"),
        ({"X-API-Key": "wrong"}, "unknown key"),
        ({"Authorization": "Bearer wrong"}, "unknown key"),
        ({"X-API-Key": KEY.swapcase()}, "unknown key"),
        ({"Authorization": f"Basic {KEY}"}, "another kind"),
    ],
)
def test_rejection_names_what_was_sent(guarded: TestClient, headers: dict[str, str], received: str) -> None:
    assert received in guarded.get("/model", headers=headers).json()["error"]["message"]


def test_valid_token_authenticates_next_to_an_unknown_key(guarded: TestClient) -> None:
    headers = {"X-API-Key": "wrong", "Authorization": f"Bearer {token_of()}"}
    assert guarded.get("/model", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}])
def test_valid_key_authenticates(guarded: TestClient, sample: bytes, headers: dict[str, str]) -> None:
    answer = guarded.post("/classify", content=sample, headers={"Content-Type": "image/png", **headers})
    assert (answer.status_code, answer.json()["label"]) == (200, "Scratches")
    assert guarded.get("/classify", headers={BATCH_ID_HEADER: "x", **headers}).status_code == 404
    assert guarded.get("/metrics", headers=headers).status_code == 200


def test_valid_token_authenticates(guarded: TestClient) -> None:
    def status(token: str) -> int:
        return guarded.get("/model", headers={"Authorization": f"Bearer {token}"}).status_code

    assert status(token_of()) == 200
    assert status(token_of(aud="other")) == 401


@pytest.mark.parametrize("path", ["/playground/samples", "/playground/samples/crazing.png"])
def test_samples_need_authentication(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 401
    assert guarded.get(path, headers={"X-API-Key": KEY}).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_pages_without_data_need_no_authentication(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_path_that_only_begins_like_an_open_one_needs_authentication(guarded: TestClient) -> None:
    for path in ("/healthz/", "/readyz/x", "/docsx", "/docs/../metrics"):
        assert guarded.get(path).status_code in {401, 404}
        assert "ext_classify" not in guarded.get(path).text


def test_snowflake_s_ingress_is_trusted_only_inside_spcs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="AUTH=spcs needs"):
        Settings(auth=("spcs",))
    monkeypatch.setenv("SNOWFLAKE_HOST", "host")
    monkeypatch.setattr(settings, "SPCS_TOKEN_FILE", tmp_path / "token")
    (tmp_path / "token").write_text("t", encoding="utf-8")
    assert Settings(auth=("spcs",), host="0.0.0.0").auth == ("spcs",)  # noqa: S104


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1", "mill.example"])  # noqa: S104
def test_authentication_must_be_configured_beyond_loopback(host: str, keys_file: Path) -> None:
    with pytest.raises(ValidationError, match="AUTH must be"):
        Settings(host=host)
    assert Settings(host=host, auth=("none",)).host == host
    assert Settings(host=host, auth=("api_key",), api_keys_file=keys_file).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_authentication(host: str) -> None:
    assert Settings(host=host).auth == ()


def test_incomplete_authentication_settings_are_rejected(keys_file: Path) -> None:
    with pytest.raises(ValidationError, match="AUTH=api_key needs API_KEYS_FILE"):
        Settings(auth=("api_key",))
    with pytest.raises(ValidationError, match="AUTH=jwt needs JWT_AUDIENCE, JWT_JWKS_URL"):
        Settings(auth=("jwt",), jwt_issuer="i")
    with pytest.raises(ValidationError, match="cannot be combined"):
        Settings(auth=("none", "api_key"), api_keys_file=keys_file)


def test_every_page_has_security_headers(client: TestClient) -> None:
    for path in ("/healthz", "/docs", "/nowhere", "/model"):
        answer = client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


def test_responses_are_neither_cached_nor_sniffed(client: TestClient, sample: bytes) -> None:
    for content, media_type in ((sample, "image/png"), (b"?", "text/plain"), (b"{", "application/json")):
        answer = client.post("/classify", content=content, headers={"Content-Type": media_type})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_pages_can_be_disabled() -> None:
    with TestClient(create_app(Settings(show_docs=False, show_playground=False))) as client:
        for path in ("/", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css"):
            assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "EVIL.example.", "localhost.evil.example", "127.0.0.1.nip.io:80"],
)
@pytest.mark.parametrize("path", ["/classify", "/model", "/"])
def test_host_name_of_a_foreign_page_is_rejected(client: TestClient, host: str, path: str) -> None:
    """DNS rebinding: the browser sends the page's own host name in the Host header."""
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "misdirected"
    assert "EXT_CLASSIFY_AUTH" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "a.localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "mill-pc", ""],
)
def test_local_host_names_are_accepted(client: TestClient, host: str) -> None:
    assert client.get("/model", headers={"Host": host}).status_code == 200


def test_any_host_name_is_accepted_if_authentication_is_configured(guarded: TestClient) -> None:
    headers = {"Host": "mill.example", "X-API-Key": KEY}
    assert guarded.get("/model", headers=headers).status_code == 200
    with TestClient(create_app(Settings(auth=("none",)))) as unguarded:
        assert unguarded.get("/model", headers={"Host": "mill.example"}).status_code == 200


def test_caller_is_known_at_once_if_no_network_access_is_needed(keys_file: Path, issuer: Issuer) -> None:
    guards = create_guards(
        Settings(
            auth=("api_key", "jwt"),
            api_keys_file=keys_file,
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            jwt_jwks_url=issuer.url,
        )
    )
    assert guards is not None

    def sent(name: str, value: str) -> Request:
        return Request({"type": "http", "path": "/classify", "headers": [(name.encode(), value.encode())]})

    for request, caller in (
        (sent("x-api-key", KEY), "mill"),
        (sent("authorization", f"Bearer {KEY}"), "mill"),
        (sent("x-api-key", "wrong"), None),
        (sent("accept", "*/*"), None),
    ):
        assert guards.caller_at_once(request) == caller
    token = sent("authorization", f"Bearer {token_of()}")
    assert guards.caller_at_once(token) is None
    assert asyncio.run(guards.authenticate(token)) == "snowflake"
    assert guards.caller_at_once(token) == "snowflake"


def test_unauthorized_requests_are_counted(guarded: TestClient) -> None:
    def refused() -> float:
        text = guarded.get("/metrics", headers={"X-API-Key": KEY}).text
        found = re.search(r'^ext_classify_requests_total\{status="401"\} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = refused()
    guarded.post("/classify")
    guarded.get("/model")
    assert refused() == before + 1
