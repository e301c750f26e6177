import pytest

from app.outcome import CallSeconds, Step, Steps


def test_rows_that_went_side_by_side_add_up_within_the_time_that_they_span() -> None:
    step = Step()
    step.note(2.0, 10.0, 12.0)
    step.note(3.0, 11.0, 14.0)
    step.note(0.5, 9.5, 10.0)
    assert step == Step(seconds=5.5, began=9.5, ended=14.0)


def test_rows_of_a_call_share_its_seconds_and_span_all_of_it() -> None:
    steps = Steps()
    for _ in range(4):
        steps.note_call(CallSeconds(decode=1.0, predict=2.0), rows=4, ended=20.0)
    assert steps.decode == Step(seconds=1.0, began=17.0, ended=18.0)
    assert steps.predict == Step(seconds=2.0, began=18.0, ended=20.0)
    assert steps.fetch.seconds == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_two_requests_in_one_call_have_their_shares(rows: int) -> None:
    steps = Steps()
    for _ in range(rows):
        steps.note_call(CallSeconds(decode=0.0, predict=8.0), rows=4, ended=8.0)
    assert steps.predict == Step(seconds=2.0 * rows, began=0.0, ended=8.0)
