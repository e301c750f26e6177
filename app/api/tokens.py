"""Verifies signed tokens (RFC 7519) of Azure AD, Google, or any other OpenID provider."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import jwt

from app.errors import IssuerUnavailable, Unauthorized
from app.telemetry.log import logger

# Asymmetric signatures only: the token must not choose an algorithm such as none or HS256.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
_LEEWAY_SECONDS = 30
_KEYS_SECONDS = 3600
_FETCH_SECONDS = 5
# Unknown key ids cause at most one fetch of the keys in this time, however many tokens name them.
_REFETCH_SECONDS = 10.0
_MAX_CACHED_TOKENS = 1000
_MAX_REASON_CHARACTERS = 200
MAX_TOKEN_BYTES = 16 * 1024
# The claim with the caller: in Azure AD v1.0, in Azure AD v2.0 and Google, and in any other token.
_CALLER_CLAIMS = ("appid", "azp", "sub")


class TokenVerifier:
    """Verifies tokens of one issuer for one audience, and caches valid tokens until they expire."""

    def __init__(self, issuer: str, audience: str, jwks_url: str, callers: Collection[str] = ()) -> None:
        """`callers` restricts whose tokens are valid: in Azure, any application of the tenant can get one."""
        self._callers = frozenset(callers)
        self._issuer = issuer
        self._audience = audience
        self._keys = jwt.PyJWKClient(jwks_url, lifespan=_KEYS_SECONDS, timeout=_FETCH_SECONDS)
        self._known_keys: dict[str, Any] = {}
        self._fetched_at = -float("inf")
        self._fetching = asyncio.Lock()
        self._valid: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    async def subject_of(self, token: str) -> str:
        """The token's subject. Raises Unauthorized or IssuerUnavailable."""
        if (cached := self.cached_subject_of(token)) is not None:
            return cached
        subject, expires_at = await self._verify(token)
        self._valid[_digest_of(token)] = subject, expires_at
        while len(self._valid) > _MAX_CACHED_TOKENS:
            self._valid.popitem(last=False)
        return subject

    def cached_subject_of(self, token: str) -> str | None:
        """The subject of a token that was valid before and has not expired, else None."""
        subject, expires_at = self._valid.get(_digest_of(token), ("", 0.0))
        return subject if expires_at > time.time() else None

    async def _verify(self, token: str) -> tuple[str, float]:
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"A token must have at most {MAX_TOKEN_BYTES} bytes. Received: {len(token)}.")
        try:
            key = await self._key_of(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, UnicodeError) as error:
            reason = _printable(str(error))
            raise Unauthorized(f"A token must be valid. Received: one that fails with {reason}.") from None
        self._check_caller(claims)
        return _printable(str(claims.get("sub", ""))), float(claims["exp"])

    def _check_caller(self, claims: dict[str, Any]) -> None:
        if self._callers and self._callers.isdisjoint(str(claims.get(name)) for name in _CALLER_CLAIMS):
            callers = (
                f"{name} {_printable(str(claims[name]), 80)}" for name in _CALLER_CLAIMS if name in claims
            )
            raise Unauthorized(
                f"A token's caller must be in EXT_CLASSIFY_JWT_CALLERS. Received: {', '.join(callers)}."
            )

    async def _key_of(self, kid: object) -> Any:
        if not isinstance(kid, str):
            raise jwt.InvalidTokenError("no key id")
        if kid not in self._known_keys or self._age_seconds() > _KEYS_SECONDS:
            await self._fetch_keys()
        if kid not in self._known_keys:
            raise jwt.InvalidTokenError("unknown key id")
        return self._known_keys[kid]

    async def _fetch_keys(self) -> None:
        async with self._fetching:
            if self._age_seconds() >= _REFETCH_SECONDS:
                await self._try_to_fetch_keys()
        if not self._known_keys:
            raise IssuerUnavailable(
                "The issuer's keys must be readable to verify a token. Received: no keys yet."
            )

    async def _try_to_fetch_keys(self) -> None:
        """Keeps the known keys if it fails."""
        try:
            keys = await asyncio.to_thread(self._keys.get_jwk_set, refresh=True)
        # PyJWKClient does not wrap the errors of json and sockets.
        except (jwt.PyJWTError, ValueError, OSError) as error:
            logger.error("Cannot fetch the keys of %s: %s", self._issuer, error)
        else:
            self._known_keys = {key.key_id: key for key in keys.keys if key.key_id}
        finally:
            self._fetched_at = time.monotonic()

    def _age_seconds(self) -> float:
        return time.monotonic() - self._fetched_at


def _digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _printable(text: str, max_characters: int = _MAX_REASON_CHARACTERS) -> str:
    """Quotes a token in ASCII: its JSON may hold unpaired surrogates, which UTF-8 cannot encode."""
    return ascii(text)[1:-1][:max_characters]
