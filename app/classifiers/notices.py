"""Log lines about processes: a fault that repeats is logged at intervals, with a count, not each time."""

from time import monotonic

from app.log import logger

INTERVAL_SECONDS = 30.0


class Notices:
    """Each kind of notice has its own interval."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def died(self, reason: str = "") -> None:
        if self._is_due(kind := f"died {reason}"):
            logger.warning("A classifier process died.%s%s", reason and f" {reason}", self._more(kind))

    def cannot_classify(self, refusal: str) -> None:
        if self._is_due(refusal):
            logger.error("A classifier process cannot classify: %s%s", refusal, self._more(refusal))

    def cannot_be_started(self, error: Exception) -> None:
        if self._is_due(kind := f"{type(error).__name__}: {error}"):
            logger.error("A classifier process cannot be started: %s%s", kind, self._more(kind))

    def _is_due(self, kind: str) -> bool:
        now = monotonic()
        if now - self._logged_at.get(kind, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return False
        self._logged_at[kind] = now
        return True

    def _more(self, kind: str) -> str:
        count = self._suppressed.pop(kind, 0)
        return f" ({count} more since the last such line)" if count else ""
