"""Names to addresses, by the system's resolver, so that a slow name server delays its own names only.

`getaddrinfo` cannot be cancelled: a name server that does not answer occupies a thread for half a minute. The
event loop has four threads for it, or for all blocking calls. Lookups here have threads of their own, a
bounded number of them, and a few for each domain.
"""

import asyncio
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver, ResolveResult

from app.errors import FetchTimeout

MAX_LOOKUPS = 32
MAX_LOOKUPS_PER_DOMAIN = 4
# Lookups take milliseconds: a longer wait is for name servers that do not answer.
SLOT_SECONDS = 2.0
# A name that failed, or was not resolved in time, is not looked up again for so long.
FAILED_SECONDS = 3.0
SLOW_SECONDS = 30.0
MAX_CACHED_NAMES = 1024

Address: TypeAlias = tuple[Any, ...]
Lookup: TypeAlias = Callable[..., list[Address]]
_Answer: TypeAlias = tuple[list[Address], OSError | None]


class SystemResolver(AbstractResolver):
    """Resolves names in threads. Names that have been resolved before do not wait for others."""

    def __init__(self, timeout_seconds: float, look_up: Lookup = socket.getaddrinfo) -> None:
        self._timeout_seconds = timeout_seconds
        self._look_up = look_up
        self._slots = _Slots()
        self._slots_of_resolved = _Slots()
        self._resolved: OrderedDict[str, None] = OrderedDict()
        self._unresolved: OrderedDict[str, tuple[float, OSError | None]] = OrderedDict()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of `host`. Raises OSError, or FetchTimeout when they are not known in time."""
        self._raise_if_unresolved(host)
        release = await self._acquire_slot(host)
        answer = self._start(host, port, family, release)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                addresses, error = await asyncio.shield(answer)
        except TimeoutError:
            self._note_unresolved(host, SLOW_SECONDS, None)
            raise self._timeout() from None
        if error is not None:
            raise error
        return [_result(host, port, address) for address in addresses]

    async def close(self) -> None:
        """Lookups that still run end by themselves; their threads do not keep the process alive."""

    def _raise_if_unresolved(self, host: str) -> None:
        until, error = self._unresolved.get(host, (0.0, None))
        if monotonic() < until:
            raise error.with_traceback(None) if error else self._timeout()

    async def _acquire_slot(self, host: str) -> Callable[[], None]:
        slots = self._slots_of_resolved if host in self._resolved else self._slots
        try:
            async with asyncio.timeout(min(SLOT_SECONDS, self._timeout_seconds)):
                return await slots.acquire(_domain_of(host))
        except TimeoutError:
            raise FetchTimeout(
                "A URL's host name cannot be resolved while other names take too long to resolve.",
                retryable=True,
            ) from None

    def _timeout(self) -> FetchTimeout:
        return FetchTimeout(
            f"A URL's host name must resolve within {self._timeout_seconds:g} seconds.", retryable=True
        )

    def _start(
        self, host: str, port: int, family: socket.AddressFamily, release: Callable[[], None]
    ) -> "asyncio.Future[_Answer]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()

        def finish(addresses: list[Address], error: OSError | None) -> None:
            release()
            self._note(host, error)
            if not answer.done():
                answer.set_result((addresses, error))

        def run() -> None:
            addresses, error = self._try(host, port, family)
            with suppress(RuntimeError):  # the event loop has been closed
                loop.call_soon_threadsafe(finish, addresses, error)

        try:
            threading.Thread(target=run, name="name-lookup", daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            release()
            raise OSError(str(error)) from None
        return answer

    def _try(self, host: str, port: int, family: socket.AddressFamily) -> _Answer:
        try:
            return self._look_up(
                host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
            ), None
        except OSError as error:
            return [], error
        except UnicodeError as error:  # a label of more than 63 characters, say
            return [], OSError(str(error))

    def _note(self, host: str, error: OSError | None) -> None:
        if error is not None:
            self._note_unresolved(host, FAILED_SECONDS, error)
            return
        self._unresolved.pop(host, None)
        self._resolved[host] = None
        self._resolved.move_to_end(host)
        _evict(self._resolved)

    def _note_unresolved(self, host: str, seconds: float, error: OSError | None) -> None:
        self._resolved.pop(host, None)
        self._unresolved[host] = monotonic() + seconds, error
        self._unresolved.move_to_end(host)
        _evict(self._unresolved)


class _Slots:
    """Bounds the lookups that run at the same time, altogether and for each domain."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MAX_LOOKUPS)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def acquire(self, domain: str) -> Callable[[], None]:
        """Wait for a slot. Returns what releases it."""
        of_domain = self._domains.get(domain)
        if of_domain is None:
            of_domain = self._domains[domain] = asyncio.Semaphore(MAX_LOOKUPS_PER_DOMAIN)
        await of_domain.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            of_domain.release()
            raise

        def release() -> None:
            of_domain.release()
            self._all.release()

        return release


def _domain_of(host: str) -> str:
    """The last two labels: about what one owner's name servers answer for."""
    return ".".join(host.rstrip(".").lower().split(".")[-2:])


def _evict(names: OrderedDict[str, Any]) -> None:
    while len(names) > MAX_CACHED_NAMES:
        names.popitem(last=False)


def _result(host: str, port: int, address: Address) -> ResolveResult:
    family, _, proto, _, (numeric, *_) = address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=numeric, port=port, family=family, proto=proto, flags=flags)
