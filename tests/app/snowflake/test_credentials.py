"""Arguments of connect(), against both versions of the connector, and the login requests that they cause."""

import json
import os
import subprocess
import threading
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import snowflake.connector
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from snowflake.connector.connection import DEFAULT_CONFIGURATION

from app.settings import Settings
from app.snowflake.session import account_and_host, connect_arguments
from tests.running import PYTHONS, ROOT
from tests.snowflake_front import Front, front

PASSPHRASE = "correct horse"  # noqa: S105 - of a key that the test generates
ACCOUNT = {"snowflake_account": "org-steel", "snowflake_user": "classifier"}
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def write_key(path: Path, passphrase: str | None = None) -> Path:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    pem = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    path.write_bytes(pem)
    return path


@pytest.fixture
def in_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulates a container of Snowpark Container Services; returns the token's file."""
    token = tmp_path / "token"
    token.write_text("first\n")
    monkeypatch.setattr("app.settings.SPCS_TOKEN_FILE", token)
    monkeypatch.setattr("app.snowflake.session.SPCS_TOKEN_FILE", token)
    for name, value in {
        "ACCOUNT": "STEEL",
        "HOST": "steel.internal",
        "DATABASE": "MILL",
        "SCHEMA": "PUBLIC",
    }.items():
        monkeypatch.setenv(f"SNOWFLAKE_{name}", value)
    return token


def logins(tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings for each login method."""
    token = tmp_path / "pat"
    token.write_text("from a file\n")
    yield "none", {}
    yield "key", {"snowflake_private_key_file": write_key(tmp_path / "key.p8")}
    yield (
        "key with a passphrase",
        {
            "snowflake_private_key_file": write_key(tmp_path / "locked.p8", PASSPHRASE),
            "snowflake_private_key_passphrase": PASSPHRASE,
        },
    )
    yield "token", {"snowflake_token": "a token"}
    yield "oauth", {"snowflake_token": "a token", "snowflake_token_type": "OAUTH"}
    yield "token file", {"snowflake_token_file": token}
    yield "workload identity", {"snowflake_workload_identity_provider": "AWS"}
    yield (
        "workload identity by JWT",
        {
            "snowflake_workload_identity_provider": "AWS",
            "snowflake_workload_identity_aws_outbound_token": True,
        },
    )
    yield "OIDC", {"snowflake_workload_identity_provider": "OIDC", "snowflake_token_file": token}
    yield "OIDC token", {"snowflake_workload_identity_provider": "OIDC", "snowflake_token": "a token"}
    yield "other cloud", {"snowflake_workload_identity_provider": "GCP", "snowflake_token": "unused"}


def login_part(arguments: dict[str, Any]) -> dict[str, Any]:
    parts = ("authenticator", "token", "workload_identity", "private_key")
    return {name: value for name, value in arguments.items() if name.startswith(parts)}


@pytest.mark.parametrize("version", [4, 5])
def test_arguments_of_each_login_method(tmp_path: Path, version: int) -> None:
    passphrase = "private_key_file_pwd" if version == 4 else "private_key_password"
    expected = {
        "none": {},
        "key": {"authenticator": "SNOWFLAKE_JWT", "private_key_file": str(tmp_path / "key.p8")},
        "key with a passphrase": {
            "authenticator": "SNOWFLAKE_JWT",
            "private_key_file": str(tmp_path / "locked.p8"),
            passphrase: PASSPHRASE,
        },
        "token": {"authenticator": "PROGRAMMATIC_ACCESS_TOKEN", "token": "a token"},
        "oauth": {"authenticator": "OAUTH", "token": "a token"},
        "token file": {"authenticator": "PROGRAMMATIC_ACCESS_TOKEN", "token": "from a file"},
        "workload identity": {"authenticator": "WORKLOAD_IDENTITY", "workload_identity_provider": "AWS"},
        "workload identity by JWT": {
            "authenticator": "WORKLOAD_IDENTITY",
            "workload_identity_provider": "AWS",
            "workload_identity_aws_use_outbound_token": True,
        },
        "OIDC": {
            "authenticator": "WORKLOAD_IDENTITY",
            "workload_identity_provider": "OIDC",
            "token": "from a file",
        },
        "OIDC token": {
            "authenticator": "WORKLOAD_IDENTITY",
            "workload_identity_provider": "OIDC",
            "token": "a token",
        },
        "other cloud": {"authenticator": "WORKLOAD_IDENTITY", "workload_identity_provider": "GCP"},
    }
    for name, settings in logins(tmp_path):
        arguments = connect_arguments(Settings(**ACCOUNT | settings), version)
        assert login_part(arguments) == expected[name]
        assert (arguments["account"], arguments["user"]) == ("org-steel", "classifier")


def test_service_without_an_account_is_not_configured() -> None:
    assert not Settings().reads_stages
    assert Settings(**ACCOUNT).reads_stages


def test_token_file_is_read_at_each_login(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("at the start")
    settings = Settings(**ACCOUNT, snowflake_token_file=path)
    for token in ("first", "second"):
        path.write_text(f"{token}\n")
        assert connect_arguments(settings, 4)["token"] == token
    path.unlink()
    with pytest.raises(FileNotFoundError):
        connect_arguments(settings, 4)


def test_container_logs_in_with_its_mounted_token(in_container: Path) -> None:
    settings = Settings()
    assert settings.reads_stages
    assert account_and_host(settings) == ("STEEL", "steel.internal")
    arguments = connect_arguments(settings, 4)
    assert login_part(arguments) == {"authenticator": "OAUTH", "token": "first"}
    assert {name: arguments[name] for name in ("account", "host", "database", "schema")} == {
        "account": "STEEL",
        "host": "steel.internal",
        "database": "MILL",
        "schema": "PUBLIC",
    }
    assert "user" not in arguments
    in_container.write_text("renewed")
    assert connect_arguments(settings, 4)["token"] == "renewed"  # noqa: S105 - no secret


def test_account_of_the_settings_takes_precedence_over_the_container_s(in_container: Path) -> None:
    arguments = connect_arguments(Settings(**ACCOUNT | {"snowflake_token": "a token"}), 4)
    assert (arguments["account"], arguments["token"]) == ("org-steel", "a token")
    assert not {"host", "database", "schema"} & set(arguments)


def test_host_variable_alone_does_not_mean_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWFLAKE_HOST", "steel.internal")
    assert not Settings().reads_stages


@pytest.mark.parametrize(("seconds", "limit"), [(0.2, 1), (1.5, 2), (20.0, 20)])
def test_timeouts_are_rounded_up(seconds: float, limit: int) -> None:
    settings = Settings(**ACCOUNT, snowflake_timeout_seconds=seconds)
    fourth, fifth = connect_arguments(settings, 4), connect_arguments(settings, 5)
    assert {name: value for name, value in fourth.items() if name.endswith("timeout")} == {
        "login_timeout": limit,
        "network_timeout": limit,
        "socket_timeout": limit,
    }
    assert {name: value for name, value in fifth.items() if "timeout" in name} == {
        "login_timeout": limit,
        "query_timeout": limit,
        "request_timeout": limit,
        "logout_total_timeout_seconds": limit,
    }


def test_connector_4_accepts_every_argument(tmp_path: Path) -> None:
    if not snowflake.connector.__version__.startswith("4."):
        pytest.skip("connector 4 is not installed: make dev")
    for _, settings in logins(tmp_path):
        arguments = connect_arguments(Settings(**ACCOUNT | settings, snowflake_role="R"), 4)
        assert set(arguments) <= set(DEFAULT_CONFIGURATION)


# Runs one statement as the service does; warnings of the connector are errors.
PROGRAM = """
import asyncio
from app.settings import Settings
from app.snowflake.session import SnowflakeSession

async def ask():
    async with SnowflakeSession(Settings()) as session:
        assert await session.query("SELECT 1") == [("1",)]

asyncio.run(ask())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Front]:
    with front() as opened:
        yield opened


def sent_login(
    server: Front, python: str, variables: Mapping[str, str] = MappingProxyType({}), **settings: object
) -> dict[str, Any]:
    """The login request that the connector sends."""
    given = {f"EXT_CLASSIFY_{name.upper()}": str(value) for name, value in settings.items()} | dict(variables)
    environment = os.environ | server.environment | {"EXT_CLASSIFY_SNOWFLAKE_ACCOUNT": "org-steel"}
    environment.pop("EXT_CLASSIFY_SNOWFLAKE_TOKEN")
    server.asked.clear()
    finished = subprocess.run(
        [python, "-W", "error", "-c", PROGRAM],
        env=environment | given,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    [asked] = server.logins
    data: dict[str, Any] = asked.body["data"]
    return data


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_key_pair_login_sends_a_signed_token(
    server: Front, tmp_path: Path, python: str, passphrase: str | None
) -> None:
    settings = {"snowflake_private_key_file": write_key(tmp_path / "key.p8", passphrase)}
    if passphrase:
        settings["snowflake_private_key_passphrase"] = passphrase  # type: ignore[assignment]
    data = sent_login(server, python, **settings)
    assert data["AUTHENTICATOR"] == "SNOWFLAKE_JWT"
    head, claims, signature = data["TOKEN"].split(".")
    KEY.public_key().verify(_decode(signature), f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
    public = KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    fingerprint = b64encode(sha256(public).digest()).decode()
    stated = json.loads(_decode(claims))
    assert stated["iss"] == f"ORG-STEEL.CLASSIFIER.SHA256:{fingerprint}"
    assert stated["sub"] == "ORG-STEEL.CLASSIFIER"


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", ["PROGRAMMATIC_ACCESS_TOKEN", "OAUTH"])
def test_token_is_sent_with_its_type(server: Front, tmp_path: Path, python: str, kind: str) -> None:
    path = tmp_path / "token"
    path.write_text("from a file\n")
    given = {"snowflake_token": "a token"} if kind == "OAUTH" else {"snowflake_token_file": path}
    data = sent_login(server, python, snowflake_token_type=kind, **given)
    assert data["AUTHENTICATOR"] == kind
    assert data["TOKEN"] == ("a token" if kind == "OAUTH" else "from a file")


def _encode(claims: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


CLAIMS = {
    "iss": "https://oidc.example",
    "sub": "system:serviceaccount:mill:classifier",
    "aud": "snowflakecomputing.com",
    "exp": 4_102_444_800,
}
JWT = f"{_encode({'alg': 'ES384', 'typ': 'JWT'})}.{_encode(CLAIMS)}.c2ln"
# The connector sends the proof of an identity to Snowflake's own domains only.
TRUST_LOOPBACK = {"SNOWFLAKE_WIF_ALLOWED_HOST_SUFFIXES": "127.0.0.1"}


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_token_of_a_workload_logs_in_by_oidc(server: Front, tmp_path: Path, python: str) -> None:
    path = tmp_path / "token"
    path.write_text(f"{JWT}\n")
    settings = {"snowflake_workload_identity_provider": "OIDC", "snowflake_token_file": path}
    data = sent_login(server, python, TRUST_LOOPBACK, **settings)
    assert (data["AUTHENTICATOR"], data["PROVIDER"], data["TOKEN"]) == ("WORKLOAD_IDENTITY", "OIDC", JWT)


class SecurityTokenService(BaseHTTPRequestHandler):
    """AWS's service: it signs every JWT that it is asked for."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        result = f"<WebIdentityToken>{JWT}</WebIdentityToken><Expiration>2100-01-01T00:00:00Z</Expiration>"
        body = (
            '<GetWebIdentityTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<GetWebIdentityTokenResult>{result}</GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_aws_identity_logs_in_by_an_outbound_jwt(server: Front, python: str) -> None:
    settings = {
        "snowflake_workload_identity_provider": "AWS",
        "snowflake_workload_identity_aws_outbound_token": "true",
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), SecurityTokenService) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        variables = {
            "AWS_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{service.server_port}",
        }
        try:
            data = sent_login(server, python, TRUST_LOOPBACK | variables, **settings)
        finally:
            service.shutdown()
            thread.join()
    assert (data["AUTHENTICATOR"], data["PROVIDER"], data["TOKEN"]) == ("WORKLOAD_IDENTITY", "AWS", JWT)


def _decode(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))
