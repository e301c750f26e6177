"""Tokens signed with real keys, verified against a real JWKS over HTTP."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.api import tokens
from app.api.tokens import TokenVerifier
from app.errors import IssuerUnavailable, Unauthorized

ISSUER, AUDIENCE = "https://issuer.example/tenant", "api://ext-classify"


def key_of(number: int) -> rsa.RSAPrivateKey:
    if number not in _KEYS:
        _KEYS[number] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return _KEYS[number]


_KEYS: dict[int, rsa.RSAPrivateKey] = {}


class Issuer:
    """Publishes numbered keys, and counts the requests for them."""

    def __init__(self) -> None:
        self.published = [1]
        self.asked = 0
        self.is_broken = False
        self.nonsense: bytes | None = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(500 if issuer.is_broken else 200)
                self.end_headers()
                keys = {"keys": [issuer.jwk(n) for n in issuer.published]}
                self.wfile.write(issuer.nonsense or json.dumps(keys).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/keys"

    def jwk(self, number: int) -> dict[str, Any]:
        public = jwt.algorithms.RSAAlgorithm.to_jwk(key_of(number).public_key(), as_dict=True)
        return {**public, "kid": f"key-{number}", "use": "sig", "alg": "RS256"}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.server.shutdown()
    issuer.server.server_close()


def token_of(
    *, key: int = 1, kid: str | None = "", algorithm: str = "RS256", drop: str = "", **claims: object
) -> str:
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "snowflake", "exp": time.time() + 600, **claims}
    said.pop(drop, None)
    headers = {} if kid is None else {"kid": kid or f"key-{key}"}
    return jwt.encode(said, key_of(key), algorithm, headers=headers)


def subject_of(verifier: TokenVerifier, token: str) -> str:
    return asyncio.run(verifier.subject_of(token))


def test_token_names_its_subject(issuer: Issuer) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url)
    token = token_of()

    async def often() -> set[str]:
        return {await verifier.subject_of(token) for _ in range(5)} | {await verifier.subject_of(token_of())}

    assert asyncio.run(often()) == {"snowflake"}
    assert issuer.asked == 1


@pytest.mark.parametrize(
    "claims", [{"appid": "ours"}, {"azp": "ours"}, {"sub": "ours"}, {"appid": "other", "sub": "ours"}]
)
def test_configured_callers_are_accepted(issuer: Issuer, claims: dict[str, str]) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url, ("another", "ours"))
    assert subject_of(verifier, token_of(**claims)) == claims.get("sub", "snowflake")


@pytest.mark.parametrize(
    "claims", [{"appid": "other"}, {"azp": "Ours"}, {"sub": ""}, {"oid": "ours"}, {"sub": None}]
)
def test_other_callers_of_the_issuer_are_rejected(issuer: Issuer, claims: dict[str, Any]) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url, ("ours",))
    with pytest.raises(Unauthorized):
        subject_of(verifier, token_of(**claims))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: token_of(exp=time.time() - 60), id="expired"),
        pytest.param(lambda: token_of(drop="exp"), id="for ever"),
        pytest.param(lambda: token_of(iss="https://issuer.example/other"), id="another issuer"),
        pytest.param(lambda: token_of(aud="api://other"), id="for another"),
        pytest.param(lambda: token_of(drop="aud"), id="for nobody"),
        pytest.param(lambda: token_of(nbf=time.time() + 600), id="not yet"),
        pytest.param(lambda: token_of(key=2, kid="key-1"), id="signed with another key"),
        pytest.param(lambda: token_of(key=2), id="signed with a key that is not published"),
        pytest.param(lambda: token_of(kid=None), id="names no key"),
        pytest.param(lambda: token_of()[:-8] + "AAAAAAAA", id="signature spoiled"),
        pytest.param(
            lambda: jwt.encode({"iss": ISSUER, "aud": AUDIENCE}, "", "none", headers={"kid": "key-1"}),
            id="not signed",
        ),
        pytest.param(
            lambda: jwt.encode(
                {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60},
                "x" * 64,
                "HS256",
                headers={"kid": "key-1"},
            ),
            id="signed with a secret",
        ),
        pytest.param(lambda: "a.b.c", id="no token"),
        pytest.param(lambda: "x" * 100_000, id="long"),
        pytest.param(lambda: "\ud800.\ud800.\ud800", id="no text"),
    ],
)
def test_invalid_token_is_rejected(issuer: Issuer, token: Any) -> None:
    with pytest.raises(Unauthorized):
        subject_of(TokenVerifier(ISSUER, AUDIENCE, issuer.url), token())


def test_token_is_valid_until_it_expires(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 3600 + tokens._LEEWAY_SECONDS + 1  # noqa: SLF001

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(later, tz)

    verifier, token = TokenVerifier(ISSUER, AUDIENCE, issuer.url), token_of(exp=time.time() + 3600)
    subject_of(verifier, token)
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    with pytest.raises(Unauthorized):
        subject_of(verifier, token)


def test_issuer_may_rotate_keys(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_REFETCH_SECONDS", 0.0)
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url)
    subject_of(verifier, token_of(key=1))
    issuer.published = [2]
    assert subject_of(verifier, token_of(key=2)) == "snowflake"


def test_unknown_keys_are_fetched_at_a_limited_rate(issuer: Issuer) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url)
    subject_of(verifier, token_of())
    for number in range(20):
        with pytest.raises(Unauthorized):
            subject_of(verifier, token_of(kid=f"made up {number}"))
    assert issuer.asked == 1


def test_unreachable_issuer_is_a_retryable_error(issuer: Issuer) -> None:
    issuer.is_broken = True
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url)
    for _ in range(2):
        with pytest.raises(IssuerUnavailable):
            subject_of(verifier, token_of())


def test_invalid_keys_of_the_issuer_are_a_retryable_error(issuer: Issuer) -> None:
    issuer.nonsense = b"<html>"
    with pytest.raises(IssuerUnavailable):
        subject_of(TokenVerifier(ISSUER, AUDIENCE, issuer.url), token_of())


def test_known_keys_remain_valid_while_the_issuer_is_unreachable(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_KEYS_SECONDS", 0.001)
    monkeypatch.setattr(tokens, "_REFETCH_SECONDS", 0.0)
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url)
    subject_of(verifier, token_of())
    issuer.is_broken = True
    assert subject_of(verifier, token_of(sub="other")) == "other"


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "RS256", "kid": "key-1", "crit": ["\ud800"]},
        {"alg": "RS256", "kid": "key-1", "crit": ["\n" + "x" * 5000]},
        {"alg": "RS256", "kid": "\ud800"},
        {"alg": "\ud800", "kid": "key-1"},
        {"alg": ["RS256"], "kid": "key-1"},
    ],
)
def test_header_of_a_token_is_quoted_in_short_ascii(issuer: Issuer, header: dict[str, Any]) -> None:
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    with pytest.raises(Unauthorized) as raised:
        subject_of(TokenVerifier(ISSUER, AUDIENCE, issuer.url), f"{encoded}.e30.c2ln")
    assert raised.value.message.isascii()
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 300


def test_claims_of_another_caller_are_quoted_in_ascii(issuer: Issuer) -> None:
    verifier = TokenVerifier(ISSUER, AUDIENCE, issuer.url, ["us"])
    with pytest.raises(Unauthorized) as raised:
        subject_of(verifier, token_of(sub="\ud800" * 500))
    assert raised.value.message.isascii()
    assert len(raised.value.message) < 300
