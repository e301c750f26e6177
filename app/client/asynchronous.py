"""The asyncio client; otherwise it behaves like Client. Requests run in threads, pauses on the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice
from typing import Self, TypeVar

from app.client.blocking import in_thread
from app.client.conversation import (
    BATCH_ROWS,
    CONCURRENT_BATCHES,
    DEFAULT_URL,
    PATIENCE_SECONDS,
    Conversation,
    Image,
    Service,
    ask_batch,
    ask_model_version,
    in_batches,
    rows_of,
)
from app.client.transport import TIMEOUT_SECONDS, NoReply, Reply, Request, Transport
from app.outcome import Outcome

_Result = TypeVar("_Result")


class AsyncClient:
    """A client of one service, used with `async with`; tasks of one event loop may share it."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._service = Service(url, api_key, patience_seconds)
        self._transport = Transport(url, timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    async def classify(self, image: Image, *, evidence: bool = False) -> Outcome:
        """The outcome of one image. Raises OSError for a file that cannot be read."""
        [outcome] = await self.classify_batch([image], evidence=evidence)
        return outcome

    async def classify_all(
        self,
        images: Iterable[Image],
        *,
        evidence: bool = False,
        batch_rows: int = BATCH_ROWS,
        concurrent_batches: int = CONCURRENT_BATCHES,
    ) -> AsyncIterator[Outcome]:
        """Yield outcomes in the order of the images, which are read lazily.

        Raises OSError for a file that cannot be read.
        """
        batches = in_batches(images, batch_rows)
        running: deque[asyncio.Task[list[Outcome]]] = deque()

        def start(count: int) -> None:
            for batch in islice(batches, count):
                running.append(asyncio.create_task(self.classify_batch(batch, evidence=evidence)))

        try:
            start(concurrent_batches)
            while running:
                for outcome in await running.popleft():
                    yield outcome
                start(1)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def classify_batch(self, images: Sequence[Image], *, evidence: bool = False) -> list[Outcome]:
        """Outcomes of the images, sent in one request. Raises OSError for a file that cannot be read."""
        rows = await asyncio.to_thread(rows_of, images, evidence=evidence)
        return await self._run(ask_batch(self._service, rows))

    async def model_version(self) -> str | None:
        """The version of the model that serves now; None if a gateway blocks the endpoint. Not retried."""
        return await self._run(ask_model_version(self._service))

    async def _run(self, conversation: Conversation[_Result]) -> _Result:
        reply: Reply | NoReply | None = None
        try:
            while True:
                step = conversation.send(reply)
                if isinstance(step, Request):
                    reply = await asyncio.wrap_future(in_thread(self._transport.send, step))
                else:
                    await asyncio.sleep(step.seconds)
                    reply = None
        except StopIteration as end:
            result: _Result = end.value
            return result
