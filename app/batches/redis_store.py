"""Answers, leases and unfinished batches of all replicas, in Redis.

While Redis does not answer, each replica works alone: it serves the answers that its own memory caches, and
does not defer batches.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, TypeVar

import redis.asyncio
from pydantic import BaseModel
from pydantic_core import to_json
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.admission import Admission, PendingBody
from app.batches.batches import CachedAnswer, SentBatch, compress, key_of
from app.telemetry.log import log_event, logger

T = TypeVar("T")

LEASE_SECONDS = 10.0
# Between two attempts to take a lease that another replica holds.
LOOK_SECONDS = 0.2
# After this time without an answer, Redis counts as unavailable, and the next attempt follows later.
ANSWER_SECONDS = 0.5
ASK_AGAIN_SECONDS = 2.0
_MOST_CONNECTIONS = 64
_DIGEST_BYTES = 32
# What PTTL answers (Redis documentation).
_NO_KEY, _NO_EXPIRY = -2, -1
# Only the holder of a lease renews or releases it.
_RENEW = "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('pexpire', KEYS[1], ARGV[2])"
_RELEASE = "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('del', KEYS[1])"


class _Head(BaseModel, strict=True, extra="forbid"):
    """The first line of an unfinished batch; its content follows."""

    batch_id: str
    query_id: str | None
    content_encoding: str
    evidence: bool
    caller: str | None = None


class RedisStore:
    """A replica classifies a batch only while it holds the batch's lease.

    After a replica dies, its leases expire and another one restarts its unfinished batches. A command that
    fails has no effect and returns a default.
    """

    def __init__(
        self,
        url: str,
        ttl_seconds: float,
        admission: Admission,
        decompress: Callable[[bytes, PendingBody | None], Awaitable[bytes]],
    ) -> None:
        """Raises ValueError for an invalid Redis URL. `decompress` limits concurrent decompressions."""
        self.is_available = True
        self._ttl_milliseconds = round(1000 * ttl_seconds)
        self._admission = admission
        self._decompress = decompress
        self._ask_again_at = 0.0
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_MOST_CONNECTIONS,
            timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)

    async def close(self) -> None:
        self._ask_again_at = math.inf  # a running task would open a new connection
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def ping(self) -> None:
        """Update `is_available`."""
        await self._ask(self._redis.ping, None)

    async def find(
        self, batch_id: str, pending: PendingBody | None = None, digest: bytes | None = None
    ) -> CachedAnswer | None:
        """As `AnswerCache.find`."""
        stored = await self._ask(lambda: self._redis.get(_key(batch_id, "answer")), None)
        if not stored or (digest is not None and stored[:_DIGEST_BYTES] != digest):
            return None
        try:
            answer = await self._decompress(stored[_DIGEST_BYTES:], pending)
        except (zlib.error, ValueError, TypeError) as error:
            _warn_of_corrupt_entry("answer", error)
            return None
        return CachedAnswer(stored[:_DIGEST_BYTES], answer)

    async def keep(self, batch_id: str, cached: CachedAnswer) -> None:
        """Store an answer in place of the unfinished batch."""
        stored = cached.digest + await compress(cached.answer)

        async def store() -> None:
            async with self._redis.pipeline() as pipeline:
                pipeline.set(_key(batch_id, "answer"), stored, px=self._ttl_milliseconds)
                pipeline.delete(_key(batch_id, "unfinished"))
                await pipeline.execute()

        await self._ask(store, None)

    @asynccontextmanager
    async def lease(self, batch_id: str) -> AsyncIterator[CachedAnswer | None]:
        """Wait for the batch's lease and hold it; yields the answer if a previous holder has stored one."""
        key, token = _key(batch_id, "lease"), secrets.token_bytes(16)
        # Another process releases the lease, without an event here.
        while not await self._ask(lambda: self._take(key, token), default=True):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        renewing = asyncio.ensure_future(self._renew(key, token))
        try:
            yield await self.find(batch_id)
        finally:
            renewing.cancel()
            await self._ask(lambda: self._redis.eval(_RELEASE, 1, key, token), None)

    async def is_leased(self, batch_id: str) -> bool:
        """Also true if Redis does not answer, as an error would end the client's query."""
        return bool(await self._ask(lambda: self._is_held(_key(batch_id, "lease")), default=True))

    async def keep_unfinished(self, batch: SentBatch) -> bool:
        """Store a batch that another replica can restart. Returns False if that failed."""
        if batch.batch_id is None:
            return False
        key = _key(key_of(batch.batch_id, batch.caller), "unfinished")
        stored = _format(batch)
        return bool(await self._ask(lambda: self._redis.set(key, stored, px=self._ttl_milliseconds), None))

    async def discard_unfinished(self, batch_id: str) -> None:
        """Delete a stored batch that would fail again."""
        await self._ask(lambda: self._redis.delete(_key(batch_id, "unfinished")), None)

    async def find_unfinished(self, batch_id: str) -> SentBatch | None:
        """The stored batch, unless a replica holds its lease."""

        async def look() -> tuple[bytes | None, int]:
            async with self._redis.pipeline() as pipeline:
                pipeline.get(_key(batch_id, "unfinished"))
                pipeline.exists(_key(batch_id, "lease"))
                stored, leases = await pipeline.execute()
                return stored, leases

        stored, leases = await self._ask(look, (None, 0))
        if not stored or leases:
            return None
        try:
            return self._parse(batch_id, stored)
        except (ValueError, TypeError) as error:
            _warn_of_corrupt_entry("batch", error)
            return None

    async def _take(self, lease: str, token: bytes) -> bool:
        if await self._redis.set(lease, token, nx=True, px=round(1000 * LEASE_SECONDS)):
            return True
        await self._is_held(lease)
        return False

    async def _is_held(self, lease: str) -> bool:
        """Whether the lease exists. Sets the expiry of one that was written without, or with a later one."""
        milliseconds = await self._redis.pttl(lease)
        if milliseconds == _NO_EXPIRY or milliseconds > 1000 * LEASE_SECONDS:
            await self._redis.pexpire(lease, round(1000 * LEASE_SECONDS))
        return bool(milliseconds != _NO_KEY)

    async def _renew(self, lease: str, token: bytes) -> None:
        milliseconds = str(round(1000 * LEASE_SECONDS))
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            await self._ask(lambda: self._redis.eval(_RENEW, 1, lease, token, milliseconds), None)

    async def _ask(self, command: Callable[[], Awaitable[Any]], default: T) -> Any:
        """The answer of Redis, or the default if it does not answer."""
        if monotonic() < self._ask_again_at:
            return default
        try:
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                answer = await command()
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError) and "WRONGTYPE" in str(error):
                _warn_of_corrupt_entry("mistyped", error)
                return default
            self._ask_again_at = max(self._ask_again_at, monotonic() + ASK_AGAIN_SECONDS)
            self._log_change(is_available=False, reason=type(error).__name__)
            return default
        self._log_change(is_available=True)
        return answer

    def _log_change(self, *, is_available: bool, reason: str | None = None) -> None:
        if is_available != self.is_available:
            self.is_available = is_available
            if is_available:
                log_event("redis_back")
            else:
                log_event("redis_gone", logging.WARNING, reason=reason)

    def _parse(self, batch_id: str, stored: bytes) -> SentBatch:
        """Raises ValueError for an invalid entry."""
        head, _, content = stored.partition(b"\n")
        parsed = _Head.model_validate_json(head)
        if key_of(parsed.batch_id, parsed.caller) != batch_id:
            raise ValueError(f"The id must be {batch_id!r}. Received: {parsed.batch_id!r}.")
        pending = self._admission.reserve(caller=parsed.caller)
        return SentBatch(content=content, pending=pending, **parsed.model_dump())


async def ping(url: str) -> float:
    """Return the seconds that a Redis takes to answer. Raises OSError with the reason."""
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
    )
    began = monotonic()
    try:
        await client.ping()
    except RedisError as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    finally:
        await client.aclose()
    return monotonic() - began


def _warn_of_corrupt_entry(kind: str, error: Exception) -> None:
    logger.warning("Redis has a corrupt %s entry, which the service ignores: %s", kind, type(error).__name__)


def _format(batch: SentBatch) -> bytes:
    head = {name: getattr(batch, name) for name in _Head.model_fields}
    return to_json(head) + b"\n" + batch.content


def _key(batch_id: str, kind: str) -> str:
    """Braces put all keys of a batch into one slot of a Redis cluster."""
    return f"ext-classify:{{{hashlib.sha256(batch_id.encode()).hexdigest()}}}:{kind}"
