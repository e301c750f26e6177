import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import pytest

from app.errors import (
    AccessDenied,
    ClientSideEncrypted,
    FetchFailed,
    FetchTimeout,
    FileMissing,
    UrlExpired,
    UrlNotAllowed,
)
from app.images.http import ImageFetcher
from app.images.source import Url
from app.settings import Settings
from model.errors import ImageTooLarge, InputError
from tests.app.clock import put_forward, run_with_clock
from tests.app.images.https_server import FixedResolver, HttpsServer, Respond, answer

HOST = "images.example.com"
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


def fetch(respond: Respond, path: str = "/a.png", **settings: Any) -> tuple[bytes, HttpsServer]:
    """Fetch https://HOST:port/path from a server that answers with `respond`."""

    async def run() -> tuple[bytes, HttpsServer]:
        async with HttpsServer(respond, HOST, "127.0.0.1") as server:
            given = {
                "allowed_url_hosts": f"{HOST}:{server.port}",
                "allow_private_addresses": True,
                "fetch_timeout_seconds": 60,
            }
            async with ImageFetcher(
                Settings(**(given | settings)),
                resolver=FixedResolver("127.0.0.1"),
                ssl_context=server.client_context,
            ) as fetcher:
                return await fetcher.fetch(Url(f"https://{HOST}:{server.port}{path}")), server

    return asyncio.run(run())


def test_image_is_fetched() -> None:
    image, _ = fetch(answer(b"image"))
    assert image == b"image"


def test_request_is_bare_and_exactly_what_was_signed() -> None:
    _, server = fetch(answer(b"image", "Set-Cookie: a=b"), "/a%20b%2Fc?sig=x%2By%3D&empty=")
    [head] = server.heads
    assert head.startswith("GET /a%20b%2Fc?sig=x%2By%3D&empty= HTTP/1.1\r\n")
    assert "Accept-Encoding: identity" in head
    assert "Cookie" not in head
    assert "Authorization" not in head


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        ("400 Bad Request", False),
        ("405 Not Allowed", False),
        ("410 Gone", False),
        ("429 Slow Down", True),
        ("500 Oops", True),
        ("503 Busy", True),
        ("206 Part", False),
    ],
)
def test_other_status_than_200_is_an_error(status: str, retryable: bool) -> None:
    with pytest.raises(FetchFailed, match=status[:3]) as raised:
        fetch(answer(b"", status=status))
    assert raised.value.retryable is retryable


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        ("401 Unauthorized", b"", AccessDenied),
        ("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>", AccessDenied),
        ("403 Forbidden", EXPIRED, UrlExpired),
        ("400 Bad Request", b"<Error><Code>ExpiredToken</Code></Error>", UrlExpired),
        ("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>", FileMissing),
    ],
)
def test_error_response_determines_the_error(status: str, body: bytes, error: type[InputError]) -> None:
    with pytest.raises(error) as raised:
        fetch(answer(body, status=status), "/a.png?sig=secret")
    assert not raised.value.retryable
    assert "secret" not in raised.value.message


def test_error_response_in_small_chunks_is_read_completely() -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(EXPIRED)}\r\n\r\n".encode())
        for byte in EXPIRED:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)

    with pytest.raises(UrlExpired):
        fetch(respond)


def test_truncated_error_response_is_still_explained() -> None:
    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        await answer(EXPIRED, status="403 Forbidden", length=5000)(head, writer)
        await asyncio.sleep(0.1)

    with pytest.raises(UrlExpired):
        fetch(respond)


def test_error_response_is_read_up_to_4_kib() -> None:
    with pytest.raises(AccessDenied):
        fetch(answer(bytes(4096) + EXPIRED, status="403 Forbidden"))
    with pytest.raises(UrlExpired):
        fetch(answer(bytes(4096 - len(EXPIRED)) + EXPIRED + bytes(10_000_000), status="403 Forbidden"))


def test_slow_error_response_times_out() -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"a")
            await asyncio.sleep(0.05)

    with pytest.raises(FetchTimeout):
        fetch(respond, fetch_timeout_seconds=0.4)


@pytest.mark.parametrize(
    "header",
    [
        "x-amz-meta-x-amz-key: a",
        "X-Amz-Meta-X-Amz-Iv: a",
        "x-ms-meta-encryptiondata: {}",
        "X-Goog-Meta-EncryptionData: {}",
    ],
)
def test_encrypted_file_is_rejected_before_the_body_is_read(header: str) -> None:
    with pytest.raises(ClientSideEncrypted, match="SNOWFLAKE_SSE"):
        fetch(answer(b"", header, length=1000), fetch_timeout_seconds=60)


def test_file_with_other_metadata_is_fetched() -> None:
    image, _ = fetch(answer(b"image", "x-amz-server-side-encryption: AES256", "x-amz-meta-sfc-digest: a"))
    assert image == b"image"


@pytest.mark.parametrize("size", [99, 100])
def test_image_up_to_the_limit_is_fetched(size: int) -> None:
    image, _ = fetch(answer(bytes(size)), max_image_bytes=100)
    assert len(image) == size


def test_too_large_content_length_is_rejected() -> None:
    with pytest.raises(ImageTooLarge):
        fetch(answer(bytes(1), length=101), max_image_bytes=100)


def test_endless_body_is_cut_off() -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            await asyncio.sleep(0.001)

    with pytest.raises(ImageTooLarge):
        fetch(respond, max_image_bytes=1_000_000)


@pytest.mark.slow
def test_slow_body_times_out() -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"a")
            await asyncio.sleep(0.05)

    with pytest.raises(FetchTimeout) as raised:
        fetch(respond, fetch_timeout_seconds=0.4)
    assert raised.value.retryable


def test_silent_host_times_out() -> None:
    async def respond(_: str, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    with pytest.raises(FetchTimeout):
        fetch(respond, fetch_timeout_seconds=0.3)


def test_truncated_body_is_an_error() -> None:
    with pytest.raises(FetchFailed) as raised:
        fetch(answer(b"half", length=100))
    assert raised.value.retryable


@pytest.mark.parametrize(
    "garbage", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" + b"a" * 100_000]
)
def test_invalid_http_is_an_error(garbage: bytes) -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)

    with pytest.raises(FetchFailed):
        fetch(respond)


@pytest.mark.parametrize(
    "headers",
    [
        ("",),
        (" , ",),
        ("identity",),
        ("Identity , ",),
        ("aws-chunked",),
        ("AWS-Chunked",),
        (" aws-chunked ,",),
        ("aws-chunked,gzip",),
        ("gzip , AWS-CHUNKED",),
        ("aws-chunked", "gzip"),
        ("aws-chunked", "", "identity"),
    ],
)
def test_plain_content_encoding_is_accepted(headers: tuple[str, ...]) -> None:
    image, _ = fetch(answer(b"image", *(f"Content-Encoding: {value}" for value in headers)))
    assert image == b"image"


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (("gzip",), "gzip"),
        (("GZIP, identity",), "gzip"),
        (("base64",), "base64"),
        (("utf-8",), "utf-8"),
        (("br",), "br"),
        (("aws-chunked,base64",), "base64"),
        (("aws-chunked", "zstd"), "zstd"),
        (("x" * 5000,), "x" * 80),
        (("\u00fc",), "\\xfc"),
    ],
)
def test_other_content_encoding_is_named(headers: tuple[str, ...], named: str) -> None:
    with pytest.raises(FetchFailed) as raised:
        fetch(answer(b"image", *(f"Content-Encoding: {value}" for value in headers)))
    assert "Content-Encoding" in raised.value.message
    assert named in raised.value.message
    assert raised.value.message.isascii()
    assert len(raised.value.message) < 200
    assert not raised.value.retryable


def test_compressed_content_is_named_whatever_the_upload_was() -> None:
    with pytest.raises(FetchFailed, match="aws-chunked, gzip"):
        fetch(answer(gzip.compress(b"image"), "Content-Encoding: aws-chunked,gzip"))


def test_certificate_must_be_trusted() -> None:
    async def run() -> None:
        async with HttpsServer(answer(b"image"), HOST) as server:
            settings = Settings(
                allowed_url_hosts=f"{HOST}:{server.port}",  # type: ignore[arg-type]
                allow_private_addresses=True,
            )
            async with ImageFetcher(settings, resolver=FixedResolver("127.0.0.1")) as fetcher:
                await fetcher.fetch(Url(f"https://{HOST}:{server.port}/a"))

    with pytest.raises(FetchFailed, match="Certificate"):
        asyncio.run(run())


def redirect(location: Callable[[str], str]) -> Respond:
    """Redirect /a.png to `location(port)`; answer anything else with an image."""

    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        if head.startswith("GET /a.png "):
            port = writer.get_extra_info("sockname")[1]
            target = f"Location: {location(port)}"
            await answer(b"", target, status="302 Found")(head, writer)
        else:
            await answer(b"redirected")(head, writer)

    return respond


@pytest.mark.parametrize(
    "location", [lambda port: f"https://{HOST}:{port}/b", lambda _: "/b", lambda _: "b?sig=%2F"]
)
def test_redirect_within_the_allowlist_is_followed(location: Callable[[str], str]) -> None:
    image, server = fetch(redirect(location))
    assert image == b"redirected"
    assert len(server.heads) == 2


@pytest.mark.parametrize(
    "location",
    [
        lambda _: "http://169.254.169.254/latest/meta-data",
        lambda port: f"https://127.0.0.1:{port}/b",
        lambda port: f"http://{HOST}:{port}/b",
        lambda port: f"//evil.example.com:{port}/b",
        lambda port: f"https://user@{HOST}:{port}/b",
        lambda _: "file:///etc/passwd",
        lambda _: "https://[",
    ],
)
def test_redirect_out_of_the_allowlist_is_not_followed(location: Callable[[str], str]) -> None:
    with pytest.raises((UrlNotAllowed, FetchFailed)):
        fetch(redirect(location))


@pytest.mark.parametrize(("redirects", "allowed"), [(3, True), (4, False)])
def test_redirect_limit_is_exact(redirects: int, allowed: bool) -> None:
    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        hop = int(head.split()[1].rpartition("/")[2])
        if hop == redirects:
            await answer(b"image")(head, writer)
        else:
            await answer(b"", f"Location: /{hop + 1}", status="307 Moved")(head, writer)

    if allowed:
        assert fetch(respond, "/0", max_redirects=3)[0] == b"image"
    else:
        with pytest.raises(FetchFailed, match="redirect at most 3"):
            fetch(respond, "/0", max_redirects=3)


def test_redirect_without_a_location_is_an_error() -> None:
    with pytest.raises(FetchFailed, match="Location"):
        fetch(answer(b"", status="302 Found"))


def test_unknown_host_is_an_error_without_the_resolver_s_message() -> None:
    class Failing(FixedResolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> Any:
            raise OSError(-2, "Name or service not known")

    async def run() -> None:
        async with ImageFetcher(Settings(allowed_url_hosts=HOST), resolver=Failing()) as fetcher:  # type: ignore[arg-type]
            await fetcher.fetch(Url(f"https://{HOST}/a"))

    with pytest.raises(FetchFailed) as raised:
        asyncio.run(run())
    assert "not known" not in raised.value.message


def test_concurrent_fetches_are_limited_and_queueing_does_not_count_as_fetch_time() -> None:
    running = peak = 0

    async def respond(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        put_forward(5.0)
        running -= 1
        await answer(b"image")(head, writer)

    async def run() -> list[bytes]:
        async with HttpsServer(respond, HOST) as server:
            settings = Settings(
                allowed_url_hosts=f"{HOST}:{server.port}",  # type: ignore[arg-type]
                allow_private_addresses=True,
                max_concurrent_fetches=4,
                fetch_timeout_seconds=60,
            )
            async with ImageFetcher(
                settings, resolver=FixedResolver("127.0.0.1"), ssl_context=server.client_context
            ) as fetcher:
                url = Url(f"https://{HOST}:{server.port}/a")
                return await asyncio.gather(*(fetcher.fetch(url) for _ in range(48)))

    assert run_with_clock(run()) == [b"image"] * 48
    assert peak == 4
