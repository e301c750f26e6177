"""Network faults for testing: batches are repeated, delayed, dropped and reordered at random."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_DELAY_SECONDS = 0.2

Send = Callable[[], bytes]
Kind = Literal["none", "repeated", "delayed", "dropped"]
_KINDS: tuple[Kind, ...] = ("none", "repeated", "delayed", "dropped")


@dataclass(frozen=True)
class Accident:
    """The network fault of one batch."""

    kind: Kind = "none"
    delay_seconds: float = 0.0

    def apply(self, send: Send) -> bytes:
        """Send the batch under this fault and return the response, the second one if it was sent twice.

        Raises ValueError if the service answers a repeated batch differently.
        """
        if self.kind == "delayed":
            time.sleep(self.delay_seconds)
        answer = send()
        if self.kind in {"repeated", "dropped"}:
            first, answer = answer, send()
            if self.kind == "repeated" and first != answer:
                raise ValueError("a repeated batch must get the same answer")
        return answer


class Chaos:
    """Chooses faults at random; the same seed and the same sequence of calls give the same faults."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._lock = threading.Lock()

    def plan(self, count: int) -> tuple[list[int], list[Accident]]:
        """The order in which to send `count` batches, and the fault of each."""
        with self._lock:
            order = self._random.sample(range(count), count)
            return order, [self._accident() for _ in range(count)]

    def _accident(self) -> Accident:
        return Accident(self._random.choice(_KINDS), self._random.uniform(0, MAX_DELAY_SECONDS))
