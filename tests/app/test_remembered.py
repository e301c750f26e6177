import asyncio
import secrets
import threading
import zlib

import pytest

from app.answer_store import Remembered
from app.remembered import MemoryStore


@pytest.mark.parametrize(("answer_bytes", "is_large"), [(100, False), (1_000_000, True)])
def test_large_answer_is_inflated_in_a_thread(
    answer_bytes: int, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = secrets.token_bytes(answer_bytes)
    store = MemoryStore(60.0, 10_000_000)
    threads: list[threading.Thread] = []
    decompress = zlib.decompress

    def note(compressed: bytes) -> bytes:
        threads.append(threading.current_thread())
        return decompress(compressed)

    async def keep_and_find() -> Remembered | None:
        await store.keep("a", Remembered(b"digest", answer))
        return await store.find("a")

    monkeypatch.setattr(zlib, "decompress", note)
    assert asyncio.run(keep_and_find()) == Remembered(b"digest", answer)
    assert [thread is not threading.main_thread() for thread in threads] == [is_large]
