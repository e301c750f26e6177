"""API keys, of which the service knows only the hashes, read anew when their file changes.

A key is 256 bits of chance, so one pass of SHA-256 is as good as many: there is nothing to guess.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path
from time import monotonic
from typing import TypeAlias

from app.errors import ApiKeysUnreadable
from app.log import log_event, logger

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
