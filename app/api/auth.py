"""Authentication: an API key, a gateway's token, or Snowflake's ingress; loopback only if none is configured.

Requests are authenticated before their body is read. Probes and pages without data need no authentication.
"""

import functools
import hashlib
import hmac
import re
import secrets
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias

from starlette.requests import Request

from app.errors import ApiKeysUnreadable, IssuerUnavailable, Misdirected, ServiceError, Unauthorized
from app.settings import Settings
from app.telemetry.log import log_event, logger

if TYPE_CHECKING:
    from app.api.tokens import TokenVerifier

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
OPEN_FOLDERS = ("/docs/", "/playground/")
# A network's samples may be images of its training set.
SAMPLES_FOLDER = "/playground/samples"
API_KEY_HEADER = "x-api-key"
# Set by the ingress of Snowpark Container Services, which authenticates every request.
SPCS_USER_HEADER = "sf-context-current-user"
_PREFIX = "ecl_"
_CHECK_SECONDS = 1.0
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"(?P<name>{NAME.pattern})\s+(?P<digest>[0-9a-f]{{64}})")

_Stamp: TypeAlias = tuple[int, int, int]


def make_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def line_of(name: str, key: str) -> str:
    """The line for the file of API keys: `NAME SHA256`."""
    return f"{name} {_digest_of(key).hex()}"


class ApiKeys:
    """The keys in a file, one `NAME SHA256` a line, with `#` comments. Raises ApiKeysUnreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked_at = monotonic()
        self._stamp = self._stamp_now()
        self._digests = self._read()

    def name_of(self, key: str) -> str | None:
        """The name of a key, None if unknown. Compares all digests in constant time (timing attacks)."""
        self._reload_if_changed()
        digest = _digest_of(key)
        names = [name for name, known in self._digests if hmac.compare_digest(known, digest)]
        return names[0] if names else None

    def _reload_if_changed(self) -> None:
        """Checks the file at most once a second, and keeps the current keys if it cannot be read."""
        if monotonic() < self._checked_at + _CHECK_SECONDS:
            return
        self._checked_at = monotonic()
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            self._digests = self._read()
        except ApiKeysUnreadable as error:
            logger.error("The API keys are not reloaded: %s", error)
        else:
            self._stamp = stamp
            log_event("api_keys_read", names=[name for name, _ in self._digests])

    def _stamp_now(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError as error:
            raise ApiKeysUnreadable(f"{self._path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[tuple[str, bytes]]:
        """A name may have several keys, so that keys can be rotated."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ApiKeysUnreadable(f"{self._path}: {error}") from None
        return [
            self._parse(number, line)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]

    def _parse(self, number: int, line: str) -> tuple[str, bytes]:
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ApiKeysUnreadable(f"{self._path}: line {number} must be NAME SHA256, in lower case.")
        return found["name"], bytes.fromhex(found["digest"])


def _digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class Guard(Protocol):
    async def caller_of(self, request: Request) -> str | None:
        """The caller's name, None without credentials of this kind. Raises Unauthorized for invalid ones."""
        ...

    def caller_at_once(self, request: Request) -> str | None:
        """The caller's name if no network access is needed to know it, else None."""
        ...


class KeyGuard:
    """`X-API-Key: KEY`, which gateways and Snowflake's API_KEY send, or `Authorization: Bearer KEY`."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def caller_of(self, request: Request) -> str | None:
        name = self.caller_at_once(request)
        if name is None and _key_of(request):
            raise Unauthorized("An API key must be in the service's file of keys. Received: an unknown key.")
        return name

    def caller_at_once(self, request: Request) -> str | None:
        key = _key_of(request)
        return self._keys.name_of(key) if key else None


class TokenGuard:
    """`Authorization: Bearer TOKEN`, which Azure API Management and Google API Gateway forward."""

    def __init__(self, verifier: "TokenVerifier") -> None:
        self._verifier = verifier

    async def caller_of(self, request: Request) -> str | None:
        token = bearer_of(request)
        if token is None or token.count(".") != 2:  # such as an API key
            return None
        return await self._verifier.subject_of(token)

    def caller_at_once(self, request: Request) -> str | None:
        token = bearer_of(request)
        return self._verifier.cached_subject_of(token) if token else None


class SpcsGuard:
    """Snowpark Container Services: Snowflake has authenticated every request that reaches the service."""

    async def caller_of(self, request: Request) -> str | None:
        return self.caller_at_once(request)

    def caller_at_once(self, request: Request) -> str | None:
        return request.headers.get(SPCS_USER_HEADER, "a service function")


class Guards:
    """Authenticates a request by the first guard that knows its caller."""

    def __init__(self, guards: list[Guard]) -> None:
        self._guards = guards

    async def authenticate(self, request: Request) -> str | None:
        """The caller's name, None for an open path. Raises Unauthorized or IssuerUnavailable."""
        path = request.scope["path"]
        if path in OPEN_PATHS or (path.startswith(OPEN_FOLDERS) and not path.startswith(SAMPLES_FOLDER)):
            return None
        is_sent = request.headers.get(API_KEY_HEADER) or request.headers.get("authorization")
        received = "another kind" if is_sent else "neither"
        refusal: ServiceError = Unauthorized(
            f"A request must carry an API key or a token that this service accepts. Received: {received}."
        )
        for guard in self._guards:
            try:
                if (caller := await guard.caller_of(request)) is not None:
                    return caller
            except (Unauthorized, IssuerUnavailable) as error:
                refusal = error
        raise refusal

    def caller_at_once(self, request: Request) -> str | None:
        """The caller's name if the request is authenticated and no network access is needed to know it."""
        names = (guard.caller_at_once(request) for guard in self._guards)
        return next((name for name in names if name is not None), None)


class LoopbackGuards(Guards):
    """Accepts requests from this machine, but not from a foreign web page in a browser on it.

    Such a page can point its own host name at loopback (DNS rebinding); the Host header then has that name.
    """

    async def authenticate(self, request: Request) -> None:
        """All requests have one caller, which has no name. Raises Misdirected."""
        host = request.headers.get("host", "")
        if _is_internet_name(host):
            raise Misdirected(
                "Without authentication, a Host header must be localhost, an IP address or a name without "
                "dots; to serve other names, set EXT_CLASSIFY_AUTH (none: without authentication). "
                f"Received: {host[:100]!r}."
            )


@functools.lru_cache
def _is_internet_name(host: str) -> bool:
    """Whether a Host header, with or without a port, holds a name that public DNS could point here.

    An IP address cannot be rebound, and a name without a dot is local.
    """
    name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
    return "." in name and not name.endswith(".localhost") and not _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def create_guards(settings: Settings) -> Guards | None:
    """None if `AUTH=none`, which accepts every client. Raises ApiKeysUnreadable."""
    if not settings.auth:
        return LoopbackGuards([])
    guards: list[Guard] = []
    if "api_key" in settings.auth and settings.api_keys_file is not None:
        guards.append(KeyGuard(ApiKeys(settings.api_keys_file)))
    if "jwt" in settings.auth:
        guards.append(TokenGuard(_create_verifier(settings)))
    if "spcs" in settings.auth:
        guards.append(SpcsGuard())
    return Guards(guards) if guards else None


def _create_verifier(settings: Settings) -> "TokenVerifier":
    from app.api.tokens import TokenVerifier  # noqa: PLC0415 - optional, and cryptography is slow to import

    if not (settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url):
        raise ValueError("AUTH=jwt needs JWT_ISSUER, JWT_AUDIENCE and JWT_JWKS_URL")
    return TokenVerifier(
        settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url, settings.jwt_callers
    )


def _key_of(request: Request) -> str | None:
    return request.headers.get(API_KEY_HEADER) or bearer_of(request)


def bearer_of(request: Request) -> str | None:
    """RFC 6750, section 2.1."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else None
