"""Drops the log lines that TensorFlow and LiteRT write to file descriptor 2, and passes on all other lines.

Their C++ code writes some of them before any log level applies.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

# absl's and TensorFlow's lines of severity info and warning, and errors that only say that there is no GPU.
_NOISE = re.compile(
    rb"INFO: Created TensorFlow Lite .* delegate"
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|fully_quantize: "
    rb"|[IW]\d{4} \d\d:\d\d:\d+\.\d+ "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] "
    rb"|(E\d{4} |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: E )"
    rb".*([Uu]nable to register cu\w+ factory|[Ff]ailed call to cuInit)"
)
_STDERR = 2
# A process that inherited the pipe may keep it open.
_END_SECONDS = 1.0


@contextmanager
def without_native_log() -> Iterator[None]:
    """Filter what C++ code writes to stderr; a process does so, so that the last line before a crash arrives.

    Python's own stderr is not filtered.
    """
    sys.stderr.flush()
    terminal = os.dup(_STDERR)
    with os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as unfiltered:
        is_replaced = sys.stderr is not sys.__stderr__  # by something that does not write to the terminal
        with nullcontext() if is_replaced else redirect_stderr(unfiltered), _filter_to(terminal):
            yield


@contextmanager
def _filter_to(descriptor: int) -> Iterator[None]:
    read_end, write_end = os.pipe()
    try:
        filtering = _fork_filter(read_end, write_end, descriptor)
        os.dup2(write_end, _STDERR)
    except OSError:  # too many processes, or no memory: the lines do no harm
        filtering = None
    finally:
        os.close(read_end)
        os.close(write_end)
    try:
        yield
    finally:
        os.dup2(descriptor, _STDERR)
        if filtering is not None:
            _wait_for(filtering)


def _fork_filter(read_end: int, write_end: int, target: int) -> int:
    """The id of a process that copies lines from the pipe to `target`."""
    if process := os.fork():
        return process
    try:
        os.setsid()  # Ctrl-C must not end it before this process
        os.close(write_end)
        with os.fdopen(read_end, "rb", closefd=False) as lines:
            for line in lines:
                if not _NOISE.match(line):
                    os.write(target, line)
    finally:
        os._exit(0)


def _wait_for(process: int) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
