import atexit
import codecs
import io
import os
import signal
import sys

from app.cli.interrupts import exit_at_once


def main() -> int:
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names in a locale without their letters, escaped so that JSON stays valid.
        codecs.register_error("escape", _escape)
        sys.stdout.reconfigure(errors="escape")
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, exit_at_once)
        # Registered first, it runs last: the command has finished, and Python would restore the default.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from app.cli.main import main as run  # noqa: PLC0415 - takes a second, which Ctrl-C may interrupt

    return run()


def _open_closed_streams() -> None:
    """Open the null device for closed standard streams, which are None in Python and free for a socket."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import json  # noqa: PLC0415 - not before Ctrl-C is handled

    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


if __name__ == "__main__":
    sys.exit(main())
