"""The asyncio client; otherwise it behaves like Client."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from io import BytesIO
from itertools import islice
from socket import EAI_NONAME
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from app.client.conversation import (
    BATCH_ROWS,
    CONCURRENT_BATCHES,
    DEFAULT_URL,
    PATIENCE_SECONDS,
    TIMEOUT_SECONDS,
    Conversation,
    Image,
    NoReply,
    Reply,
    Request,
    Rows,
    Service,
    ask_batch,
    ask_model_version,
    in_batches,
    is_loopback,
    rows_of,
)
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
        self._proxy = _proxy_for(url)
        # Per connect and per read, as in Client: a large batch takes long over a slow connection.
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds
        )
        self._opened: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._opened = aiohttp.ClientSession(timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            raise RuntimeError("AsyncClient must be used within `async with`.")
        return self._opened

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
        return await self.classify_rows(rows)

    async def classify_rows(self, rows: Rows, batch_id: str | None = None) -> list[Outcome]:
        """Outcomes of rows as Snowflake sends them, `[number, source]`, in one request with that batch id."""
        return await self._run(ask_batch(self._service, rows, batch_id))

    async def model_version(self) -> str | None:
        """The version of the model that serves now; None if a gateway blocks the endpoint. Not retried."""
        return await self._run(ask_model_version(self._service))

    async def _run(self, conversation: Conversation[_Result]) -> _Result:
        reply: Reply | NoReply | None = None
        try:
            while True:
                step = conversation.send(reply)
                if isinstance(step, Request):
                    reply = await self._send(step)
                else:
                    await asyncio.sleep(step.seconds)
                    reply = None
        except StopIteration as end:
            result: _Result = end.value
            return result

    async def _send(self, request: Request) -> Reply | NoReply:
        try:
            async with self._session.request(
                request.method,
                self._service.where(request.path),
                data=None if request.body is None else BytesIO(request.body),  # streamed in chunks
                headers=request.headers,
                allow_redirects=False,  # a redirect must not forward the API key
                proxy=self._proxy,
            ) as response:
                retry_after = response.headers.get("Retry-After", "")
                return Reply(
                    response.status,
                    await response.read(),
                    float(retry_after) if retry_after.isdecimal() else None,
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return NoReply(str(error) or type(error).__name__, _is_final(error))


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names, as in Client, but without credentials from .netrc."""
    parts = urlsplit(url)
    if is_loopback(url) or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


def _is_final(error: Exception) -> bool:
    """Whether a retry would fail the same way."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return getattr(error.os_error, "errno", None) == EAI_NONAME
    return isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.InvalidURL)
