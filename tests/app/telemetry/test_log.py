"""The log writer, and the service while its log is not read."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TextIO

import pytest

from app.client import is_ready
from app.telemetry import log
from app.telemetry.log import LogWriter, log_event, logger
from tests.running import CLI, TIMEOUT_SECONDS, exchange, free_port, wait_until

pytestmark = pytest.mark.slow

LINE_BYTES = 1000
# Linux and macOS hold at most 64 KiB in a pipe.
LINES_PAST_A_PIPE = 200


@contextmanager
def unread_pipe() -> Iterator[tuple[int, TextIO]]:
    """The read end of a pipe, and a stream to its write end."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "w") as stream:
            yield reading, stream
    finally:
        os.close(reading)


def lines_of(reading: int, until: str) -> list[str]:
    """Read the pipe up to the line that contains `until`."""
    content = b""
    while until.encode() not in content or not content.endswith(b"\n"):
        content += os.read(reading, 65536)
    return content.decode().splitlines()


def kept_of(reading: int, count: int) -> list[int]:
    """The numbers that arrive of `count` lines; all others must be reported as dropped."""
    kept, dropped = list[int](), 0
    with os.fdopen(os.dup(reading)) as lines:
        while len(kept) + dropped < count:
            line = lines.readline()
            if line.startswith("{") or " {" in line:
                report = json.loads(line[line.index("{") :])
                assert report["event"] == "log_lines_dropped"
                dropped += report["lines"]
            else:
                kept.append(int(line[:6]))
    assert len(kept) + dropped == count
    return kept


def numbered(number: int) -> str:
    return f"{number:06d}".ljust(LINE_BYTES - 1, ".")


def test_lines_are_written_in_their_order() -> None:
    stream = StringIO()
    writer = LogWriter(stream)
    writer.is_serving = True
    for number in range(100):
        writer.write(str(number))
    assert writer.flush(TIMEOUT_SECONDS)
    assert stream.getvalue().split() == [str(number) for number in range(100)]


def test_line_is_written_when_write_returns_unless_the_service_serves() -> None:
    stream = StringIO()
    LogWriter(stream).write("starting")
    assert stream.getvalue() == "starting\n"


def test_full_pipe_does_not_block_and_dropped_lines_are_counted() -> None:
    with unread_pipe() as (reading, stream):
        writer = LogWriter(stream, max_queued_bytes=100 * LINE_BYTES)
        writer.is_serving = True
        for number in range(2 * LINES_PAST_A_PIPE):
            writer.write(numbered(number))
        assert not writer.flush(0.0)
        kept = kept_of(reading, 2 * LINES_PAST_A_PIPE)
    assert kept == sorted(set(kept))
    assert len(kept) < 2 * LINES_PAST_A_PIPE


def test_queue_exceeds_its_limit_by_one_line_at_most() -> None:
    with unread_pipe() as (reading, stream):
        writer = LogWriter(stream, max_queued_bytes=10 * LINE_BYTES)
        writer.is_serving = True
        for number in range(2 * LINES_PAST_A_PIPE):
            writer.write(numbered(number))
        in_pipe_bytes = 64 * 1024
        lines = lines_of(reading, until="log_lines_dropped")
    assert len("".join(lines)) < in_pipe_bytes + 11 * LINE_BYTES + LINE_BYTES


def test_lines_are_written_again_once_the_pipe_is_read() -> None:
    with unread_pipe() as (reading, stream):
        writer = LogWriter(stream, max_queued_bytes=10 * LINE_BYTES)
        writer.is_serving = True
        for number in range(LINES_PAST_A_PIPE):
            writer.write(numbered(number))
        kept_of(reading, LINES_PAST_A_PIPE)
        writer.write("later")
        assert lines_of(reading, until="later") == ["later"]


def test_failing_stream_loses_only_its_own_lines() -> None:
    with unread_pipe() as (reading, stream):
        writer = LogWriter(stream)
        closed = StringIO()
        closed.close()
        writer.switch_to(closed)
        writer.write("lost")
        writer.switch_to(stream)
        writer.write("kept")
        assert lines_of(reading, until="kept") == ["kept"]


def test_lone_surrogate_is_escaped() -> None:
    stream = StringIO()
    LogWriter(stream).write("a\ud800b")
    assert stream.getvalue() == "a\\ud800b\n"


def test_event_with_a_lone_surrogate_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = StringIO()
    monkeypatch.setattr(log, "_WRITER", LogWriter(stream))
    with caplog.at_level("INFO", logger.name):
        log_event("refused", query_id="\ud800")
    assert json.loads(stream.getvalue()).items() >= {"event": "refused", "query_id": "\ud800"}.items()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_answers_and_stops_while_its_log_is_not_read(workers: str) -> None:
    port, url_ids = free_port(), {"sf-external-function-query-batch-id": '"' * 512}
    with unread_pipe() as (reading, stream):
        command = [*CLI, "serve", "--port", str(port), "--workers", workers]
        environment = os.environ | {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "0"}
        with subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as service:
            try:
                wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
                for _ in range(LINES_PAST_A_PIPE):
                    headers = {"Content-Type": "application/json"} | url_ids
                    assert exchange(port, "POST", "/classify", b'{"data":[[0,""]]}', headers).status == 200
                service.terminate()
                service.wait(TIMEOUT_SECONDS)
            finally:
                service.kill()
        os.set_blocking(reading, False)
        assert b'"starting"' in os.read(reading, 65536)
    assert service.returncode == 0


def test_last_lines_are_written_before_the_service_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    environment = os.environ | {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "0"}
    command = [*CLI, "serve", "--port", str(free_port()), "--workers", "2"]
    with path.open("w") as stream, subprocess.Popen(command, stderr=stream, env=environment) as service:
        try:
            # One worker answers earlier than the other can receive a signal.
            wait_until(lambda: path.read_text().count("Application startup complete") == 2)
            service.terminate()
            service.wait(TIMEOUT_SECONDS)
        finally:
            service.kill()
    log = path.read_text()
    started = set(re.findall(r"Started server process \[(\d+)\]", log))
    assert set(re.findall(r"Finished server process \[(\d+)\]", log)) == started
    assert log.count('"event":"stopping"') == len(started) == 2
