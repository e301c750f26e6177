"""A caller like Snowflake: resends the same bytes under the same batch id, with backoff, until answered."""

import asyncio
import base64
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from app.names import BATCH_ID_HEADER
from tests.benchmarks.connection import Answer, Connection, ConnectionLost
from tests.benchmarks.request_bodies import Request

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
GIVE_UP_SECONDS = 600.0


@dataclass(frozen=True)
class Batch:
    """`rows` images under one id."""

    batch_id: str
    rows: int
    body: bytes


@dataclass
class Tally:
    """Results of all requests; rejections are counted and timed separately."""

    statuses: Counter[str] = field(default_factory=Counter)
    refusal_seconds: list[float] = field(default_factory=list)
    answered_rows: int = 0


def make_batches(images: Sequence[bytes], rows: int, count: int) -> Iterator[Batch]:
    """Of the images in turn; what is repeated is encoded once."""
    texts = [base64.b64encode(image).decode() for image in images]
    bodies: dict[int, bytes] = {}
    for number in range(count):
        start = (number * rows) % len(texts)
        if start not in bodies:
            data = [[row, texts[(start + row) % len(texts)]] for row in range(rows)]
            bodies[start] = json.dumps({"data": data}).encode()
        yield Batch(f"{uuid.uuid4()}:{number}", rows, bodies[start])


def post_of(batch: Batch) -> Request:
    head = (
        f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"{BATCH_ID_HEADER}: {batch.batch_id}\r\nContent-Length: {len(batch.body)}\r\n\r\n"
    )
    return Request(head.encode(), batch.body)


def poll_of(batch: Batch) -> Request:
    head = f"GET /classify HTTP/1.1\r\nHost: a\r\n{BATCH_ID_HEADER}: {batch.batch_id}\r\n\r\n"
    return Request(head.encode(), b"")


class Caller:
    """One of a warehouse's connections."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._connection = Connection(port)
        self._tally = tally

    async def send(self, batch: Batch) -> bytes:
        """The answer. Raises RuntimeError for one that would end the query."""
        request, pause = post_of(batch), FIRST_PAUSE_SECONDS
        deadline = time.perf_counter() + GIVE_UP_SECONDS
        while time.perf_counter() < deadline:
            answer = await self._ask(request)
            if answer is not None and answer.status == 200:
                self._tally.answered_rows += batch.rows
                return answer.body
            if answer is not None and answer.status == 202:
                request = poll_of(batch)
            elif answer is not None and answer.status != 429 and answer.status < 500:
                raise RuntimeError(f"status {answer.status}: {answer.body[:200].decode(errors='replace')}")
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)  # noqa: S311 - it is no secret
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise RuntimeError("no answer within Snowflake's patience")

    async def _ask(self, request: Request) -> Answer | None:
        started = time.perf_counter()
        try:
            answer = await self._connection.ask(request)
        except (OSError, ConnectionLost) as error:
            self._connection.close()
            self._tally.statuses[type(error).__name__] += 1
            return None
        self._tally.statuses[str(answer.status)] += 1
        if answer.status == 429:
            self._tally.refusal_seconds.append(time.perf_counter() - started)
        return answer

    def close(self) -> None:
        self._connection.close()
