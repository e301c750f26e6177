"""Our files and functions that one request passes: python -m tests.benchmarks.touched_code [--list].

Runs `ext-classify serve` in this process and profiles its main thread with `sys.setprofile` while one request
is answered: a Snowflake batch of three rows, then one raw image. Classifier processes are not counted.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from types import CodeType, FrameType

from app.cli.main import main as run_command
from app.client import is_ready
from model.defaults import SAMPLES
from tests.benchmarks.request_bodies import Request, Requests, make_bodies
from tests.running import free_port

ROOT = Path(__file__).parent.parent.parent
TOGGLE = signal.SIGUSR2
_PACKAGES = tuple(f"{ROOT / name}{os.sep}" for name in ("app", "model"))
_MEASURED = (("one batch of 3 rows", "snowflake", 3), ("one raw image", "image", 1))


class Profile:
    """The code objects of ours that run between two signals."""

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()
        self._is_on = False

    def toggle(self, _number: int, _frame: FrameType | None) -> None:
        self._is_on = not self._is_on
        sys.setprofile(self._note if self._is_on else None)

    def _note(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_PACKAGES):
            self.codes.add(frame.f_code)

    def files(self) -> list[str]:
        return sorted({str(Path(code.co_filename).relative_to(ROOT)) for code in self.codes})


def measure(port: int, profile: Profile, *, lists_functions: bool) -> None:
    """Send each kind of request twice, the second time profiled, then stop the service."""
    url = f"http://127.0.0.1:{port}"
    while not is_ready(url):
        time.sleep(0.1)
    images = [path.read_bytes() for path in sorted(SAMPLES.glob("*.png"))]
    for label, form, rows in _MEASURED:
        requests = iter(Requests(form, "/classify", make_bodies(form, rows, images)))
        for is_profiled in (False, True):
            _send(port, next(requests), is_profiled=is_profiled)
        files = profile.files()
        print(f"{label}: {len(files)} files, {len(profile.codes)} functions")
        if lists_functions:
            print(*(f"  {name}" for name in _names(profile.codes)), sep="\n")
        profile.codes.clear()
    os.kill(os.getpid(), signal.SIGTERM)


def _send(port: int, request: Request, *, is_profiled: bool) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if is_profiled:
            _toggle()
        connection.sendall(request.head + request.body)
        answer = HTTPResponse(connection)
        answer.begin()
        answer.read()
        if answer.status != HTTPStatus.OK:
            raise SystemExit(f"The request must be answered 200. Received: {answer.status}")
        if is_profiled:
            _toggle()


def _toggle() -> None:
    os.kill(os.getpid(), TOGGLE)
    time.sleep(0.1)  # the main thread handles the signal


def _names(codes: Iterable[CodeType]) -> list[str]:
    return sorted(f"{Path(code.co_filename).relative_to(ROOT)}: {code.co_qualname}" for code in codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    arguments = parser.parse_args()
    profile, port = Profile(), free_port()
    signal.signal(TOGGLE, profile.toggle)
    client = threading.Thread(
        target=measure, args=(port, profile), kwargs={"lists_functions": arguments.list}, daemon=True
    )
    client.start()
    sys.exit(run_command(["serve", "--port", str(port)]))


if __name__ == "__main__":
    main()
