"""Names that resolve slowly, or not at all, do not delay others."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.errors import FetchTimeout
from app.images import resolver as module
from app.images.resolver import MAX_LOOKUPS, MAX_LOOKUPS_PER_DOMAIN, SystemResolver

TIMEOUT_SECONDS = 120.0
ADDRESS = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))


class NameServer:
    """Answers names at once, except for those that contain `slow`, which wait, or `unknown`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers = threading.Event()

    def look_up(self, host: str, *_: object, **__: object) -> list[Any]:
        self.asked[host] += 1
        if "slow" in host:
            assert self.answers.wait(TIMEOUT_SECONDS)
        if "unknown" in host:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [ADDRESS]

    @property
    def slow_lookups(self) -> int:
        return sum(times for name, times in self.asked.items() if "slow" in name)


def run(test: Coroutine[Any, Any, None], server: NameServer) -> None:
    try:
        asyncio.run(test)
    finally:
        server.answers.set()


async def until(is_reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not is_reached():  # noqa: ASYNC110 - other threads reach it
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)


@pytest.fixture
def server() -> NameServer:
    return NameServer()


def test_name_is_resolved_to_its_addresses(server: NameServer) -> None:
    async def test() -> None:
        [found] = await SystemResolver(TIMEOUT_SECONDS, server.look_up).resolve("a.example.com", 443)
        assert (found["hostname"], found["host"], found["port"]) == ("a.example.com", "192.0.2.1", 443)
        assert found["family"] == socket.AF_INET

    run(test(), server)


def test_local_name_is_resolved_by_the_system() -> None:
    [found, *_] = asyncio.run(SystemResolver(TIMEOUT_SECONDS).resolve("localhost", 443, socket.AF_INET))
    assert found["host"] == "127.0.0.1"


def test_slow_names_delay_no_name_of_another_domain(server: NameServer) -> None:
    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        slow = [asyncio.ensure_future(resolver.resolve(f"h{n}.slow.example")) for n in range(64)]
        await asyncio.sleep(0)
        assert await resolver.resolve("images.example.com")
        assert not any(lookup.done() for lookup in slow)
        assert server.slow_lookups <= MAX_LOOKUPS_PER_DOMAIN
        for lookup in slow:
            lookup.cancel()

    run(test(), server)


def test_slow_names_of_many_domains_run_in_a_bounded_number_of_threads(server: NameServer) -> None:
    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        assert await resolver.resolve("images.example.com")
        slow = [asyncio.ensure_future(resolver.resolve(f"a.slow{n}.example")) for n in range(100)]
        await until(lambda: server.slow_lookups == MAX_LOOKUPS)
        # A name that has been resolved before does not wait for those.
        assert await resolver.resolve("images.example.com")
        assert server.slow_lookups == MAX_LOOKUPS
        for lookup in slow:
            lookup.cancel()

    run(test(), server)


def test_lookup_that_is_no_longer_waited_for_keeps_its_slot_until_it_ends(server: NameServer) -> None:
    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        for n in range(4 * MAX_LOOKUPS_PER_DOMAIN):
            lookup = asyncio.ensure_future(resolver.resolve(f"h{n}.slow.example"))
            for _ in range(5):
                await asyncio.sleep(0)
            lookup.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lookup
        await until(lambda: server.slow_lookups >= MAX_LOOKUPS_PER_DOMAIN)
        assert server.slow_lookups == MAX_LOOKUPS_PER_DOMAIN
        server.answers.set()
        assert await resolver.resolve("late.slow.example")

    run(test(), server)


def test_name_that_finds_no_slot_times_out(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOT_SECONDS", 0.05)

    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        slow = [
            asyncio.ensure_future(resolver.resolve(f"h{n}.slow.example"))
            for n in range(MAX_LOOKUPS_PER_DOMAIN)
        ]
        await asyncio.sleep(0)
        with pytest.raises(FetchTimeout) as raised:
            await resolver.resolve("other.slow.example")
        assert raised.value.retryable
        assert "other.slow.example" not in server.asked
        server.answers.set()
        await asyncio.gather(*slow)
        monkeypatch.setattr(module, "SLOT_SECONDS", TIMEOUT_SECONDS)
        # The name was not at fault, and is looked up.
        assert await resolver.resolve("other.slow.example")

    run(test(), server)


def test_slow_name_is_not_looked_up_again_soon_unless_it_resolves_after_all(server: NameServer) -> None:
    async def test() -> None:
        resolver = SystemResolver(0.05, server.look_up)
        for _ in range(3):
            with pytest.raises(FetchTimeout):
                await resolver.resolve("a.slow.example")
        await until(lambda: server.asked["a.slow.example"] > 0)
        assert server.asked["a.slow.example"] == 1
        resolver._timeout_seconds = TIMEOUT_SECONDS  # noqa: SLF001
        server.answers.set()
        await until(lambda: "name-lookup" not in {thread.name for thread in threading.enumerate()})
        assert await resolver.resolve("a.slow.example")

    run(test(), server)


def test_unknown_name_is_not_looked_up_again_soon(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        for _ in range(3):
            with pytest.raises(socket.gaierror):
                await resolver.resolve("unknown.example")
        assert server.asked["unknown.example"] == 1
        monkeypatch.setattr(module, "monotonic", lambda: float("inf"))
        with pytest.raises(socket.gaierror):
            await resolver.resolve("unknown.example")
        assert server.asked["unknown.example"] == 2

    run(test(), server)


def test_oldest_unknown_name_is_evicted(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_NAMES", 10)

    async def test() -> None:
        resolver = SystemResolver(TIMEOUT_SECONDS, server.look_up)
        for n in [*range(11), 10, 0]:
            with pytest.raises(OSError, match="not known"):
                await resolver.resolve(f"h{n}.unknown.example")
        assert server.asked["h10.unknown.example"] == 1
        assert server.asked["h0.unknown.example"] == 2

    run(test(), server)


def test_name_that_cannot_be_encoded_is_an_error_of_its_own() -> None:
    with pytest.raises(OSError, match="label"):
        asyncio.run(SystemResolver(TIMEOUT_SECONDS).resolve("a" * 64 + ".example", 443))
