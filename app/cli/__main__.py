import atexit
import signal
import sys

from app.cli.interrupts import exit_at_once


def main() -> int:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, exit_at_once)
        # Registered first, it runs last: the command has finished, and Python would restore the default.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from app.cli.main import main as run  # noqa: PLC0415 - takes a second, which Ctrl-C may interrupt

    return run()


if __name__ == "__main__":
    sys.exit(main())
