"""Whether a classifier process is ready, and the 503 that requests receive while none is."""

import asyncio
from collections.abc import Callable

from app.errors import NoClassifier
from app.log import logger

# A process that died is replaced within a fraction of this. Not ready at once would let an image that kills
# a service's only process take the service out of its load balancer.
GRACE_SECONDS = 2.0


class Availability:
    """True until no process has been ready for the grace period, and again once one is."""

    def __init__(self, on_unavailable: Callable[[], None]) -> None:
        self.is_available = True
        self._on_unavailable = on_unavailable
        self._timer: asyncio.TimerHandle | None = None

    def note(self, ready_processes: int) -> None:
        """Their number has changed."""
        if ready_processes == 0:
            if self._timer is None and self.is_available:
                self._timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._end)
            return
        self.close()
        if not self.is_available:
            self.is_available = True
            logger.warning("The service can classify again.")

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self.is_available = False
        logger.error("No classifier process is ready: requests are answered 503 until one is.")
        self._on_unavailable()


def no_classifier() -> NoClassifier:
    return NoClassifier(
        "A classifier process must be ready to classify images. Received: none is. Send it again."
    )
