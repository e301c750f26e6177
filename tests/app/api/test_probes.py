"""Rows that ask for a 429 or a 202, and what the service says about them."""

import asyncio

import pytest

from app.api.classify import PROBE, Probes
from app.errors import InvalidSource, Overloaded
from app.images.source import Row, Url


def ask(probes: Probes, status: str, batch_id: str | None = "1:0") -> str:
    """The message of the row's error; "" if the source is as it was sent."""
    row = Row(0, Url(f"{PROBE}{status}"))
    asyncio.run(probes.answer(batch_id, [row]))
    return row.source.message if isinstance(row.source, InvalidSource) else ""


def test_batch_is_refused_once_and_then_told_whether_it_came_with_the_same_id() -> None:
    probes = Probes(20.0)
    for first, second, said in (("1:0", "1:0", "the same batch id"), ("2:0", "3:0", "another batch id")):
        with pytest.raises(Overloaded) as refused:
            ask(probes, "429", first)
        assert refused.value.headers["retry-after"] == "1"
        assert said in ask(probes, "429", second)


def test_response_is_deferred_where_the_service_defers() -> None:
    assert "answered 202 after 0.01 s" in ask(Probes(0.01), "202")


@pytest.mark.parametrize("deadline", [None, 30.0, 3600.0])
def test_service_that_defers_nothing_answers_at_once(deadline: float | None) -> None:
    assert "defers no response" in ask(Probes(deadline), "202")


@pytest.mark.parametrize("status", ["", "429 ", "500", "4290"])
def test_other_sources_are_left_alone(status: str) -> None:
    assert ask(Probes(20.0), status) == ""
    assert ask(Probes(20.0), "429", batch_id=None) == ""


def test_batches_of_several_rows_are_left_alone() -> None:
    rows = [Row(number, Url(f"{PROBE}429")) for number in range(2)]
    asyncio.run(Probes(20.0).answer("1:0", rows))
    assert all(isinstance(row.source, Url) for row in rows)
