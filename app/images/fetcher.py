"""Selects the image fetcher: the HTTP client, or NoFetcher if the settings allow no URL."""

from typing import TYPE_CHECKING, Self, TypeAlias

from app.images.allowlist import Allowlist
from app.images.source import Url
from app.settings import Settings

if TYPE_CHECKING:
    from app.images.http import ImageFetcher


Fetcher: TypeAlias = "ImageFetcher | NoFetcher"


def create_fetcher(settings: Settings) -> Fetcher:
    """The HTTP client, or NoFetcher if no URL is allowed; an async context manager."""
    if not settings.allowed_url_hosts and not settings.reads_stages:
        return NoFetcher(settings)
    from app.images.http import ImageFetcher  # noqa: PLC0415 - a fifth of the time to ready

    return ImageFetcher(settings)


class NoFetcher:
    """Rejects every URL with the same error as the client."""

    def __init__(self, settings: Settings) -> None:
        self._allowlist = Allowlist((), settings.allow_private_addresses)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def fetch(self, source: Url, allowlist: Allowlist | None = None) -> bytes:  # noqa: ARG002
        self._allowlist.check_url(source.text)
        raise AssertionError("An empty allowlist allows no URL.")
