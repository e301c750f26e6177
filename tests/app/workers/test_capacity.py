import pytest

from app.workers.queue import Capacity


def test_row_time_is_zero_before_the_first_row() -> None:
    assert Capacity(2, 64).row_seconds == 0


def test_processes_share_the_rows() -> None:
    capacity = Capacity(classifiers=4, max_concurrent_fetches=64)
    capacity.record_classified(2, 0.016)
    assert capacity.row_seconds == pytest.approx(0.002)


def test_slow_fetches_determine_the_row_time() -> None:
    capacity = Capacity(classifiers=2, max_concurrent_fetches=10)
    capacity.record_classified(10, 0.02)
    for _ in range(10):
        capacity.record_fetched(0.5)
    assert capacity.row_seconds == capacity.fetched_row_seconds == pytest.approx(0.05)
    assert capacity.classified_row_seconds == pytest.approx(0.001)


def test_latest_rows_count_most_once_there_are_many() -> None:
    capacity = Capacity(classifiers=1, max_concurrent_fetches=1)
    capacity.record_classified(100_000, 100.0)
    for _ in range(500):
        capacity.record_classified(2, 0.2)
    assert 0.08 < capacity.row_seconds < 0.1


def test_call_without_rows_is_ignored() -> None:
    capacity = Capacity(1, 1)
    capacity.record_classified(0, 0.0)
    capacity.record_classified(1, 0.25)
    assert capacity.row_seconds == 0.25


def test_failed_rows_do_not_hide_the_cost_of_an_image() -> None:
    capacity = Capacity(1, 1)
    capacity.record_classified(10, 1.0)
    for _ in range(1000):
        capacity.record_classified(8, 0.0001, failed_rows=8)
    assert capacity.row_seconds == pytest.approx(0.1)
    for _ in range(100):
        capacity.record_classified(8, 0.1, failed_rows=7)
    assert capacity.row_seconds == pytest.approx(0.1)


def test_slow_failed_rows_count() -> None:
    capacity = Capacity(1, 1)
    capacity.record_classified(1, 0.001)
    for _ in range(1000):
        capacity.record_classified(8, 8.0, failed_rows=8)
    assert capacity.row_seconds > 0.9
