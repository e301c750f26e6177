"""Fetches images over HTTPS: the only module that opens connections to image hosts.

aiohttp parses whatever arrives in one piece on the event loop and queues every message. Interim responses,
chunks of a byte and long heads then cost seconds of the event loop and gigabytes of memory, so responses
have limits on what a host may send in addition to the bytes of an image. Error responses of S3, Azure Blob
Storage and Google Cloud Storage are explained.
"""

import asyncio
import contextlib
import functools
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import parse_qsl

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from app.errors import AccessDenied, ClientSideEncrypted, FetchFailed, FetchTimeout, FileMissing, UrlExpired
from app.images.allowlist import HTTPS_PORT, Allowlist, is_public
from app.images.resolver import SystemResolver
from app.images.source import Url
from app.settings import Settings
from model.errors import ImageTooLarge, InputError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSALS = frozenset({400, 401, 403, 404})
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
# S3 frames uploads as aws-chunked. Some stores keep an upload's header, aws-chunked or aws-chunked,gzip,
# for content without the framing; whether that is compressed, its first bytes show.
_ENCODINGS_OF_UPLOADS = frozenset({"aws-chunked", "gzip"})
_GZIP = b"\x1f\x8b"
_READ_BYTES = 64 * 1024
# A piece is parsed in a millisecond or two, though each of its messages or chunks is as short as can be.
HEAD_PIECE_BYTES = 1024
BODY_PIECE_BYTES = 4 * 1024
# A head of the large stores has a few KiB; chunks of 48 bytes and more exceed neither limit.
MAX_OVERHEAD_BYTES = 64 * 1024
_BODY_BYTES_PER_OVERHEAD_BYTE = 8
# RFC 9110, section 15.2, allows any number. A host that sends ten a second reaches the time limit first.
MAX_INTERIM_RESPONSES = 100


class ImageFetcher:
    """Fetches images from allowed URLs with bounded concurrency; an async context manager.

    A host is resolved once, and the client connects only to addresses that passed the check, so DNS rebinding
    has no effect. The same holds with a proxy: it is asked to connect to the address, not to the name.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowlist = Allowlist(settings.allowed_url_hosts, settings.allow_private_addresses)
        self._max_bytes = settings.max_image_bytes
        self._max_redirects = settings.max_redirects
        self._timeout_seconds = settings.fetch_timeout_seconds
        self._slots = asyncio.Semaphore(settings.max_concurrent_fetches)
        self._proxy = settings.fetch_proxy
        self._any_resolver = resolver or SystemResolver(self._timeout_seconds)
        self._resolver = _CheckedResolver(self._any_resolver, self._allowlist)
        self._ssl_context = ssl_context or ssl.create_default_context()

    async def __aenter__(self) -> Self:
        # aiohttp's DNS cache is safe: it holds only addresses that _CheckedResolver has accepted.
        self._session = self._open_session(self._resolver)
        # Resolves no name but the proxy's, which may have a private address.
        self._proxied_session = self._open_session(self._any_resolver)
        return self

    def _open_session(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        connector = _BoundedConnector(limit=0, resolver=resolver, ssl=self._ssl_context)
        return aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "ext-classify"},
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._proxied_session.close()

    async def fetch(self, source: Url, allowlist: Allowlist | None = None) -> bytes:
        """The bytes behind a URL; every hop must be on `allowlist`, by default that of the settings.

        Raises UrlNotAllowed, FileMissing, UrlExpired, AccessDenied, ClientSideEncrypted, FetchFailed,
        FetchTimeout or ImageTooLarge. The timeout starts when a concurrency slot is free and covers all hops
        and the whole body. `allowlist` replaces URL patterns only: whether private addresses are allowed
        depends on the settings.
        """
        ours = self._allowlist
        allowed = ours if allowlist is None else replace(ours, patterns=allowlist.patterns)
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._follow(source.text, allowed)
            except TimeoutError:
                raise FetchTimeout(
                    f"An image must arrive within {self._timeout_seconds:g} seconds.", retryable=True
                ) from None
            except aiohttp.ClientHttpProxyError as error:
                raise FetchFailed(
                    f"The proxy must connect to the URL's host. Received: {error.status}.",
                    retryable=error.status in _RETRYABLE,
                ) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise FetchFailed(
                    f"The URL's host must answer over https. Received: {type(error).__name__}.",
                    retryable=not isinstance(error, (aiohttp.ClientSSLError, ValueError)),
                ) from error

    async def _follow(self, text: str, allowlist: Allowlist) -> bytes:
        url = allowlist.check_url(text)
        for _ in range(self._max_redirects + 1):
            async with await self._request(url) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response)
                url = allowlist.check_redirect(url, _location(response))
        raise FetchFailed(f"A URL must redirect at most {self._max_redirects} times.")

    async def _request(self, url: URL) -> aiohttp.ClientResponse:
        """The response's head. TLS checks the certificate of the URL's host, also behind a proxy."""
        if self._proxy is None:
            return await self._session.get(url, allow_redirects=False)
        host = url.raw_host or ""
        addresses = await self._resolver.resolve(host, url.port or HTTPS_PORT)
        address = min(addresses, key=lambda each: each["family"] != socket.AF_INET)["host"]
        if not is_public(ip_address(address)):
            return await self._session.get(url, allow_redirects=False)
        return await self._proxied_session.get(
            url.with_host(address),
            allow_redirects=False,
            headers={"Host": url.host_port_subcomponent or host},
            proxy=self._proxy.get_secret_value(),
            server_hostname=host,
        )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise await _failure(response)
        refuse_encrypted(response.headers)
        encodings = _encodings(response)
        if encodings - _ENCODINGS_OF_UPLOADS or encodings == {"gzip"}:
            raise _encoded(encodings)
        self._refuse_bytes(response.content_length or 0)
        content = bytearray()
        async for chunk in response.content.iter_chunked(_READ_BYTES):
            content += chunk
            self._refuse_bytes(len(content))
        if "gzip" in encodings and content.startswith(_GZIP):
            raise _encoded(encodings)
        return bytes(content)

    def _refuse_bytes(self, image_bytes: int) -> None:
        if image_bytes > self._max_bytes:
            raise ImageTooLarge(
                f"An image must have at most {self._max_bytes} bytes. Received: more than that."
            )


class _BoundedConnector(aiohttp.TCPConnector):
    """Connections whose responses have limits; aiohttp takes no other handler by argument."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        handler: type[ResponseHandler] = BoundedResponseHandler
        self._factory = functools.partial(handler, loop=self._loop)


class BoundedResponseHandler(ResponseHandler):
    """Parses received bytes in short pieces, and aborts the connection once a response exceeds its limits.

    Reading the response then raises FetchFailed. While bytes wait, the transport does not read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._unparsed = bytearray()
        self._is_scheduled = False
        self._has_failed = False
        self._lost: tuple[BaseException | None] | None = None
        self._expect_response()

    def _expect_response(self) -> None:
        self._received_bytes = self._interim_responses = self._content_length = 0
        self._body: StreamReader | None = None

    def set_response_params(self, **params: Any) -> None:
        self._expect_response()
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        message, body = data
        if 100 <= message.code < 200:
            self._interim_responses += 1
        else:
            self._body = body
            self._content_length = 0 if message.chunked else int(message.headers.get("Content-Length", 0))
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # the parser continues with what it holds
            super().data_received(data)
        elif not self._unparsed and len(data) <= self._piece_bytes():
            self._parse(data)
        elif not self._has_failed:
            self._unparsed += data
            self._parse_next()

    def resume_reading(self, resume_parser: bool = True) -> None:
        super().resume_reading(resume_parser)
        self._schedule()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Parse what has been received first: the host may close right behind its response."""
        if self._unparsed:
            self._lost = (exc,)
        else:
            super().connection_lost(exc)

    def close(self) -> None:
        self._discard_unparsed()
        super().close()

    def abort(self) -> None:
        self._discard_unparsed()
        super().abort()

    def _piece_bytes(self) -> int:
        if self._body is None:
            return HEAD_PIECE_BYTES
        # The rest of a body without chunks is cheap to parse, however long it is.
        return max(BODY_PIECE_BYTES, self._content_length - self._body.total_bytes)

    def _schedule(self) -> None:
        if self._unparsed and not self._is_scheduled:
            self._pause_transport_reading()
            self._is_scheduled = True
            self._loop.call_soon(self._parse_scheduled)

    def _parse_scheduled(self) -> None:
        self._is_scheduled = False
        self._parse_next()
        if not self._unparsed:
            if self._lost is not None:
                super().connection_lost(*self._lost)
            elif not self._reading_paused and not self._buffer_paused:
                self._resume_transport_reading()

    def _parse_next(self) -> None:
        """Parse a piece of a head and one of a body, at most."""
        for _ in range(2):
            if self._unparsed and not self._reading_paused:  # or the reader of the body is behind
                piece = bytes(self._unparsed[: self._piece_bytes()])
                del self._unparsed[: len(piece)]
                self._parse(piece)
        if not self._reading_paused:
            self._schedule()

    def _parse(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._body is not None and self._body.is_eof():
            self._fail(FetchFailed("A URL's host must send one response for a request. Received: more."))
            return
        super().data_received(data)
        if error := self._broken_limit():
            self._fail(error)

    def _broken_limit(self) -> FetchFailed | None:
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            return FetchFailed(
                f"A URL's host must send at most {MAX_INTERIM_RESPONSES} interim responses. Received: more."
            )
        body_bytes = 0 if self._body is None else self._body.total_bytes
        overhead_bytes = self._received_bytes - body_bytes
        if overhead_bytes > MAX_OVERHEAD_BYTES + body_bytes // _BODY_BYTES_PER_OVERHEAD_BYTE:
            return FetchFailed(
                f"A URL's host must send at most {MAX_OVERHEAD_BYTES} bytes in addition to an image. "
                "Received: more."
            )
        return None

    def _fail(self, error: FetchFailed) -> None:
        self._has_failed = True
        self.set_exception(error)
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(error)
        self._payload = None  # or aiohttp replaces the error by one of its own
        self._discard_unparsed()
        if self.transport is not None:
            self.transport.abort()

    def _discard_unparsed(self) -> None:
        self._unparsed.clear()
        if self._lost is not None:
            super().connection_lost(*self._lost)
            self._lost = None


class _CheckedResolver(AbstractResolver):
    """Resolves a host; rejects it if any of its addresses is not allowed."""

    def __init__(self, resolver: AbstractResolver, allowlist: Allowlist) -> None:
        self._resolver = resolver
        self._allowlist = allowlist

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._resolver.resolve(host, port, family)
        if not addresses:
            raise OSError("A host must have an address.")
        for address in addresses:
            self._allowlist.check_address(address["host"])
        return addresses

    async def close(self) -> None:
        await self._resolver.close()


def _encodings(response: aiohttp.ClientResponse) -> set[str]:
    """The codings of a response in lower case, without those that mean none."""
    values = response.headers.getall("Content-Encoding", ())
    return {coding.strip().lower() for value in values for coding in value.split(",")} - {"", "identity"}


def _encoded(encodings: set[str]) -> FetchFailed:
    stated = ", ".join(sorted(encodings))
    return FetchFailed(f"An image must be stored without a Content-Encoding. Received: {stated[:80]!a}.")


def _location(response: aiohttp.ClientResponse) -> str:
    location = response.headers.get("Location")
    if not location:
        raise FetchFailed("A redirect must name a Location.")
    return location


async def _failure(response: aiohttp.ClientResponse) -> InputError:
    """The error for a response whose status is not 200."""
    if response.status in _REFUSALS:
        body = b"" if response.status == 404 else await _read_start(response.content)
        if error := explain_refusal(response.status, response.url.raw_query_string, body):
            return error
    return FetchFailed(
        f"The URL's host must answer 200. Received: {response.status}.",
        retryable=response.status in _RETRYABLE,
    )


async def _read_start(content: StreamReader) -> bytes:
    start = bytearray()
    with contextlib.suppress(aiohttp.ClientPayloadError):  # truncated: the part received may suffice
        while len(start) < MAX_REFUSAL_BYTES and (
            chunk := await content.read(MAX_REFUSAL_BYTES - len(start))
        ):
            start += chunk
    return bytes(start)


MAX_REFUSAL_BYTES = 4096
# A signed URL has about ten query parameters.
_MAX_PARAMETERS = 64

# Metadata that Snowflake's clients add to files they encrypt (SNOWFLAKE_FULL, a stage's default).
_ENCRYPTION_HEADERS = (
    "x-amz-meta-x-amz-key",
    "x-amz-meta-x-amz-iv",
    "x-ms-meta-encryptiondata",
    "x-goog-meta-encryptiondata",
)
_CODE = re.compile(rb"<Code>\s*(\w+)\s*</Code>")
_MISSING_CODES = frozenset({b"NoSuchKey", b"NoSuchBucket", b"BlobNotFound", b"ContainerNotFound"})
# Messages of S3, and of Azure for a signature and for a user delegation key.
_EXPIRED = re.compile(rb"Request has expired|Signature not valid in the specified (?:key )?time frame")


def refuse_encrypted(headers: Mapping[str, str]) -> None:
    """Raises ClientSideEncrypted if these case-insensitive response headers mark an encrypted file."""
    if any(headers.get(name) for name in _ENCRYPTION_HEADERS):
        raise ClientSideEncrypted(
            "A stage file must not be client-side encrypted. Received: an encrypted file; create the stage "
            "with ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE'), or pass the stage file's FILE_URL."
        )


def explain_refusal(status: int, query: str, body: bytes) -> InputError | None:
    """The error behind a status of 400 to 404, or None if a storage service gives no known reason.

    `query` is the URL's query string as sent, `body` the first MAX_REFUSAL_BYTES of the response.
    """
    code = _CODE.search(body)
    if status == 404 or (code and code[1] in _MISSING_CODES):
        return FileMissing(
            "A URL must point to an existing file. Received: not found; check the path, and run "
            "ALTER STAGE ... REFRESH if a directory table still lists it."
        )
    if (code and code[1] == b"ExpiredToken") or _EXPIRED.search(body) or _is_expired(query):
        return UrlExpired(
            "A signed URL must be valid when its image is fetched. Received: an expired URL; pass a "
            "new GET_PRESIGNED_URL(@stage, relative_path, seconds) with more seconds, or the stage file's "
            "FILE_URL."
        )
    if status in {401, 403}:
        return AccessDenied(
            f"The storage service must allow access to the URL. Received: {status}; pass a signed URL, "
            "unchanged, or change the storage's access policy. S3 also answers this for a missing file if "
            "the signer may not list the bucket."
        )
    return None


def _is_expired(query: str) -> bool:
    try:
        parameters = parse_qsl(query, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return False
    expiry = _expiry({name.lower(): value for name, value in parameters})
    return expiry is not None and expiry <= datetime.now(UTC)


def _expiry(parameters: Mapping[str, str]) -> datetime | None:
    """When a signed URL expires: Signature Version 4 of S3 and Google, an Azure SAS, or Version 2."""
    try:
        for cloud in ("x-amz", "x-goog"):
            if f"{cloud}-date" in parameters:
                signed = datetime.strptime(parameters[f"{cloud}-date"], "%Y%m%dT%H%M%S%z")
                return signed + timedelta(seconds=int(parameters[f"{cloud}-expires"]))
        if "se" in parameters:
            end = datetime.fromisoformat(parameters["se"])
            return end if end.tzinfo else end.replace(tzinfo=UTC)
        return datetime.fromtimestamp(int(parameters["expires"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):  # unsigned, or an unknown format
        return None
