"""Fetching through a proxy: it connects to the checked address, and TLS checks the host's certificate."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Self

import pytest
from pydantic import ValidationError

from app.cli.command_line import describe_settings_faults
from app.errors import FetchFailed, UrlNotAllowed
from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings
from tests.app.images.https_server import FixedResolver, HttpsServer, answer

HOST = "images.example.com"
PUBLIC = "93.184.215.14"


class ConnectProxy:
    """Connects every CONNECT to `port` on loopback, whatever its target, or answers `refusal`."""

    def __init__(self, port: int, refusal: str = "") -> None:
        self._target_port = port
        self._refusal = refusal
        self.heads: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if self._refusal:
            writer.write(f"HTTP/1.1 {self._refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()
            return
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, other_writer), _pump(other_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


Work = Callable[[ImageFetcher, HttpsServer, ConnectProxy], Awaitable[None]]


def run(
    work: Work,
    *addresses: str,
    user: str = "",
    refusal: str = "",
    private: bool = False,
    redirect_to: str = "",
) -> None:
    """Call `work` with a fetcher that resolves every name to `addresses` and has a proxy."""

    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        moved = redirect_to and head.startswith("GET /moved ")
        reply = answer(b"", f"Location: {redirect_to}", status="302 Found") if moved else answer(b"image")
        await reply(head, writer)

    async def main() -> None:
        async with (
            HttpsServer(respond, HOST, keep_alive=True) as server,
            ConnectProxy(server.port, refusal) as proxy,
        ):
            settings = Settings(
                allowed_url_hosts=f"{HOST},{HOST}:{server.port},other.example.com",  # type: ignore[arg-type]
                allow_private_addresses=private,
                fetch_proxy=f"http://{user}127.0.0.1:{proxy.port}",  # type: ignore[arg-type]
            )
            resolver = FixedResolver(*addresses)
            async with ImageFetcher(
                settings, resolver=resolver, ssl_context=server.client_context
            ) as fetcher:
                await work(fetcher, server, proxy)

    asyncio.run(main())


def test_proxy_is_asked_for_the_checked_address_and_the_host_for_the_exact_request() -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}/a%20b?sig=x%2By%3D")) == b"image"
        [connect], [get] = proxy.heads, server.heads
        assert connect.startswith(f"CONNECT {PUBLIC}:443 HTTP/1.1\r\n")
        assert get.startswith("GET /a%20b?sig=x%2By%3D HTTP/1.1\r\n")
        assert f"Host: {HOST}\r\n" in get

    run(work, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC)


def test_ipv6_is_used_where_there_is_no_ipv4() -> None:
    async def work(fetcher: ImageFetcher, _: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}/a")) == b"image"
        assert proxy.heads[0].startswith("CONNECT [2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443 ")

    run(work, "2606:2800:21f:cb07:6820:80da:af6b:8b2c")


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("169.254.169.254",), (PUBLIC, "10.0.0.1"), ("::1",)])
def test_proxy_is_not_asked_for_addresses_that_are_not_allowed(addresses: tuple[str, ...]) -> None:
    async def work(fetcher: ImageFetcher, _: HttpsServer, proxy: ConnectProxy) -> None:
        with pytest.raises(UrlNotAllowed):
            await fetcher.fetch(Url(f"https://{HOST}/a"))
        assert proxy.heads == []

    run(work, *addresses)


def test_allowed_private_addresses_are_connected_to_directly() -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}:{server.port}/a")) == b"image"
        assert proxy.heads == []

    run(work, "127.0.0.1", private=True)


@pytest.mark.parametrize("target", ["https://elsewhere.example.com/a", "https://127.0.0.1/a", "http://x/"])
def test_redirects_are_checked_as_without_a_proxy(target: str) -> None:
    async def work(fetcher: ImageFetcher, _: HttpsServer, proxy: ConnectProxy) -> None:
        with pytest.raises(UrlNotAllowed):
            await fetcher.fetch(Url(f"https://{HOST}/moved"))
        assert len(proxy.heads) == 1

    run(work, PUBLIC, redirect_to=target)


def test_relative_redirect_stays_on_the_host() -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}/moved")) == b"image"
        assert [head.split()[1] for head in server.heads] == ["/moved", "/b"]
        assert all(f"Host: {HOST}\r\n" in head for head in server.heads)
        assert len(proxy.heads) == 1  # the connection is kept

    run(work, PUBLIC, redirect_to="/b")


def test_certificate_of_another_host_at_the_same_address_is_rejected() -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}/a")) == b"image"
        with pytest.raises(FetchFailed, match="Certificate"):
            await fetcher.fetch(Url("https://other.example.com/a"))
        assert len(server.heads) == 1
        assert len(proxy.heads) == 2

    run(work, PUBLIC)


def test_proxys_password_is_sent_to_the_proxy_only() -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, proxy: ConnectProxy) -> None:
        assert await fetcher.fetch(Url(f"https://{HOST}/a")) == b"image"
        expected = base64.b64encode(b"mill:word").decode()
        assert f"Proxy-Authorization: Basic {expected}\r\n" in proxy.heads[0]
        assert "authorization" not in server.heads[0].lower()

    run(work, PUBLIC, user="mill:word@")


@pytest.mark.parametrize(
    ("refusal", "retryable"), [("403 Forbidden", False), ("407 Authenticate", False), ("503 Busy", True)]
)
def test_refusal_of_the_proxy_names_its_status(refusal: str, retryable: bool) -> None:
    async def work(fetcher: ImageFetcher, server: HttpsServer, _: ConnectProxy) -> None:
        with pytest.raises(FetchFailed, match=f"proxy.*{refusal[:3]}") as raised:
            await fetcher.fetch(Url(f"https://{HOST}/a"))
        assert raised.value.retryable is retryable
        assert server.heads == []

    run(work, PUBLIC, refusal=refusal)


@pytest.mark.parametrize(
    "url",
    [
        "socks5://mill:pass-of-mill@proxy:1080",
        "proxy:3128",
        "http://mill:pass-of-mill@proxy:3128/path",
        "http://",
        "",
    ],
)
def test_invalid_proxy_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match="A proxy must be") as refused:
        Settings(fetch_proxy=url)  # type: ignore[arg-type]
    assert "pass-of-mill" not in describe_settings_faults(refused.value)
