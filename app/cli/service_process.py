"""The service that a command uses: one that runs already, or one in a child process of the command."""

import argparse
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.cli.command_line import refuse_taken_port
from app.cli.interrupts import delay_interrupts
from app.client import DEFAULT_URL, PATIENCE_SECONDS, Client, ClientError, is_ready
from app.errors import CommandError, UsageError
from model.defaults import DEFAULT_MODEL_PATH, find_samples

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 180.0
# Shorter than the client's default, because an interactive user can retry.
INTERACTIVE_PATIENCE_SECONDS = 60.0


def find_service(url: str | None, api_key: str | None, model: Path | None) -> str | None:
    """`url`, else the default URL if a service answers there; None if the command must start a service.

    It must for a `model`, because a service that runs may have another network. Raises ClientError if no
    service answers at `url`.
    """
    if model is not None:
        return url
    with Client(url or DEFAULT_URL, api_key=api_key) as client:
        try:
            if client.model_version() is not None or url is not None:
                return url or DEFAULT_URL
        except ClientError:
            if url is not None:
                raise
    print(f"No service answers on {DEFAULT_URL}: starting one for this command.", file=sys.stderr)
    return None


@contextmanager
def named_or_own_service(
    url: str | None,
    api_key: str | None,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    model: Path | None = None,
) -> Iterator[Client]:
    """Yield a client of the service at `url`, or of a new service that ends with the command.

    Raises UsageError for both a `url` and a `model`.
    """
    refuse_model_of_another_service(model, url)
    if url is not None:
        with Client(url, api_key=api_key, patience_seconds=patience_seconds) as client:
            yield client
        return
    with (
        own_service(model=model) as (own_url, process),
        Client(own_url, patience_seconds=patience_seconds) as client,
    ):
        # If this service dies, no supervisor restarts it, so the client must not wait for it.
        threading.Thread(target=_close_when_it_exits, args=(process, client), daemon=True).start()
        yield client


@contextmanager
def own_service(
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    model: Path | None = None,
    python: Path = Path(sys.executable),
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Yield the URL and the process of a ready service, by default on a free port. Raises ClientError."""
    reach_loopback_directly()
    port = _free_port() if port is None else _require_free(port)
    command = [str(python), "-m", "app.cli", "serve", "--host", HOST, "--port", str(port)]
    command += [] if model is None else ["--model", str(model)]
    variables = _child_environment(environment or {})
    url = f"http://{HOST}:{port}"
    with ExitStack() as stack:
        with delay_interrupts():
            # In a session of its own: Ctrl-C is for the command, which may need the service afterwards.
            service = subprocess.Popen(command, env=variables, start_new_session=True)
            stack.callback(service.wait)
            stack.callback(service.terminate)
        _wait_until_ready(service, url)
        yield url, service


def add_model(command: argparse.ArgumentParser) -> None:
    network = "network of the service that the command starts (default: as for serve)"
    command.add_argument("--model", type=Path, metavar="H5", help=network)


def refuse_model_of_another_service(model: Path | None, url: str | None) -> None:
    """Raises UsageError."""
    if model is not None and url is not None:
        raise UsageError(
            "`--model` is the network of a service that this command starts, so it excludes `--url`. "
            f"Received: --url {url}"
        )


def default_images(model: Path | None, flag: str) -> Path:
    """Sample images of the network that the command serves. Raises CommandError if it has none."""
    # The Settings of this process may be invalid where those of the service, which gets some others, are not.
    served = model or Path(os.environ.get("EXT_CLASSIFY_MODEL_PATH", DEFAULT_MODEL_PATH))
    if (folder := find_samples(served)) is None:
        raise CommandError(f"{flag} must name a folder of images, because {served} has no samples.")
    return folder


def describe_model(client: Client) -> str:
    """Name and version of the network that serves, or a text that says that they are unknown."""
    with suppress(ClientError):
        if (model := client.model()) is not None:
            return f"{model['name']} {model['version']}"
    return "an unknown network"


def reach_loopback_directly() -> None:
    """Exclude loopback from HTTP proxies, in this process and its children."""
    for name in ("no_proxy", "NO_PROXY"):
        known = os.environ.get(name, "")
        if HOST not in known:
            os.environ[name] = ",".join(filter(None, [known, HOST, "localhost"]))


def _close_when_it_exits(process: "subprocess.Popen[bytes]", client: Client) -> None:
    process.wait()
    client.close("the service that this command started has exited")


def _free_port() -> int:
    """Not one that the system gives to outgoing connections, which may take it before the service does."""
    for port in random.sample(range(30_000, 32_768), 100):
        with suppress(OSError), socket.create_server((HOST, port)):
            return port
    raise ClientError(f"A service must have a free port on {HOST}. Received: 100 that are in use.")


def _require_free(port: int) -> int:
    try:
        refuse_taken_port(HOST, port)
    except CommandError as error:
        raise ClientError(f"{error}, or: make run PORT={port + 1}") from None
    return port


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with defaults for a service of a command.

    If `environment` is given, it replaces all Snowflake settings, so that two accounts never mix.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not (environment and name.upper().startswith("EXT_CLASSIFY_SNOWFLAKE_"))
    }
    # Info lines of the service would mix with the command's output, and no load balancer sends it requests.
    defaults = {"EXT_CLASSIFY_LOG_LEVEL": "warning", "EXT_CLASSIFY_STOP_DELAY_SECONDS": "0"}
    return {**defaults, **inherited, **environment}


def _wait_until_ready(service: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not is_ready(url):
        if service.poll() is not None:
            raise ClientError("The service did not start: see its messages above.")
        if time.monotonic() > deadline:
            raise ClientError(f"The service was not ready after {START_TIMEOUT_SECONDS:.0f} seconds.")
        time.sleep(0.05)
