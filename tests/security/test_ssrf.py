"""Nothing that a row, a store or a name server says makes the service connect to what is not allowed.

The fetcher is watched from both ends. Where the allowlist is tried, private addresses are allowed and every
name resolves to loopback, where listeners wait: what slips through is counted. Where addresses are tried, the
name is on the allowlist.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from app.errors import FetchFailed, FetchTimeout, UrlNotAllowed
from app.images.allowlist import SNOWFLAKE_STORAGE, Allowlist
from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings
from tests.app.images.https_server import FixedResolver, HttpsServer, Respond, answer
from tests.security.connections import Listener, has_ipv6_loopback, watched_connections

HOST = "images.example.com"
PUBLIC = "93.184.216.34"
CONTEXT = ssl.create_default_context()


def settings(hosts: str, **given: Any) -> Settings:
    return Settings(**({"allowed_url_hosts": hosts, "fetch_timeout_seconds": 60.0} | given))


@asynccontextmanager
async def open_fetcher(
    hosts: str, resolver: FixedResolver | None, context: ssl.SSLContext = CONTEXT, **given: Any
) -> AsyncIterator[ImageFetcher]:
    async with ImageFetcher(settings(hosts, **given), resolver=resolver, ssl_context=context) as fetcher:
        yield fetcher


# Controls: connections are recorded.


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_allowed_connection_is_seen_from_both_ends(address: str) -> None:
    if address == "::1" and not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback")

    async def run() -> None:
        async with Listener(address) as listener:
            hosts = f"{HOST}:{listener.port}"
            resolver = FixedResolver(address)
            with watched_connections() as attempts:
                async with open_fetcher(hosts, resolver, allow_private_addresses=True) as fetcher:
                    with pytest.raises(FetchFailed):  # the listener hangs up
                        await fetcher.fetch(Url(f"https://{HOST}:{listener.port}/a"))
        assert attempts == [f"{address}:{listener.port}"]
        assert listener.accepted == 1
        assert resolver.asked == [HOST]

    asyncio.run(run())


def test_allowed_public_address_is_tried() -> None:
    async def run() -> None:
        with watched_connections() as attempts:
            async with open_fetcher(HOST, FixedResolver(PUBLIC)) as fetcher:
                with pytest.raises(FetchFailed):
                    await fetcher.fetch(Url(f"https://{HOST}/a"))
        assert attempts == [f"{PUBLIC}:443"]

    asyncio.run(run())


# The allowlist: what a row may write.

HOSTS = [
    # IPv4, in the spellings that inet_aton takes
    *(
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "017700000001",
    ),
    *("0x7f.0.0.1", "0177.0.0.1", "0177.0x0.0.1", "00000000177.1", "127.000.000.001", "127.0.0.0x1"),
    *("0", "0.0.0.0", "0x0", "00", "4294967295", "4425297793", "127.0.0.257", "256.0.0.1"),  # noqa: S104
    # IPv6, and IPv4 within it
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::1]]", "[[::1]]", "::1", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::7f00:1]"),
    *("[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]"),
    *("[fe80::1%25lo]", "[fe80::1%lo]", "[::1%25lo]", "[::1%1]", "[fc00::1]", "[fd00::1]", "[fec0::1]"),
    *("[ff02::1]", "[v1.127.0.0.1]", f"[v1.{HOST}]", f"[{HOST}]", f"[::1]{HOST}", f"[::1].{HOST}"),
    # metadata services of clouds
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "0251.0376.0251.0376"),
    *("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[fe80::a9fe:a9fe]"),
    *("metadata.google.internal", "metadata.google.internal.", "metadata", "instance-data.ec2.internal"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192", "169.254.170.2", "169.254.169.253"),
    # names of the local machine and network
    *("localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "ip6-localhost"),
    *(
        "127.0.0.1.nip.io",
        "7f000001.nip.io",
        "localtest.me",
        "kubernetes.default.svc",
        "host.docker.internal",
    ),
    # what looks like an allowed host
    *(f"{HOST}.", f"{HOST}..", f".{HOST}", f"evil{HOST}", f"evil-{HOST}", f"evil.{HOST}", f"{HOST}.evil.net"),
    *(f"{HOST}evil.net", "images.example.com.br", "images.example.co", "imagesXexample.com", "example.com"),
    *("images-example.com", "images.example.com_", "images..example.com", "blob.example.net"),
    *("evilblob.example.net", ".blob.example.net", "a..blob.example.net", "a.blob.example.net."),
    *("ımages.example.com", "imаges.example.com", "images.exаmple.com", "ⓘmages.example.com"),
    *("images。example。com", "images．example．com", "images｡example.com", "images.example.com\u3002"),
    *("１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "im\u00adages.example.com", "images\u200b.example.com"),
    *("images.example.com\u2028", "images.example.ｃｏｍ", "ℑmages.example.com", "images.example.com℀"),
    *("xn--mages-p4a.example.com", "xn--images-example-com-.net", "xn--", "xn--a.example.com"),
    # userinfo, and what parsers take for it
    *(
        f"user@{HOST}",
        f"user:word@{HOST}",
        f"@{HOST}",
        f":@{HOST}",
        f"{HOST}@evil.net",
        f"{HOST}:443@evil.net",
    ),
    *(f"evil.net@{HOST}", f"{HOST}%40evil.net", f"evil.net%2f@{HOST}", f"{HOST}%2f@evil.net", f"a@b@{HOST}"),
    *(f"evil.net%23@{HOST}", f"{HOST}%23.evil.net", f"evil.net%3f@{HOST}", f"user%00@{HOST}"),
    *(
        f"evil.net#@{HOST}",
        f"evil.net?@{HOST}",
        f"evil.net/@{HOST}",
        f"evil.net;@{HOST}",
        f"{HOST}&@evil.net",
    ),
    # bytes that are cut off, skipped or split at
    *(f"{HOST}%00", f"{HOST}%00.evil.net", f"evil.net%00.{HOST}", f"{HOST}\x00", f"{HOST}\x00.evil.net"),
    *(f"evil.net\\@{HOST}", f"{HOST}\\.evil.net", f"{HOST}\\@evil.net", f"evil.net\\{HOST}", f"\\{HOST}"),
    *(f"evil.net\t{HOST}", "images\t.example.com", f"{HOST}\t", f"{HOST}\n", f"{HOST}\r\n", f"\n{HOST}"),
    *(f"{HOST}\r\nHost: evil.net", f"{HOST} evil.net", f"evil.net {HOST}", f"{HOST}%0d%0aHost:%20evil.net"),
    *(f"{HOST}\x7f", f"{HOST}\x1f", f"{HOST}\xa0", f"{HOST}%20", f"{HOST}%09", "%69mages.example.com"),
    *(f"evil.net,{HOST}", f"evil.net;{HOST}", f"{HOST};evil.net", f"{HOST},evil.net", f"{HOST}|evil.net"),
    *("evil.net%2f.blob.example.net", "evil.net%23.blob.example.net", "evil.net%5c.blob.example.net"),
    *(
        "*.example.com",
        "*",
        "$HOST",
        "{HOST}",
        f"'{HOST}'",
        f'"{HOST}"',
        f"<{HOST}>",
        f"`{HOST}`",
        f"{HOST}^",
    ),
    *("", "/", "//", f"/{HOST}", f"//{HOST}", "a" * 300 + ".blob.example.net" + "." * 9000),
]


@pytest.mark.parametrize("host", HOSTS, ids=ascii)
def test_host_that_is_not_allowed_is_not_asked_for_nor_connected_to(host: str) -> None:
    expect_refusal(lambda port: [f"https://{host}:{port}/a", f"https://{host}/a"])


PORTS = [
    "",
    "0",
    "1",
    "22",
    "80",
    "444",
    "4430",
    "6379",
    "65535",
    "65536",
    "99999",
    "-1",
    "+1",
    "1_0",
    "0x1bb",
]
PORTS += [
    "443:443",
    "443@evil.net",
    " 443",
    "443 ",
    "443%20",
    "４４３",
    "٤٤٣",
    "443.",
    "443,22",
    "443\t",
    "a",
    "443;",
]


@pytest.mark.parametrize("port", PORTS, ids=ascii)
def test_other_port_is_not_connected_to(port: str) -> None:
    expect_refusal(lambda _: [f"https://{HOST}:{port}/a"])


def test_allowed_port_is_not_connected_to_in_another_spelling() -> None:
    expect_refusal(
        lambda port: [f"https://{HOST}:{spelt}/a" for spelt in (f"+{port}", f"{port}_", f"0{port}0")]
    )


SCHEMES = [
    "http",
    "ftp",
    "file",
    "gopher",
    "dict",
    "ldap",
    "sftp",
    "tftp",
    "ws",
    "wss",
    "jar:https",
    "jar:http",
]
SCHEMES += [
    "netdoc",
    "phar",
    "data",
    "javascript",
    "blob",
    "view-source:https",
    "url:https",
    "httpss",
    "https+a",
]
SCHEMES += [
    "HTTP",
    "hTTp",
    "ht\ttps",
    "https\t",
    "\x00https",
    "https%3a",
    "h",
    "",
    "httpſ",
    "unix",
    "about",
    "s3",
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=ascii)
def test_other_scheme_is_not_fetched(scheme: str) -> None:
    expect_refusal(lambda port: [f"{scheme}://{HOST}:{port}/a", f"{scheme}:{HOST}:{port}/a"])


URLS = [
    *("file:///etc/passwd", "file://localhost/etc/passwd", "file:/proc/self/environ", "FILE:///etc/passwd"),
    *("data:image/png;base64,AAAA", "data:,a", "jar:https://images.example.com/a.jar!/b", "https", "https:"),
    *(
        "https:/",
        "https://",
        "https:///a",
        "//images.example.com/a",
        "/a",
        "a",
        "",
        "?a",
        "#a",
        "\\\\evil.net\\a",
    ),
    *("https:\\\\images.example.com\\a", "https:/\\images.example.com/a", "https:images.example.com/a"),
    *("https:/images.example.com/a", "https:///images.example.com/a", "https:////images.example.com/a"),
    *("https://images.example.com/a\r\nHost: evil.net", "https://images.example.com/a HTTP/1.1\r\nX: y"),
    *(
        "https://images.example.com/\x00",
        "https://images.example.com/a b",
        "https://images.example.com/\\..\\a",
    ),
    *("https://images.example.com/ü", "https://images.example.com/a#\n", "https://images.example.com/a?\t"),
    *("https://images.example.com:443\\@evil.net/", "https://images.example.com/" + "a" * 9000),
    *("https://images.example.com\ud800/a", "https://https://images.example.com/a", "https://:443/a"),
]


@pytest.mark.parametrize("url", URLS, ids=lambda url: ascii(url[:40]))
def test_url_in_another_form_is_not_fetched(url: str) -> None:
    expect_refusal(lambda _: [url])


@pytest.mark.parametrize(
    "path", ["", "/", "/b", "//a/b", "/a", "/a/../b", "/a/%2e%2e/b", "/a/..%2Fb", "/%61/b", "/A/b"]
)
def test_path_outside_the_allowed_bucket_is_not_asked_for(path: str) -> None:
    async def run() -> None:
        async with Listener() as listener:
            hosts, resolver = f"{HOST}:{listener.port}", FixedResolver("127.0.0.1")
            async with open_fetcher("unused.example.com", resolver, allow_private_addresses=True) as fetcher:
                with pytest.raises(UrlNotAllowed):
                    await fetcher.fetch(Url(f"https://{hosts}{path}"), Allowlist((f"{hosts}/a",)))
        assert (listener.accepted, resolver.asked) == (0, [])

    asyncio.run(run())


def expect_refusal(urls: Callable[[int], list[str]]) -> None:
    """By the settings' allowlist and by that of Snowflake's storage; `urls` gets the port that is allowed."""

    async def run() -> None:
        resolver = FixedResolver("127.0.0.1", "::1")
        async with Listener() as listener:
            hosts = f"{HOST} .blob.example.net {HOST}:{listener.port} .blob.example.net:{listener.port}"
            with watched_connections() as attempts:
                async with open_fetcher(hosts, resolver, allow_private_addresses=True) as fetcher:
                    for url in urls(listener.port):
                        for allowlist in (None, Allowlist(SNOWFLAKE_STORAGE)):
                            with pytest.raises(UrlNotAllowed):
                                await fetcher.fetch(Url(url), allowlist)
        assert (attempts, listener.accepted, resolver.asked) == ([], 0, [])

    asyncio.run(run())


# Addresses: what a name server may answer for a host that is allowed.

FORBIDDEN = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),  # noqa: S104
    *("192.168.0.1", "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16"),
    *("192.0.0.192", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%lo", "fc00::1"),
    *("fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1"),
    *("::127.0.0.1", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_name_with_any_private_address_is_never_connected_to(address: str) -> None:
    for answers in ((address,), (PUBLIC, address), (address, PUBLIC, "2606:4700::1111")):
        expect_private(FixedResolver(*answers), HOST)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_allowed_name_of_this_machine_is_refused_by_its_address(name: str) -> None:
    expect_private(None, name)


@pytest.mark.parametrize(
    "name", ["0", "127.1", "2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "127.0.0.01"]
)
def test_allowed_number_is_not_resolved_to_this_machine(name: str) -> None:
    expect_private(None, name)


def expect_private(resolver: FixedResolver | None, host: str) -> None:
    async def run() -> None:
        async with Listener() as listener:
            with watched_connections() as attempts:
                async with open_fetcher(f"{host}:{listener.port}", resolver) as fetcher:
                    with pytest.raises(UrlNotAllowed):
                        await fetcher.fetch(Url(f"https://{host}:{listener.port}/a"))
        assert (attempts, listener.accepted) == ([], 0)

    asyncio.run(run())


class Rebinding(FixedResolver):
    """Answers differently every time it is asked, as a name server with a TTL of 0 may, in turns."""

    def __init__(self, *answers: str, alias: str | None = None) -> None:
        super().__init__()
        self._answers = answers
        self._alias = alias

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        self._addresses = (self._answers[len(self.asked) % len(self._answers)],)
        results = await super().resolve(host, port, family)
        return [{**result, "hostname": self._alias or host} for result in results]


def test_what_was_checked_is_what_is_connected_to_however_often_the_name_moves() -> None:
    async def run() -> None:
        resolver = Rebinding(PUBLIC, "127.0.0.1")
        async with Listener() as listener:
            with watched_connections() as attempts:
                async with open_fetcher(f"{HOST}:{listener.port}", resolver) as fetcher:
                    for _ in range(5):
                        with pytest.raises((FetchFailed, UrlNotAllowed)):
                            await fetcher.fetch(Url(f"https://{HOST}:{listener.port}/a"))
        assert listener.accepted == 0
        assert set(attempts) == {f"{PUBLIC}:{listener.port}"}

    asyncio.run(run())


def test_name_is_resolved_once_for_a_connection() -> None:
    async def run() -> None:
        resolver = Rebinding(PUBLIC, "127.0.0.1")
        with watched_connections() as attempts:
            async with open_fetcher(HOST, resolver) as fetcher:
                with pytest.raises(FetchFailed):
                    await fetcher.fetch(Url(f"https://{HOST}/a"))
        assert resolver.asked == [HOST]
        assert attempts == [f"{PUBLIC}:443"]

    asyncio.run(run())


def test_name_that_later_resolves_to_a_private_address_is_refused() -> None:
    async def run() -> None:
        resolver = Rebinding(PUBLIC, "127.0.0.1")
        async with Listener() as listener:
            with watched_connections() as attempts:
                async with open_fetcher(f"{HOST} {HOST}:{listener.port}", resolver) as fetcher:
                    with pytest.raises(FetchFailed):
                        await fetcher.fetch(Url(f"https://{HOST}/a"))
                    with pytest.raises(UrlNotAllowed, match="public"):
                        await fetcher.fetch(Url(f"https://{HOST}:{listener.port}/a"))
        assert (attempts, listener.accepted) == ([f"{PUBLIC}:443"], 0)
        assert resolver.asked == [HOST, HOST]

    asyncio.run(run())


def test_alias_of_a_private_name_is_refused() -> None:
    expect_private(Rebinding("10.0.0.1", alias="internal.example.net"), HOST)


def test_name_without_addresses_is_a_row_error() -> None:
    async def run() -> None:
        async with open_fetcher(HOST, FixedResolver()) as fetcher:
            await fetcher.fetch(Url(f"https://{HOST}/a"))

    with pytest.raises(FetchFailed):
        asyncio.run(run())


# Redirects: what an allowed store may answer.

TARGETS = [
    "https://127.0.0.1:{inside}/",
    "https://[::1]:{inside6}/",
    "https://[::ffff:127.0.0.1]:{inside}/",
    "https://[::]:{inside6}/",
    "https://0:{inside}/",
    "https://2130706433:{inside}/",
    "https://0x7f.1:{inside}/",
    "https://localhost:{inside}/",
    "https://127.0.0.1:{port}/b",
    "https://images.example.com:{inside}/",
    "//images.example.com:{inside}/",
    "//127.0.0.1:{inside}/",
    "//[::1]:{inside6}/",
    "///127.0.0.1:{inside}/../..//127.0.0.1:{inside}/",
    "http://images.example.com:{port}/b",
    "http://127.0.0.1:{inside}/",
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/",
    "https://[fd00:ec2::254]/",
    "https://metadata.google.internal/",
    "https://evil.example.com:{port}/b",
    "https://images.example.com.:{port}/b",
    "https://images.example.com.evil.net:{inside}/",
    "https://images.example.com@127.0.0.1:{inside}/",
    "https://user:word@images.example.com:{port}/b",
    "https://@images.example.com:{port}/b",
    "https://127.0.0.1:{inside}\\@images.example.com:{port}/b",
    "\\\\127.0.0.1:{inside}\\a",
    "/\\127.0.0.1:{inside}/",
    "https:\\\\127.0.0.1:{inside}\\",
    "https:////127.0.0.1:{inside}/",
    "ht\ttps://127.0.0.1:{inside}/",
    "/\t/127.0.0.1:{inside}/",
    "https://images.example.com%00@127.0.0.1:{inside}/",
    "https://images.example.com\xad:{port}/b",
    "https://images。example。com:{port}/b",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{inside}/_GET",
    "ftp://127.0.0.1:{inside}/",
    "data:image/png;base64,AAAA",
    "jar:https://127.0.0.1:{inside}/a!/b",
    "javascript:alert(1)",
    "https://",
    "https://[",
    "https://images.example.com:99999/",
    "https://images.example.com:{port}/" + "b" * 8200,
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: ascii(target[:50]))
def test_redirect_inward_is_not_followed(target: str) -> None:
    statuses = [301, 302, 303, 307, 308]

    async def visit(fetcher: ImageFetcher, server: HttpsServer) -> None:
        for status in statuses:
            with pytest.raises((UrlNotAllowed, FetchFailed)):  # a header line too long is no http
                await fetcher.fetch(Url(f"https://{HOST}:{server.port}/{status}"))

    heads = visit_with_traps(visit, lambda where: [f"Location: {target.format(**where)}"])
    assert len(heads) >= len(statuses)  # more where it leads back to the store itself


@pytest.mark.parametrize(
    "header", ["Location", "Refresh", "Content-Location", "Link", "Alt-Svc", "X-Accel-Redirect"]
)
def test_no_other_answer_sends_the_fetcher_anywhere(header: str) -> None:
    statuses = [200, 201, 204, 300, 304, 305, 306, 310, 399, 400, 407, 511]
    value = {"Refresh": "0; url={}", "Link": "<{}>; rel=canonical", "Alt-Svc": 'h2="127.0.0.1:{inside}"'}

    async def visit(fetcher: ImageFetcher, server: HttpsServer) -> None:
        for status in statuses:
            with pytest.raises(FetchFailed) if status != 200 else nullcontext():
                await fetcher.fetch(Url(f"https://{HOST}:{server.port}/{status}"))

    def headers(where: dict[str, int]) -> list[str]:
        url = f"https://127.0.0.1:{where['inside']}/"
        return [f"{header}: {value.get(header, '{}').format(url, **where)}"]

    assert len(visit_with_traps(visit, headers)) == len(statuses)


Visit = Callable[[ImageFetcher, HttpsServer], Coroutine[Any, Any, None]]


def visit_with_traps(visit: Visit, headers: Callable[[dict[str, int]], list[str]]) -> list[str]:
    """Let a store, alone allowed, answer /<status> with these headers; returns the heads it was sent."""

    async def run() -> list[str]:
        async def respond(head: str, writer: asyncio.StreamWriter) -> None:
            status = head.split()[1].strip("/")
            await answer(b"", *headers(where), status=f"{status} Status")(head, writer)

        async with (
            HttpsServer(respond, HOST, "127.0.0.1") as server,
            Listener("127.0.0.1") as inside,
            Listener("::1" if has_ipv6_loopback() else "127.0.0.1") as inside6,
        ):
            where = {"port": server.port, "inside": inside.port, "inside6": inside6.port}
            hosts, resolver = f"{HOST}:{server.port}", FixedResolver("127.0.0.1")
            with watched_connections() as attempts:
                async with open_fetcher(
                    hosts, resolver, server.client_context, allow_private_addresses=True
                ) as fetcher:
                    await visit(fetcher, server)
        assert (inside.accepted, inside6.accepted) == (0, 0)
        assert set(attempts) == {f"127.0.0.1:{server.port}"}
        assert set(resolver.asked) == {HOST}
        return server.heads

    return asyncio.run(run())


def test_every_hop_is_resolved_and_connected_to_by_itself() -> None:
    async def run() -> None:
        async def respond(head: str, writer: asyncio.StreamWriter) -> None:
            if head.startswith("GET /a "):
                target = f"Location: https://b.blob.example.net:{server.port}/b"
                await answer(b"", target, status="307 Moved")(head, writer)
            else:
                await answer(b"image")(head, writer)

        resolver = FixedResolver("127.0.0.1")
        async with HttpsServer(respond, HOST, "b.blob.example.net", keep_alive=True) as server:
            hosts = f"{HOST}:{server.port} .blob.example.net:{server.port}"
            async with open_fetcher(
                hosts, resolver, server.client_context, allow_private_addresses=True
            ) as fetcher:
                assert await fetcher.fetch(Url(f"https://{HOST}:{server.port}/a")) == b"image"
        assert resolver.asked == [HOST, "b.blob.example.net"]
        assert server.connections == 2

    asyncio.run(run())


# Connections that are kept.


def test_kept_connection_is_of_no_use_to_a_fetch_that_may_not_go_there() -> None:
    async def run() -> None:
        async def respond(head: str, writer: asyncio.StreamWriter) -> None:
            if head.startswith("GET /open/moved "):
                await answer(b"", "Location: /closed/a", status="302 Found")(head, writer)
            else:
                await answer(b"image")(head, writer)

        async with HttpsServer(respond, HOST, keep_alive=True) as server:
            here, resolver = f"{HOST}:{server.port}", FixedResolver("127.0.0.1")
            async with open_fetcher(
                here, resolver, server.client_context, allow_private_addresses=True
            ) as fetcher:
                for _ in range(2):
                    assert await fetcher.fetch(Url(f"https://{here}/closed/a")) == b"image"
                assert server.connections == 1  # the second fetch kept it
                for path, patterns in (
                    ("/closed/a", SNOWFLAKE_STORAGE),
                    ("/closed/a", (f"{here}/open",)),
                    ("/open/moved", (f"{here}/open",)),
                ):
                    with pytest.raises(UrlNotAllowed):
                        await fetcher.fetch(Url(f"https://{here}{path}"), Allowlist(patterns))
        assert [head.split()[1] for head in server.heads] == ["/closed/a", "/closed/a", "/open/moved"]

    asyncio.run(run())


@pytest.mark.parametrize("host", [HOST, "127.0.0.1"])
@pytest.mark.parametrize("private", [False, True])
def test_list_for_one_fetch_has_no_say_in_which_addresses_are_let_pass(host: str, private: bool) -> None:
    async def run() -> None:
        async with Listener() as listener:
            here = f"{host}:{listener.port}"
            allowlist = Allowlist((here,), allow_private_addresses=not private)
            resolver = FixedResolver("127.0.0.1")
            async with open_fetcher("unused.net", resolver, allow_private_addresses=private) as fetcher:
                with pytest.raises(FetchFailed if private else UrlNotAllowed):
                    await fetcher.fetch(Url(f"https://{here}/a"), allowlist)
        assert listener.accepted == int(private)

    asyncio.run(run())


# What the service sends to stores, and how long a fetch can last.


def test_no_proxy_nor_credentials_of_this_machine_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> None:
        async def respond(head: str, writer: asyncio.StreamWriter) -> None:
            cookie = "Set-Cookie: a=b; Domain=example.com; Path=/"
            moved = head.startswith("GET /a ")
            status = "302 Found" if moved else "200 OK"
            await answer(b"", cookie, "Location: /b", 'WWW-Authenticate: Basic realm="a"', status=status)(
                head, writer
            )

        async with HttpsServer(respond, HOST) as server, Listener() as proxy:
            for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            netrc = tmp_path / "netrc"
            netrc.write_text(f"machine {HOST} login secret password secret\n", encoding="utf-8")
            monkeypatch.setenv("NETRC", str(netrc))
            hosts, resolver = f"{HOST}:{server.port}", FixedResolver("127.0.0.1")
            async with open_fetcher(
                hosts, resolver, server.client_context, allow_private_addresses=True
            ) as fetcher:
                for _ in range(2):
                    await fetcher.fetch(Url(f"https://{hosts}/a?sig=secret"))
        assert proxy.accepted == 0
        names = {
            line.partition(":")[0].lower() for head in server.heads for line in head.splitlines()[1:] if line
        }
        assert names == {"host", "accept", "accept-encoding", "user-agent"}
        assert all("secret" not in head for head in server.heads if head.startswith("GET /b "))

    asyncio.run(run())


async def drip_head(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"A: b\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_interim(_: str, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def drip_chunks(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1;" + b"a" * 100 + b"\r\na\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drip_redirects(head: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.3)
    await answer(b"", "Location: /a", status="302 Found")(head, writer)


async def drip_refusal(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\na\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("respond", [drip_head, drip_interim, drip_chunks, drip_redirects, drip_refusal])
def test_store_that_drips_does_not_outlast_the_time_limit(respond: Respond) -> None:
    with pytest.raises(FetchTimeout):
        fetch_from(respond, fetch_timeout_seconds=0.5, max_redirects=20)


async def flood_head(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(2000):
        writer.write(b"A: " + b"b" * 1000 + b"\r\n")
        await writer.drain()


async def switch_protocols(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + bytes(100)
    )


async def answer_twice_as_long(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nimage")


async def answer_in_two_framings(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nimage")


@pytest.mark.parametrize(
    "respond", [flood_head, switch_protocols, answer_twice_as_long, answer_in_two_framings]
)
def test_store_that_bends_http_is_a_row_error(respond: Respond) -> None:
    with pytest.raises(FetchFailed):
        fetch_from(respond)


def fetch_from(respond: Respond, **given: Any) -> bytes:
    async def run() -> bytes:
        async with HttpsServer(respond, HOST) as server:
            hosts, resolver = f"{HOST}:{server.port}", FixedResolver("127.0.0.1")
            async with open_fetcher(
                hosts, resolver, server.client_context, allow_private_addresses=True, **given
            ) as fetcher:
                return await fetcher.fetch(Url(f"https://{hosts}/a"))

    return asyncio.run(run())
