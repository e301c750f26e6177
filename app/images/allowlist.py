"""The allowlist: which URLs the service may fetch, and which IP addresses their hosts may resolve to."""

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

from yarl import URL

from app.errors import UrlNotAllowed
from app.images.source import MAX_REFERENCE_CHARACTERS, Url, percent_decode
from app.settings import Settings

if TYPE_CHECKING:
    from app.images.http import ImageFetcher


HTTPS_PORT = 443
_MAX_PORT = 65535
MAX_URL_CHARACTERS = MAX_REFERENCE_CHARACTERS
# RFC 1035, section 2.3.4: 255 octets on the wire are 253 characters of text.
_MAX_HOST_CHARACTERS = 253

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,63}(?=:)", re.IGNORECASE)
_USER = re.compile(r"[^/?#]*//[^/?#]*@")
# Stricter than RFC 3986, so that all parsers find the same host.
_AUTHORITY = re.compile(
    r"https://(?P<host>[a-z0-9_-]{1,63}+(?:\.[a-z0-9_-]{1,63}+){0,126}+)(?::(?P<port>[0-9]{1,5}))?(?=[/?#]|\Z)",
    re.IGNORECASE,
)
# A host whose last label is numeric is parsed as an IPv4 address (URL Standard, section 3.5).
_NUMERIC_END = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)", re.IGNORECASE)

# A segment `.` or `..`, with the blanks and path parameters that some servers strip first.
_DOT_SEGMENT = re.compile(r"(?:\A|[/\\])[\x00-\x20]*+\.{1,2}(?=[\x00-\x20;/\\]|\Z)")
_MAX_DECODINGS = 3

# IPv6 that embeds an IPv4 address (RFC 6052); Python itself recognizes mapped and 6to4 addresses.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The only IPv6 range that is allocated for the public internet.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Python 3.11 reports these as global.
_NEVER_PUBLIC = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's platform services, reachable from every VM
    ipaddress.IPv4Network("192.0.0.0/24"),  # IETF assignments (RFC 6890); Oracle Cloud's metadata
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relay anycast (RFC 7526)
    ipaddress.IPv6Network("2001::/23"),  # IETF assignments, including Teredo
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)


@dataclass(frozen=True)
class Allowlist:
    """Patterns: `host` allows that host, `.domain` every host below it, both on port 443; or `host:port`.

    A `/prefix` after the host, such as a bucket or a container, allows only paths below it. A regular
    expression must match the whole host, in lower case, on port 443.
    """

    patterns: tuple[str | re.Pattern[str], ...]
    allow_private_addresses: bool = False

    def check_url(self, text: str) -> URL:
        """The URL to request: as it was signed, without its fragment. Raises UrlNotAllowed."""
        host, port = _parse_authority(text)
        matching = [pattern for pattern in self.patterns if _matches_host(pattern, host, port)]
        url = _parse_url(text) if matching else None
        if url is None or not any(_allows_path(pattern, url) for pattern in matching):
            raise UrlNotAllowed(
                "A URL's host must be on the allowlist, EXT_CLASSIFY_ALLOWED_URL_HOSTS, and so must its "
                "bucket if the list names buckets. "
                f"Received: {host if port == HTTPS_PORT else f'{host}:{port}'}."
            )
        if (url.raw_host or "").lower() != host or url.port != port:
            raise UrlNotAllowed("A URL must name the same host for every parser.")
        self._check_if_address(host)
        return url.with_fragment(None)

    def check_redirect(self, url: URL, location: str) -> URL:
        """The target of a redirect from `url`, checked like the URL of a row. Raises UrlNotAllowed."""
        target = _parse_url(location)
        return self.check_url(location if target.scheme else str(url.join(target)))

    def check_address(self, address: str) -> None:
        """Raises UrlNotAllowed for an address that is not on the public internet."""
        if not self.allow_private_addresses and not is_public(ipaddress.ip_address(address)):
            raise UrlNotAllowed(
                "A URL's host must have public addresses only, unless EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES "
                "is true. Received: a private address."
            )

    def _check_if_address(self, host: str) -> None:
        if not _NUMERIC_END.fullmatch(host):
            return
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise UrlNotAllowed(
                "An IPv4 address must be four decimal numbers without leading zeros."
            ) from None
        self.check_address(host)


_BUCKET = r"(?:[a-z0-9_][a-z0-9._-]*\.)?"
_AWS_REGION = r"[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}"

# Hosts of URLs that Snowflake signs: stages on S3 (with access points and VPC endpoints), Azure Blob Storage
# (with DNS zones), OneLake and Google Cloud Storage. Anyone can create a bucket there, so this list applies
# only to URLs that Snowflake returns, never to URLs in rows. Sources: the providers' documentation, and
# Snowflake's "AWS VPC interface endpoints for internal stages".
SNOWFLAKE_STORAGE = (
    re.compile(
        _BUCKET + r"s3(?:-fips|-accelerate)?(?:\.dualstack)?"
        rf"(?:[.-]{_AWS_REGION}|-external-1)?\.amazonaws\.com(?:\.cn)?"
    ),
    re.compile(
        r"[a-z0-9-]+\.s3-accesspoint(?:-fips)?(?:\.dualstack)?"
        rf"\.{_AWS_REGION}\.amazonaws\.com(?:\.cn)?"
    ),
    re.compile(
        _BUCKET + rf"vpce-[a-z0-9]+-[a-z0-9]+(?:-{_AWS_REGION}[a-z])?"
        rf"\.s3\.{_AWS_REGION}\.vpce\.amazonaws\.com(?:\.cn)?"
    ),
    re.compile(
        r"[a-z0-9]{3,24}\.(?:blob\.core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn)"
        r"|z[0-9]{1,2}\.blob\.storage\.azure\.net)"
    ),
    re.compile(
        r"(?:(?:[a-z0-9]+-)?onelake|[0-9a-f]{32}\.z[0-9a-f]{2})\.(?:blob|dfs)\.fabric\.microsoft\.com"
    ),
    re.compile(_BUCKET + r"storage\.googleapis\.com|storage\.[a-z]+-[a-z]+[0-9]{1,2}\.rep\.googleapis\.com"),
)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether `address` is on the public internet, including IPv6 that embeds an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address in network for network in _NEVER_PUBLIC):
        return False
    return address.is_global and not address.is_multicast


def _parse_authority(text: str) -> tuple[str, int]:
    """A URL's host in lower case, and its port. Raises UrlNotAllowed."""
    _check_text(text)
    scheme = _SCHEME.match(text)
    if scheme is None or scheme.group().lower() != "https":
        raise UrlNotAllowed(f"A URL must be https. Received: {scheme.group() if scheme else 'no scheme'}.")
    if _USER.match(text):
        raise UrlNotAllowed("A URL must not carry a user name or password.")
    authority = _AUTHORITY.match(text)
    if authority is None or len(authority["host"]) > _MAX_HOST_CHARACTERS:
        raise UrlNotAllowed("A URL must name a host, such as https://images.example.com/a.png.")
    port = int(authority["port"] or HTTPS_PORT)
    if port > _MAX_PORT:
        raise UrlNotAllowed("A URL must be well-formed (RFC 3986).")
    return authority["host"].lower(), port


def _check_text(text: str) -> None:
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlNotAllowed(
            f"A URL must have at most {MAX_URL_CHARACTERS} characters. Received: {len(text)}."
        )
    # Parsers disagree on backslashes, spaces and non-ASCII text; a percent-encoded URL has none of them.
    if "\\" in text or not text.isascii() or not text.isprintable() or " " in text:
        raise UrlNotAllowed("A URL must be percent-encoded ASCII without spaces or backslashes.")


def _parse_url(text: str) -> URL:
    _check_text(text)
    try:
        url = URL(text, encoded=True)  # re-encoding would break a signature
        url.port  # noqa: B018 - yarl validates the port on access
        return url
    except ValueError:
        raise UrlNotAllowed("A URL must be well-formed (RFC 3986).") from None


def _matches_host(pattern: str | re.Pattern[str], host: str, port: int) -> bool:
    if isinstance(pattern, re.Pattern):
        return port == HTTPS_PORT and pattern.fullmatch(host) is not None
    name, _, wanted_port = pattern.partition("/")[0].lower().partition(":")
    if port != (int(wanted_port) if wanted_port else HTTPS_PORT):
        return False
    return host.endswith(name) if name.startswith(".") else host == name


def _allows_path(pattern: str | re.Pattern[str], url: URL) -> bool:
    prefix = "" if isinstance(pattern, re.Pattern) else pattern.partition("/")[2]
    return not prefix or _is_below(prefix.rstrip("/"), url.raw_path)


def _is_below(prefix: str, path: str) -> bool:
    """Whether `path` lies below /prefix/, however a server decodes and resolves it."""
    return path.startswith(f"/{prefix}/") and not has_dot_segment(path)


def has_dot_segment(path: str) -> bool:
    """Whether `path` has a `.` or `..` segment; also true if it is undecodable or encoded too many times."""
    for _ in range(_MAX_DECODINGS):
        if _DOT_SEGMENT.search(path):
            return True
        try:
            decoded = percent_decode(path)
        except ValueError:
            return True
        if decoded == path:
            return False
        path = decoded
    return True


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
