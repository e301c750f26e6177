import logging

import pytest

from app.telemetry.log import logger
from app.workers.starting import INTERVAL_SECONDS, Notices


def test_fault_that_repeats_is_logged_at_intervals_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("app.workers.starting.monotonic", lambda: now)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    try:
        notices = Notices()
        for _ in range(1000):
            notices.died()
        notices.cannot_be_started(BlockingIOError("no more processes"))
        now += INTERVAL_SECONDS
        notices.died()
    finally:
        logger.removeHandler(caplog.handler)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "A classifier process died."),
        (logging.ERROR, "A classifier process cannot be started: BlockingIOError: no more processes"),
        (logging.WARNING, "A classifier process died. (999 more since the last such line)"),
    ]
