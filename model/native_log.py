"""Drops the log lines that TensorFlow and LiteRT write to file descriptor 2, and passes on all other lines.

Their C++ code writes some of them before any log level applies. Run as a script, this module is the filter.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# absl's and TensorFlow's lines of severity info and warning, and errors that only say that there is no GPU.
_NOISE = re.compile(
    rb"INFO: Created TensorFlow Lite .* delegate"
    rb"|WARNING: All log messages before absl::InitializeLog"
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
    try:
        with _python_stderr_to(terminal), _filter_to(terminal):
            yield
    finally:
        os.close(terminal)


@contextmanager
def _python_stderr_to(descriptor: int) -> Iterator[None]:
    """Let sys.stderr write to the descriptor, unless something has replaced it already."""
    python_stderr = sys.stderr
    if python_stderr is not sys.__stderr__:
        yield
        return
    with os.fdopen(
        descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    ) as unfiltered:
        sys.stderr = unfiltered
        try:
            yield
        finally:
            sys.stderr = python_stderr


@contextmanager
def _filter_to(descriptor: int) -> Iterator[None]:
    read_end, write_end = os.pipe()
    try:
        process = _start_filter(read_end, descriptor)
        os.dup2(write_end, _STDERR)
    except OSError:  # too many processes, or no memory: the lines do no harm
        process = None
    finally:
        os.close(read_end)
        os.close(write_end)
    try:
        yield
    finally:
        os.dup2(descriptor, _STDERR)
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)


def _start_filter(source: int, target: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-I", "-S", __file__]
    # In a session of its own, Ctrl-C does not end it before this process.
    return subprocess.Popen(command, stdin=source, stdout=target, stderr=target, start_new_session=True)


def main() -> None:
    for line in sys.stdin.buffer:
        if not _NOISE.match(line):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
