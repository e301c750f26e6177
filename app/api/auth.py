"""Who may call: anybody, whoever has an API key, bears a gateway's token, or comes through Snowflake.

Checked before anything of a body is read. Probes ask nobody for anything, nor do pages without data.
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

_PREFIX = "ecl_"
_LOOK_SECONDS = 1.0
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"(?P<name>{NAME.pattern})\s+(?P<digest>[0-9a-f]{{64}})")

_Stamp: TypeAlias = tuple[int, int, int]


def make_key() -> str:
    """A new key."""
    return _PREFIX + secrets.token_urlsafe(32)


def line_of(name: str, key: str) -> str:
    """What the file of keys is to say of it: `NAME SHA256`."""
    return f"{name} {_digest_of(key).hex()}"


class ApiKeys:
    """The keys in a file, one `NAME SHA256` a line, `#` before what is none. Raises ApiKeysUnreadable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_at = monotonic()
        self._stamp = self._stamp_now()
        self._digests = self._read()

    def name_of(self, key: str) -> str | None:
        """Whose key it is; all are compared, each in constant time, so that time tells nothing."""
        self._look()
        digest = _digest_of(key)
        names = [name for name, known in self._digests if hmac.compare_digest(known, digest)]
        return names[0] if names else None

    def _look(self) -> None:
        """At most once a second; a file that cannot be read leaves the keys as they were."""
        if monotonic() < self._looked_at + _LOOK_SECONDS:
            return
        self._looked_at = monotonic()
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return
            self._digests = self._read()
        except ApiKeysUnreadable as error:
            logger.error("The API keys stay as they were: %s", error)
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
        """One name may have several keys, while one takes the place of another."""
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


if TYPE_CHECKING:
    from app.api.tokens import TokenVerifier

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/docs", "/openapi.json"})
OPEN_FOLDERS = ("/docs/", "/playground/")
API_KEY_HEADER = "x-api-key"
# Put in by the ingress of Snowpark Container Services, which lets nobody else through.
SPCS_USER_HEADER = "sf-context-current-user"


class Guard(Protocol):
    async def caller_of(self, request: Request) -> str | None:
        """A name for who calls, or None. Raises Unauthorized for credentials that are wrong."""
        ...


class KeyGuard:
    """`X-API-Key: KEY`, as gateways and Snowflake's API_KEY send it, or `Authorization: Bearer KEY`."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def caller_of(self, request: Request) -> str | None:
        key = request.headers.get(API_KEY_HEADER) or bearer_of(request)
        return None if key is None else self._keys.name_of(key)


class TokenGuard:
    """`Authorization: Bearer TOKEN`, as Azure API Management and Google API Gateway pass it on."""

    def __init__(self, verifier: "TokenVerifier") -> None:
        self._verifier = verifier

    async def caller_of(self, request: Request) -> str | None:
        token = bearer_of(request)
        if token is None or token.count(".") != 2:  # an API key, say
            return None
        return await self._verifier.subject_of(token)


class SpcsGuard:
    """Inside Snowpark Container Services, whoever gets here has been let in by Snowflake."""

    async def caller_of(self, request: Request) -> str | None:
        return request.headers.get(SPCS_USER_HEADER, "a service function")


class Guards:
    """Whoever one of them knows may call."""

    def __init__(self, guards: list[Guard]) -> None:
        self._guards = guards

    async def admit(self, request: Request) -> None:
        """Raises Unauthorized."""
        path = request.scope["path"]
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return
        refusal: ServiceError = Unauthorized(
            "A request must say who calls, with an API key or a token. Received: neither."
        )
        for guard in self._guards:
            try:
                if await guard.caller_of(request) is not None:
                    return
            except (Unauthorized, IssuerUnavailable) as error:
                refusal = error
        raise refusal


class LoopbackGuards(Guards):
    """Whoever is on this machine may call, and no page of somebody else's in a browser on it.

    Such a page can have its own name lead to loopback (DNS rebinding); what it sends then names its own host.
    """

    async def admit(self, request: Request) -> None:
        """Raises Misdirected."""
        host = request.headers.get("host", "")
        if _is_of_the_internet(host):
            raise Misdirected(
                "Only this machine may call, by the name localhost or an address; to be called by another "
                f"name, set EXT_CLASSIFY_AUTH (none is anybody). Received: {host[:100]!r}."
            )


@functools.lru_cache
def _is_of_the_internet(host: str) -> bool:
    """Whether a Host header, with or without a port, holds a name that somebody elsewhere can lead here.

    An address leads where it says, and a name without a dot is given within the house.
    """
    name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
    return "." in name and not name.endswith(".localhost") and not _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def open_guards(settings: Settings) -> Guards | None:
    """None where anybody may call. Raises ApiKeysUnreadable."""
    if not settings.auth:
        return LoopbackGuards([])
    guards: list[Guard] = []
    if "api_key" in settings.auth and settings.api_keys_file is not None:
        guards.append(KeyGuard(ApiKeys(settings.api_keys_file)))
    if "jwt" in settings.auth:
        guards.append(TokenGuard(_open_verifier(settings)))
    if "spcs" in settings.auth:
        guards.append(SpcsGuard())
    return Guards(guards) if guards else None


def _open_verifier(settings: Settings) -> "TokenVerifier":
    from app.api.tokens import TokenVerifier  # noqa: PLC0415 - tokens are optional, and cryptography slow to import

    if not (settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks_url):
        raise ValueError("AUTH=jwt needs JWT_ISSUER, JWT_AUDIENCE and JWT_JWKS_URL")
    return TokenVerifier(
        settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks_url, settings.jwt_callers
    )


def bearer_of(request: Request) -> str | None:
    """RFC 6750, section 2.1."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else None
