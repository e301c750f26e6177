"""Rows of one request that are awaited together."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.errors import Overloaded
from app.outcome import Outcome

if TYPE_CHECKING:
    from app.row_queue import QueuedRequest


@dataclass(eq=False)
class AwaitedRows:
    """Rows of one request that are awaited together, and answered one by one."""

    answered: "asyncio.Future[list[Outcome | None]]"
    outcomes: list[Outcome | None]
    unanswered: int
    request: "QueuedRequest"
    on_answered: Callable[[int, Outcome | None], None]
    """Called with each row's place and outcome; raises Overloaded where there is no room for it."""
    answered_places: set[int] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """All rows are answered, one has failed, or the client has disconnected."""
        return self.answered.done()

    def answer(self, place: int, outcome: Outcome | None) -> bool:
        """False for a row that another process has answered before."""
        if place in self.answered_places:
            return False
        self.answered_places.add(place)
        self.outcomes[place] = outcome
        try:
            self.on_answered(place, outcome)
        except Overloaded as error:
            self.fail(error)
        self.request.note_classified()
        self.unanswered -= 1
        if self.unanswered == 0 and not self.is_over:
            self.answered.set_result(self.outcomes)
        return True

    def fail(self, error: Exception) -> None:
        if not self.is_over:
            self.answered.set_exception(error)
