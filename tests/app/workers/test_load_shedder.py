import pytest

from app.workers.queue import LoadShedder


class Request:
    def __init__(self, rows: int = 1) -> None:
        self.waiting = [0] * rows
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error = error


class Line:
    """Requests in the order of their arrival."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shedder = LoadShedder()
        self.requests: list[Request] = []

    def add(self, *rows: int) -> None:
        for count in rows:
            self.requests.append(Request(count))
            self.shedder.add(self.requests[-1])

    def serve(self, requests: int) -> None:
        for request in self.requests[:requests]:
            self.shedder.remove(request)
            self.shedder.count_served(len(request.waiting))
        del self.requests[:requests]

    def check(self, *, until: float) -> None:
        while self.now < until:
            self.now = round(self.now + 0.1, 1)
            self.shedder.shed(1.0, lambda _: ValueError("late"))

    @property
    def shed(self) -> list[bool]:
        return [request.error is not None for request in self.requests]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    line = Line()
    monkeypatch.setattr("app.workers.queue.monotonic", lambda: line.now)
    return line


def test_nothing_is_shed_while_the_oldest_request_is_in_time(line: Line) -> None:
    line.add(*[1] * 100)
    line.check(until=0.9)
    assert not any(line.shed)
    assert line.shedder.longest_wait_seconds == pytest.approx(0.9)


def test_youngest_requests_are_shed_beyond_the_number_served_recently(line: Line) -> None:
    line.add(*[1] * 100)
    line.check(until=0.5)
    line.serve(3)
    line.check(until=1.2)
    assert line.shed == [False] * 3 + [True] * 94
    line.check(until=1.8)  # more than a second after the last was served
    assert line.shed == [False] + [True] * 96


def test_shedder_counts_rows(line: Line) -> None:
    line.add(4, 4, 4, 4)
    line.check(until=0.5)
    line.serve(1)
    line.check(until=1.2)
    assert line.shed == [False, True, True]


def test_only_request_is_never_shed(line: Line) -> None:
    line.add(1)
    line.check(until=2.0)
    line.add(1)
    line.check(until=2.1)
    assert line.shed == [False, True]


def test_requests_that_have_waited_three_times_as_long_are_not_shed(line: Line) -> None:
    line.add(1, 1)
    line.now = 3.5  # without a check
    line.add(1)
    line.check(until=3.6)
    assert line.shed == [False, False, True]


def test_started_and_removed_requests_do_not_wait(line: Line) -> None:
    line.add(1)
    line.check(until=2.0)
    line.serve(1)
    line.shedder.remove(Request())
    assert line.shedder.longest_wait_seconds == 0
