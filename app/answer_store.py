"""What is known of a batch, and where its answer is remembered."""

import hashlib
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from app.pending import PendingBody


@dataclass
class SentBatch:
    """A batch as it was sent. Its answer follows from its content, the encoding of that, and `evidence`."""

    batch_id: str | None
    query_id: str | None
    content: bytes
    content_encoding: str
    evidence: bool
    pending: PendingBody = field(repr=False)

    def take_content(self) -> bytes:
        """Once: it is not kept beside the rows that it becomes."""
        content, self.content = self.content, b""
        return content

    @cached_property
    def digest(self) -> bytes:
        """Of all that the answer follows from, first asked for while the content is there."""
        digest = hashlib.sha256(f"{self.content_encoding}\n{self.evidence}\n".encode())
        digest.update(self.content)
        return digest.digest()


class Remembered(NamedTuple):
    """The answer to a batch with this digest."""

    digest: bytes
    answer: bytes


class AnswerStore(Protocol):
    """Where answers are remembered."""

    is_shared: bool
    """With other processes, which may have to begin a batch anew."""
    is_available: bool

    @property
    def held_bytes(self) -> int: ...

    async def look(self) -> None:
        """Whether it is available, so that `is_available` is true of now."""
        ...

    def has(self, batch_id: str) -> bool:
        """At hand."""
        ...

    async def find(
        self, batch_id: str, pending: PendingBody | None = None, digest: bytes | None = None
    ) -> Remembered | None:
        """The answer to a batch, and where `digest` is given, to one with that digest.

        `pending` takes the bytes of a large answer in addition to what it holds. Raises Overloaded.
        """
        ...

    async def keep(self, batch_id: str, remembered: Remembered) -> None: ...

    def claim(self, batch_id: str) -> AbstractAsyncContextManager[Remembered | None]:
        """The right to classify a batch, or what another process that had it has answered meanwhile."""
        ...

    async def keep_unfinished(self, batch: SentBatch) -> bool:
        """So that another process can begin anew what this one may not end. False if it could not."""
        ...

    async def forget_unfinished(self, batch_id: str) -> None:
        """Of one that would fail again wherever it is begun anew."""
        ...

    async def find_unfinished(self, batch_id: str) -> SentBatch | None:
        """One that nobody classifies any more."""
        ...

    async def is_claimed(self, batch_id: str) -> bool: ...

    async def close(self) -> None: ...
