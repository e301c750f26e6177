"""What a classifier process may take. A thread cannot be stopped amid a decoder; a process can."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# So many times as long as its CPU time may a call last, on a machine that has other work, or hangs.
MOST_SECONDS_A_CPU_SECOND = 6
_MOST_WILLING = "1000"


def bound_memory(max_bytes: int) -> None:
    """Let no more than so many bytes be allocated from now on; what asks for more gets a MemoryError.

    Should the machine run out of memory all the same, this process is the first to go (proc(5),
    oom_score_adj), and none writes its memory to disk. Only Linux says how much a process has already.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MOST_WILLING, encoding="ascii")
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def keep_libraries_from_stderr() -> None:
    """Point file descriptor 2 to nowhere, and Python's own messages to what it was.

    Decoders written in C report what a caller's file has in it there, line after line.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@contextmanager
def bounded_time(max_cpu_seconds: float) -> Iterator[None]:
    """End this process when what is done inside takes longer: no signal handler runs amid a decoder."""
    signal.setitimer(signal.ITIMER_PROF, max_cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS_A_CPU_SECOND * max_cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
