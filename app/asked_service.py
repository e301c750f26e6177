"""Which service a command asks: the one that is named, one that runs already, or one of its own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.client import DEFAULT_URL, Client, ClientError
from app.own_service import own_service

# Somebody sits there, and can try again.
PATIENCE_SECONDS = 60.0


@contextmanager
def named_or_own_service(url: str | None, api_key: str | None) -> Iterator[Client]:
    """A client of the one that is named, or of one of our own, which ends with the command."""
    if url is not None:
        with Client(url, api_key=api_key) as client:
            yield client
        return
    with own_service() as (own_url, process), Client(own_url) as client:
        # Nobody else starts it again.
        watching = threading.Thread(target=_close_at_its_end, args=(process, client), daemon=True)
        watching.start()
        yield client


def _close_at_its_end(process: "subprocess.Popen[bytes]", client: Client) -> None:
    process.wait()
    client.close("the service that was started for this command has ended")


@contextmanager
def default_or_own_service(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Where none is named, the one that answers where `serve` listens by default, if it does."""
    with Client(url or DEFAULT_URL, api_key=api_key, patience_seconds=PATIENCE_SECONDS) as client:
        if _answers(client, is_named=url is not None):
            yield client
            return
    print(f"No service answers on {DEFAULT_URL}: one of our own does, for this command.", file=sys.stderr)
    with named_or_own_service(None, None) as client:
        yield client


def _answers(client: Client, *, is_named: bool) -> bool:
    """Raises ClientError where one was named that does not."""
    try:
        return client.model_version() is not None or is_named
    except ClientError:
        if is_named:
            raise
        return False
