"""Choose the service for a command: the one in --url, one that is already running, or a new one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.client import DEFAULT_URL, Client, ClientError
from app.own_service import own_service

# Shorter than the client's default, because an interactive user can retry.
PATIENCE_SECONDS = 60.0


@contextmanager
def named_or_own_service(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Yield a client of the service at `url`, or of a new service that ends with the command."""
    if url is not None:
        with Client(url, api_key=api_key) as client:
            yield client
        return
    with own_service() as (own_url, process), Client(own_url) as client:
        # If this service dies, no supervisor restarts it, so the client must not wait for it.
        watching = threading.Thread(target=_close_when_it_exits, args=(process, client), daemon=True)
        watching.start()
        yield client


def _close_when_it_exits(process: "subprocess.Popen[bytes]", client: Client) -> None:
    process.wait()
    client.close("the service that this command started has exited")


@contextmanager
def default_or_own_service(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Yield a client of the service at `url`, else of one at the default URL, else of a new one."""
    with Client(url or DEFAULT_URL, api_key=api_key, patience_seconds=PATIENCE_SECONDS) as client:
        if _answers(client, is_named=url is not None):
            yield client
            return
    print(f"No service answers on {DEFAULT_URL}: starting one for this command.", file=sys.stderr)
    with named_or_own_service(None, None) as client:
        yield client


def _answers(client: Client, *, is_named: bool) -> bool:
    """Whether the service answers. Raises ClientError if it was named and does not."""
    try:
        return client.model_version() is not None or is_named
    except ClientError:
        if is_named:
            raise
        return False
