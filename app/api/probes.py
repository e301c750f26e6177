"""Probes: rows that ask the service for a 429 or a 202, to see what Snowflake makes of them.

A batch of one row whose source is `ext-classify-probe:429` or `ext-classify-probe:202` is answered so, and
then with a row error whose message says what the service saw. `ext-classify doctor --snowflake` sends them.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic

from app.errors import InvalidSource, Overloaded
from app.images.source import Row, Url

PROBE = "ext-classify-probe:"
# A retry with another batch id within this time would otherwise be refused again and again.
_RETRY_SECONDS = 120.0
# Gateways and Snowflake cut a longer call.
_MAX_SYNC_SECONDS = 30.0


class Probes:
    def __init__(self, sync_deadline_seconds: float | None) -> None:
        """`sync_deadline_seconds` is that of deferred responses, None if the service defers none."""
        self._sync_deadline_seconds = sync_deadline_seconds
        self._refused: dict[str, float] = {}

    async def answer(self, batch_id: str | None, rows: Sequence[Row]) -> None:
        """Replace the source of a probe by an InvalidSource with the result. Raises Overloaded."""
        if len(rows) != 1 or batch_id is None or not isinstance(rows[0].source, Url):
            return
        if rows[0].source.text == f"{PROBE}429":
            rows[0].source = InvalidSource(self._refuse_once(batch_id))
        elif rows[0].source.text == f"{PROBE}202":
            rows[0].source = InvalidSource(await self._outlast_deadline())

    def _refuse_once(self, batch_id: str) -> str:
        now = monotonic()
        self._refused = {one: at for one, at in self._refused.items() if now - at < _RETRY_SECONDS}
        if not self._refused:
            self._refused[batch_id] = now
            raise Overloaded("A probe must be sent again after this 429.", retry_after_seconds=1)
        same = "the same batch id" if batch_id in self._refused else "another batch id"
        seconds = now - self._refused.pop(batch_id, min(self._refused.values()))
        return f"Probe 429: sent again after {seconds:.1f} s with {same}."

    async def _outlast_deadline(self) -> str:
        deadline = self._sync_deadline_seconds
        if deadline is None or deadline >= _MAX_SYNC_SECONDS:
            return "Probe 202: the service defers no response of a call that Snowflake waits for."
        await asyncio.sleep(deadline + 1)
        return f"Probe 202: answered 202 after {deadline:g} s, then polled."
