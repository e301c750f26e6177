"""The service's log: JSON lines, or text on a terminal. A slow reader of the log delays no request.

The reader of standard error may stall: a full pipe, a stopped terminal, a slow disk. Lines then wait in a
bounded queue; lines beyond its limit are dropped and counted.
"""

import atexit
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TextIO

from pydantic_core import to_json

logger = logging.getLogger("ext_classify")

MAX_QUEUED_BYTES = 4 * 1024 * 1024
# The limit for startup and shutdown to wait for a log that no process reads.
FLUSH_SECONDS = 1.0
_MAX_WRITE_BYTES = 64 * 1024
# To wake the thread for each line costs more than the line.
_COLLECT_SECONDS = 0.02
# Another process may have made the shared descriptor non-blocking.
_RETRY_SECONDS = 0.05


class LineFormatter(logging.Formatter):
    """A JSON object for each event and each record; on a terminal, the time, the level and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._is_for_people = sys.stderr is not None and sys.stderr.isatty()

    def format(self, record: logging.LogRecord) -> str:
        if self._is_for_people:
            return super().format(record)
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _format_line(record.created, record.levelname, fields)

    def format_event(self, level: int, fields: dict[str, object]) -> str:
        """Without a record, which takes as long as the line."""
        if self._is_for_people:
            return super().format(
                logger.makeRecord(logger.name, level, "", 0, _format_json(fields), (), None)
            )
        return _format_line(time.time(), logging.getLevelName(level), fields)


_FORMATTER = LineFormatter()


class LogWriter:
    """Writes lines in order from a background thread. Thread-safe, and safe in signal handlers."""

    def __init__(self, stream: TextIO, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.is_serving = False
        """If true, `write` returns at once; otherwise it waits briefly, as the process may end abruptly."""
        self._stream = stream
        self._max_queued_bytes = max_queued_bytes
        lock = threading.RLock()
        self._line_queued = threading.Condition(lock)
        self._chunk_written = threading.Condition(lock)
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0
        self._dropped_lines = 0
        self._is_stalled = False
        self._thread: threading.Thread | None = None

    def switch_to(self, stream: TextIO) -> None:
        self.flush(FLUSH_SECONDS)
        self._stream = stream

    def write(self, line: str) -> None:
        """Queue a line, or drop it while the queue is full."""
        with self._line_queued:
            if self._has_room():
                self._report_dropped()
                self._append(line)
            else:
                self._dropped_lines += 1
            must_wait = not self.is_serving and not self._is_stalled
        if must_wait:
            self.flush(FLUSH_SECONDS)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until every queued line is written. Returns False after a timeout."""
        with self._chunk_written:
            is_written = self._chunk_written.wait_for(lambda: not self._queued_bytes, timeout_seconds)
            self._is_stalled = not is_written
            return is_written

    def _has_room(self) -> bool:
        # Once lines are dropped, half of the queue must drain first: one count then covers many lines.
        limit = self._max_queued_bytes // 2 if self._dropped_lines else self._max_queued_bytes
        return self._queued_bytes < limit

    def _report_dropped(self) -> None:
        if self._dropped_lines:
            lines, self._dropped_lines = self._dropped_lines, 0
            self._append(
                _FORMATTER.format_event(logging.WARNING, {"event": "log_lines_dropped", "lines": lines})
            )

    def _append(self, line: str) -> None:
        encoded = (line + "\n").encode("utf-8", "backslashreplace")
        self._lines.append(encoded)
        self._queued_bytes += len(encoded)
        if len(self._lines) == 1:
            self._line_queued.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
            self._thread.start()
            atexit.register(self.flush, FLUSH_SECONDS)

    def _run(self) -> None:
        while True:
            chunk = self._next_chunk()
            with suppress(OSError, ValueError):  # the reader has gone, the disk is full, the stream is closed
                _write_all(self._stream, chunk)
            with self._chunk_written:
                self._queued_bytes -= len(chunk)
                self._is_stalled = False
                self._chunk_written.notify_all()

    def _next_chunk(self) -> bytes:
        with self._line_queued:
            if not self._lines:
                self._report_dropped()
            self._line_queued.wait_for(lambda: self._lines)
        if self.is_serving:
            time.sleep(_COLLECT_SECONDS)
        with self._line_queued:
            chunk = bytearray(self._lines.popleft())
            while self._lines and len(chunk) + len(self._lines[0]) <= _MAX_WRITE_BYTES:
                chunk += self._lines.popleft()
            return bytes(chunk)


class BackgroundHandler(logging.Handler):
    """Formats records in the logging thread, and queues the lines at the process's only writer."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _WRITER.write(self.format(record))
        except Exception:  # noqa: BLE001 - logging must not raise
            self.handleError(record)


def configure(level: str) -> None:
    """Log to the current standard error from `level` on. Safe to call for each app of a process."""
    _WRITER.switch_to(sys.stderr)
    handler = BackgroundHandler()
    handler.setFormatter(_FORMATTER)
    for earlier in [one for one in logger.handlers if type(one) is BackgroundHandler]:
        logger.removeHandler(earlier)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level.upper())
    logging.lastResort = BackgroundHandler(logging.WARNING)  # asyncio and aiohttp log from the event loop
    logging.lastResort.setFormatter(_FORMATTER)


@contextmanager
def serving() -> Iterator[None]:
    """A context in which logging does not wait for lines to be written."""
    _WRITER.is_serving = True
    try:
        yield
    finally:
        _WRITER.is_serving = False
        _WRITER.flush(FLUSH_SECONDS)


def log_event(event: str, level: int = logging.INFO, /, **fields: object) -> None:
    if logger.isEnabledFor(level):
        _WRITER.write(_FORMATTER.format_event(level, {"event": event, **fields}))


def _format_line(at: float, level: str, fields: dict[str, object]) -> str:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return f'{{"time":"{moment}","level":"{level}",{_format_json(fields)[1:]}'


def _format_json(fields: dict[str, object]) -> str:
    try:
        return to_json(fields).decode()
    except ValueError:  # half of a surrogate pair, which UTF-8 cannot encode
        return json.dumps(fields, default=repr)


def _write_all(stream: TextIO, content: bytes) -> None:
    """Bypass the stream's buffer: a thread that holds its lock would abort the interpreter's shutdown."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file, such as pytest's capture
        stream.write(content.decode("utf-8"))
        stream.flush()
        return
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except BlockingIOError:
            time.sleep(_RETRY_SECONDS)


_WRITER = LogWriter(sys.stderr)
