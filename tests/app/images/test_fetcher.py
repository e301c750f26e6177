import asyncio
from typing import Any

import pytest

from app.errors import UrlNotAllowed
from app.images.allowlist import NoFetcher, create_fetcher
from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings


def refusal(url: str, **settings: Any) -> tuple[type, str]:
    """The type of the fetcher that rejects `url`, and its error message."""

    async def run() -> tuple[type, str]:
        async with create_fetcher(Settings(**settings)) as fetcher:
            with pytest.raises(UrlNotAllowed) as refused:
                await fetcher.fetch(Url(url))
            return type(fetcher), refused.value.message

    return asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/a.png",
        "http://images.example.com/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://user@images.example.com/a",
        "file:///etc/passwd",
        "https://",
        "https://a\\b/c",
    ],
)
def test_no_fetcher_rejects_urls_with_the_client_s_error(url: str) -> None:
    without, expected = refusal(url)
    client, message = refusal(url, allowed_url_hosts="elsewhere.example.com")
    assert (without, client) == (NoFetcher, ImageFetcher)
    assert message == expected


def test_snowflake_account_alone_enables_the_client() -> None:
    assert refusal("https://a.example.com/b", snowflake_account="a-b")[0] is ImageFetcher
