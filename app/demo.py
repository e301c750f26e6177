"""The first minute: serve, classify some images as Snowflake would, keep serving."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from app.client import ClientError, classify_files, find_images, is_ready, print_outcomes

START_TIMEOUT_SECONDS = 60.0

_INTRODUCTION = """
POST {url}/classify answered a batch in the form of Snowflake's external functions.
{images} images from {folder}:
"""

_NEXT = """
Serving on {url} until Ctrl-C. In another terminal, try:

  curl -s -H 'Content-Type: image/png' --data-binary @{example} {url}/classify
  curl -s -F file=@{example} {url}/classify
  .venv/bin/ext-classify classify --url {url} YOUR_FOLDER

and in a browser {url}/docs
"""


def demonstrate(host: str, port: int, folder: Path) -> None:
    """Return at Ctrl-C. Raises ClientError when the port is taken or the service does not start."""
    images = [_shortest(image) for image in find_images([folder])]
    _refuse_taken_port(host, port)
    url = f"http://{host}:{port}"
    command = [sys.executable, "-m", "app.cli", "serve", "--host", host, "--port", str(port)]
    # The service's own lines would run through the table.
    environment = {"EXT_CLASSIFY_LOG_LEVEL": "warning", **os.environ}
    with subprocess.Popen(command, env=environment) as service:
        try:
            _wait_until_ready(service, url)
            print(_INTRODUCTION.format(url=url, images=len(images), folder=_shortest(folder)))
            print_outcomes(images, classify_files(images, url), as_json=False)
            print(_NEXT.format(url=url, example=images[0]), flush=True)
            service.wait()
        except KeyboardInterrupt:
            print("Stopped.")
        finally:
            service.terminate()


def _shortest(path: Path) -> Path:
    """As it is named from here, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ClientError(
            f"Port {port} cannot be used ({os.strerror(error.errno or 0)}); try: make run PORT=8001"
        ) from None


def _wait_until_ready(service: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_ready(url):
        if service.poll() is not None:
            raise ClientError("The service did not start; it says why above.")
        if time.monotonic() > deadline:
            raise ClientError(f"The service was not ready after {START_TIMEOUT_SECONDS:.0f} seconds.")
        time.sleep(0.05)
