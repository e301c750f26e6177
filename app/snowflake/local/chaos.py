"""What a network may do to batches: repeat, delay, drop and reorder them."""

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
    """What happens to one batch on its way."""

    kind: Kind = "none"
    delay_seconds: float = 0.0

    def befall(self, send: Send) -> bytes:
        """The answer that arrives: the last one, if the batch was sent more than once.

        Raises ValueError when the service answers the same batch differently.
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
    """Decides by chance, alike for the same seed and the same order of decisions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._lock = threading.Lock()

    def plan(self, count: int) -> tuple[list[int], list[Accident]]:
        """The order in which to send so many batches, and what happens to each."""
        with self._lock:
            order = self._random.sample(range(count), count)
            return order, [self._accident() for _ in range(count)]

    def _accident(self) -> Accident:
        return Accident(self._random.choice(_KINDS), self._random.uniform(0, MAX_DELAY_SECONDS))
