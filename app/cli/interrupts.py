"""Ctrl-C: a command exits with 130, without a traceback, at any moment.

Imports nothing else of this package, because it is in effect while that is imported.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
"""The exit code that shells use."""


def exit_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler
    """For moments with nothing to clean up: an import that is interrupted by an exception may swallow it."""
    os.write(2, b"ext-classify: interrupted\n")
    os._exit(EXIT_CODE)


@contextmanager
def on_interrupt(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handle` handle SIGINT, unless this process ignores it, as background jobs of scripts do."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def delay_interrupts() -> Iterator[None]:
    """Deliver SIGINT at the end: an exception inside subprocess.Popen leaves a process running."""
    received: list[int] = []
    with on_interrupt(lambda number, _: received.append(number)):
        yield
    for number in received[:1]:
        signal.raise_signal(number)


_AGAIN_SECONDS = 0.05


@contextmanager
def raise_on_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, again if it falls into a finalizer, which cannot raise."""
    report, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        with on_interrupt(signal.default_int_handler):
            yield
    finally:
        sys.unraisablehook = report


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        main = threading.main_thread().ident
        # After this hook, which cannot raise either.
        timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)
