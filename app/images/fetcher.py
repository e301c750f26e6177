"""Who fetches images: an HTTP client, or nobody where nothing may be fetched."""

import importlib
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from app.images.allowlist import Allowlist
from app.images.source import Url
from app.settings import Settings
from app.snowflake.credentials import is_configured


class Fetcher(Protocol):
    async def fetch(self, source: Url, allowlist: Allowlist | None = None) -> bytes:
        """The bytes behind a URL that is on `allowlist`, or else on the settings'. Raises InputError."""
        ...


def open_fetcher(settings: Settings) -> AbstractAsyncContextManager[Fetcher]:
    """The HTTP client takes a fifth of the time to ready, and is left out where it could reach nothing."""
    if not settings.allowed_url_hosts and not is_configured(settings):
        return nullcontext(NoFetcher(settings))
    client: AbstractAsyncContextManager[Fetcher] = importlib.import_module("app.images.http").ImageFetcher(
        settings
    )
    return client


class NoFetcher:
    """Refuses every URL, and says why, as the client would."""

    def __init__(self, settings: Settings) -> None:
        self._allowlist = Allowlist((), settings.allow_private_addresses)

    async def fetch(self, source: Url, allowlist: Allowlist | None = None) -> bytes:  # noqa: ARG002
        self._allowlist.check_url(source.text)
        raise AssertionError("An empty allowlist lets no URL pass.")
