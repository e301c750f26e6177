"""Log lines about processes: a fault that repeats is logged at intervals, with a count, not each time."""

from time import monotonic

from app.log import logger

INTERVAL_SECONDS = 30.0


class Notices:
    """Each kind of notice has its own interval."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def warn(self, kind: str, reason: str = "") -> None:
        now = monotonic()
        if now - self._logged_at.get(kind, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return
        self._logged_at[kind] = now
        since = f" ({count} more since the last line)" if (count := self._suppressed.pop(kind, 0)) else ""
        logger.warning("%s%s%s", kind, f" {reason}" if reason else "", since)
