import asyncio
from typing import Any

import pytest

from app.errors import UrlNotAllowed
from app.images.fetcher import NoFetcher, open_fetcher
from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings


def refusal(url: str, **settings: Any) -> tuple[type, str]:
    """Who refuses it, and in which words."""

    async def run() -> tuple[type, str]:
        async with open_fetcher(Settings(**settings)) as fetcher:
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
def test_where_nothing_may_be_fetched_the_refusal_is_the_client_s(url: str) -> None:
    nobody, said = refusal(url)
    client, says = refusal(url, allowed_url_hosts="elsewhere.example.com")
    assert (nobody, client) == (NoFetcher, ImageFetcher)
    assert said == says


def test_account_alone_is_reason_enough_to_have_a_client() -> None:
    assert refusal("https://a.example.com/b", snowflake_account="a-b")[0] is ImageFetcher
