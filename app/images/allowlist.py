"""Where images may be fetched from: which URLs, and which addresses behind their names."""

import ipaddress
import re
from dataclasses import dataclass

from yarl import URL

from app.errors import UrlNotAllowed
from app.images.source import MAX_REFERENCE_CHARACTERS
from app.images.stage_file import percent_decode

HTTPS_PORT = 443
_MAX_PORT = 65535
MAX_URL_CHARACTERS = MAX_REFERENCE_CHARACTERS
# RFC 1035, section 2.3.4: 255 octets, two of which a text has no characters for.
_MAX_HOST_CHARACTERS = 253

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,63}(?=:)", re.IGNORECASE)
_USER = re.compile(r"[^/?#]*//[^/?#]*@")
# Narrower than RFC 3986, so that no two parsers can read two hosts out of it.
_AUTHORITY = re.compile(
    r"https://(?P<host>[a-z0-9_-]{1,63}+(?:\.[a-z0-9_-]{1,63}+){0,126}+)(?::(?P<port>[0-9]{1,5}))?(?=[/?#]|\Z)",
    re.IGNORECASE,
)
# A host that ends so is an IPv4 address in one of its many spellings (URL Standard, section 3.5).
_NUMERIC_END = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)", re.IGNORECASE)

# A segment `.` or `..`, and what some servers cut off before they look: blanks, path parameters.
_DOT_SEGMENT = re.compile(r"(?:\A|[/\\])[\x00-\x20]*+\.{1,2}(?=[\x00-\x20;/\\]|\Z)")
_MAX_DECODINGS = 3

# IPv6 that reaches the IPv4 address within (RFC 6052); mapped and 6to4 addresses are Python's to tell.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All that IPv6 has handed out to the internet.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Python 3.11 takes these for the internet's.
_NEVER_PUBLIC = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's host, to its guests
    ipaddress.IPv4Network("192.0.0.0/24"),  # IETF assignments (RFC 6890); Oracle Cloud's metadata
    ipaddress.IPv4Network("192.88.99.0/24"),  # the nearest 6to4 relay (RFC 7526)
    ipaddress.IPv6Network("2001::/23"),  # IETF assignments, Teredo among them
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)


@dataclass(frozen=True)
class Allowlist:
    """Patterns: `host` is that host, `.domain` every host below it, both on port 443; or `host:port`.

    With `/prefix` behind, such as a bucket or a container, only paths below that prefix. A regular expression
    must match the whole host, in lower case, on port 443.
    """

    patterns: tuple[str | re.Pattern[str], ...]
    allow_private_addresses: bool = False

    def check_url(self, text: str) -> URL:
        """The URL to request, exactly as it was signed. Raises UrlNotAllowed."""
        host, port = _parse_authority(text)
        served = [pattern for pattern in self.patterns if _serves(pattern, host, port)]
        url = _well_formed(text) if served else None
        if url is None or not any(_reaches(pattern, url) for pattern in served):
            raise UrlNotAllowed(
                "A URL's host must be on the allowlist, and its bucket where the list names buckets. "
                f"Received: {host if port == HTTPS_PORT else f'{host}:{port}'}."
            )
        if (url.raw_host or "").lower() != host or url.port != port:
            raise UrlNotAllowed("A URL must name one host to all parsers.")
        self._check_if_address(host)
        return url.with_fragment(None)

    def check_redirect(self, url: URL, location: str) -> URL:
        """Where a redirect from `url` leads, checked as if a row had named it. Raises UrlNotAllowed."""
        target = _well_formed(location)
        return self.check_url(location if target.scheme else str(url.join(target)))

    def check_address(self, address: str) -> None:
        """Raises UrlNotAllowed for an address that is not on the public internet."""
        if not self.allow_private_addresses and not is_public(ipaddress.ip_address(address)):
            raise UrlNotAllowed("A URL's host must have public addresses only.")

    def _check_if_address(self, host: str) -> None:
        if not _NUMERIC_END.fullmatch(host):
            return
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise UrlNotAllowed(
                "An IPv4 address must be four decimal numbers without zeros in front."
            ) from None
        self.check_address(host)


_BUCKET = r"(?:[a-z0-9_][a-z0-9._-]*\.)?"
_AWS_REGION = r"[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}"

# Where URLs that Snowflake signs lead: stages on S3, Azure Blob Storage and Google Cloud Storage. Anyone may
# keep a bucket there, so these are for URLs from Snowflake itself, not for those of rows.
SNOWFLAKE_STORAGE = (
    re.compile(
        _BUCKET + r"s3(?:-fips|-accelerate)?(?:\.dualstack)?"
        rf"(?:[.-]{_AWS_REGION}|-external-1)?\.amazonaws\.com(?:\.cn)?"
    ),
    re.compile(r"[a-z0-9]{3,24}\.blob\.core\.(?:windows\.net|usgovcloudapi\.net|chinacloudapi\.cn)"),
    re.compile(_BUCKET + r"storage\.googleapis\.com|storage\.[a-z]+-[a-z]+[0-9]{1,2}\.rep\.googleapis\.com"),
)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether packets to `address` leave for the public internet, whatever form it is written in."""
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
    # Parsers disagree on backslashes, spaces and other scripts; a percent-encoded URL has none of them.
    if "\\" in text or not text.isascii() or not text.isprintable() or " " in text:
        raise UrlNotAllowed("A URL must be percent-encoded ASCII without spaces or backslashes.")


def _well_formed(text: str) -> URL:
    _check_text(text)
    try:
        url = URL(text, encoded=True)  # re-encoding would break a signature
        url.port  # noqa: B018 - yarl checks the port when it is asked for
        return url
    except ValueError:
        raise UrlNotAllowed("A URL must be well-formed (RFC 3986).") from None


def _serves(pattern: str | re.Pattern[str], host: str, port: int) -> bool:
    if isinstance(pattern, re.Pattern):
        return port == HTTPS_PORT and pattern.fullmatch(host) is not None
    name, _, wanted_port = pattern.partition("/")[0].lower().partition(":")
    if port != (int(wanted_port) if wanted_port else HTTPS_PORT):
        return False
    return host.endswith(name) if name.startswith(".") else host == name


def _reaches(pattern: str | re.Pattern[str], url: URL) -> bool:
    prefix = "" if isinstance(pattern, re.Pattern) else pattern.partition("/")[2]
    return not prefix or _is_below(prefix.rstrip("/"), url.raw_path)


def _is_below(prefix: str, path: str) -> bool:
    """Whether a path, as it is sent, lies below /prefix/ however a server may decode and resolve it."""
    return path.startswith(f"/{prefix}/") and not has_dot_segment(path)


def has_dot_segment(path: str) -> bool:
    """Also true where that cannot be told: undecodable text, or encoded over and over."""
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
