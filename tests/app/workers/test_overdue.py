import pytest

from app.workers.turns import Overdue


class Request:
    def __init__(self, rows: int = 1) -> None:
        self.waiting = [0] * rows
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error = error


class Line:
    """Requests that came one after the other, and what became of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.overdue = Overdue[Request]()
        self.requests: list[Request] = []

    def enter(self, *rows: int) -> None:
        for count in rows:
            self.requests.append(Request(count))
            self.overdue.enter(self.requests[-1])

    def serve(self, requests: int) -> None:
        for request in self.requests[:requests]:
            self.overdue.leave(request)
            self.overdue.note_served(len(request.waiting))
        del self.requests[:requests]

    def look(self, *, until: float) -> None:
        while self.now < until:
            self.now = round(self.now + 0.1, 1)
            self.overdue.shed(1.0, lambda _: ValueError("late"))

    @property
    def shed(self) -> list[bool]:
        return [request.error is not None for request in self.requests]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr("app.workers.turns.monotonic", lambda: line.now)
    return line


def test_nobody_gives_way_while_the_oldest_is_in_time(line: Line) -> None:
    line.enter(*[1] * 100)
    line.look(until=0.9)
    assert not any(line.shed)
    assert line.overdue.longest_wait_seconds == pytest.approx(0.9)


def test_youngest_give_way_and_as_many_stay_as_were_served_lately(line: Line) -> None:
    line.enter(*[1] * 100)
    line.look(until=0.5)
    line.serve(3)
    line.look(until=1.2)
    assert line.shed == [False] * 3 + [True] * 94
    line.look(until=1.8)  # what was served is longer ago than a second
    assert line.shed == [False] + [True] * 96


def test_rows_are_what_counts(line: Line) -> None:
    line.enter(4, 4, 4, 4)
    line.look(until=0.5)
    line.serve(1)
    line.look(until=1.2)
    assert line.shed == [False, True, True]


def test_request_that_waits_alone_stays_however_long_it_waits(line: Line) -> None:
    line.enter(1)
    line.look(until=2.0)
    line.enter(1)
    line.look(until=2.1)
    assert line.shed == [False, True]


def test_those_who_have_waited_for_long_stay(line: Line) -> None:
    line.enter(1, 1)
    line.now = 3.5  # nobody looked
    line.enter(1)
    line.look(until=3.6)
    assert line.shed == [False, False, True]


def test_request_that_is_begun_or_gone_is_no_longer_late(line: Line) -> None:
    line.enter(1)
    line.look(until=2.0)
    line.serve(1)
    line.overdue.leave(Request())
    assert line.overdue.longest_wait_seconds == 0
