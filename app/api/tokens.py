"""Signed tokens (RFC 7519) that a gateway's caller bears: of Azure AD, of Google, of any OpenID provider."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import jwt

from app.errors import IssuerUnavailable, Unauthorized
from app.telemetry.log import logger

# Signatures that need no secret of ours; anything else would be for the caller to choose.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
_LEEWAY_SECONDS = 30
_KEYS_SECONDS = 3600
_FETCH_SECONDS = 5
# An unknown key is looked up anew, but no faster than this, whoever asks with however many.
_LOOK_UP_AGAIN_SECONDS = 10.0
_MOST_REMEMBERED = 1000
_MAX_REASON_CHARACTERS = 200
MAX_TOKEN_BYTES = 16 * 1024
# Whose it is: of Azure AD's v1.0 tokens, of its v2.0 and Google's, and of any.
_CALLER_CLAIMS = ("appid", "azp", "sub")


class TokenVerifier:
    """Tokens of one issuer for one audience; a token that was good is until it expires."""

    def __init__(self, issuer: str, audience: str, jwks_url: str, callers: Collection[str] = ()) -> None:
        """Of `callers` only, if any: an Azure tenant gives its applications tokens for each other."""
        self._callers = frozenset(callers)
        self._issuer = issuer
        self._audience = audience
        self._keys = jwt.PyJWKClient(jwks_url, lifespan=_KEYS_SECONDS, timeout=_FETCH_SECONDS)
        self._known_keys: dict[str, Any] = {}
        self._fetched_at = -float("inf")
        self._fetching = asyncio.Lock()
        self._good: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    async def subject_of(self, token: str) -> str:
        """Whom the token was given to. Raises Unauthorized, or IssuerUnavailable."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        subject, expires_at = self._good.get(digest, ("", 0.0))
        if expires_at > time.time():
            return subject
        subject, expires_at = await self._verify(token)
        self._good[digest] = subject, expires_at
        while len(self._good) > _MOST_REMEMBERED:
            self._good.popitem(last=False)
        return subject

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
        self._refuse_others(claims)
        return str(claims.get("sub", "")), float(claims["exp"])

    def _refuse_others(self, claims: dict[str, Any]) -> None:
        if self._callers and self._callers.isdisjoint(str(claims.get(name)) for name in _CALLER_CLAIMS):
            said = (
                f"{name} {_printable(str(claims[name]), 80)}" for name in _CALLER_CLAIMS if name in claims
            )
            raise Unauthorized(
                f"A token must be of a caller that is let in. Received: one of {', '.join(said)}."
            )

    async def _key_of(self, kid: object) -> Any:
        if not isinstance(kid, str):
            raise jwt.InvalidTokenError("no key id")
        if kid not in self._known_keys or self._age_seconds() > _KEYS_SECONDS:
            await self._fetch_keys()
        if kid not in self._known_keys:
            raise jwt.InvalidTokenError("a key that its issuer does not have")
        return self._known_keys[kid]

    async def _fetch_keys(self) -> None:
        async with self._fetching:
            if self._age_seconds() >= _LOOK_UP_AGAIN_SECONDS:
                await self._try_to_fetch_keys()
        if not self._known_keys:
            raise IssuerUnavailable("The issuer's keys cannot be read now.")

    async def _try_to_fetch_keys(self) -> None:
        """Those that are known stay known when it fails."""
        try:
            keys = await asyncio.to_thread(self._keys.get_jwk_set, refresh=True)
        # The client lets through what json and sockets raise.
        except (jwt.PyJWTError, ValueError, OSError) as error:
            logger.error("The keys of %s cannot be read: %s", self._issuer, error)
        else:
            self._known_keys = {key.key_id: key for key in keys.keys if key.key_id}
        finally:
            self._fetched_at = time.monotonic()

    def _age_seconds(self) -> float:
        return time.monotonic() - self._fetched_at


def _printable(text: str, max_characters: int = _MAX_REASON_CHARACTERS) -> str:
    """Text that quotes a token, in ASCII: JSON may hold half of a surrogate pair, which no answer can."""
    return ascii(text)[1:-1][:max_characters]
