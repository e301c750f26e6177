"""Where images may be fetched from: which URLs, and which addresses behind their names."""

import ipaddress
import re
from dataclasses import dataclass

from yarl import URL

from app.errors import UrlNotAllowed

HTTPS_PORT = 443
MAX_URL_CHARACTERS = 8192

_USER = re.compile(r"[^/?#]*//[^/?#]*@")

# IPv4 addresses spelt as IPv6, which may reach that IPv4 address: compatible (RFC 4291), NAT64 (RFC 6052).
_EMBEDDED = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96")))
# NAT64 for use inside one network (RFC 8215).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


@dataclass(frozen=True)
class Allowlist:
    """Patterns: `host` is that host, `.domain` every host below it, both on port 443; or `host:port`."""

    patterns: tuple[str, ...]
    allow_private_addresses: bool = False

    def check_url(self, text: str) -> URL:
        """The URL to request, exactly as it was signed. Raises UrlNotAllowed."""
        url = _parse(text)
        if url.scheme != "https":
            raise UrlNotAllowed(f"A URL must be https. Received: {url.scheme or 'no scheme'}.")
        host = url.raw_host
        if not host:
            raise UrlNotAllowed("A URL must name a host.")
        if _USER.match(text):
            raise UrlNotAllowed("A URL must not carry a user name or password.")
        if not any(_matches(pattern.lower(), host.lower(), url.port) for pattern in self.patterns):
            raise UrlNotAllowed(f"A URL's host must be on the allowlist. Received: {_host_and_port(url)}.")
        self._check_if_address(host)
        return url.with_fragment(None)

    def check_address(self, address: str) -> None:
        """Raises UrlNotAllowed for an address that is not on the public internet."""
        if not self.allow_private_addresses and not is_public(ipaddress.ip_address(address)):
            raise UrlNotAllowed("A URL's host must have public addresses only.")

    def _check_if_address(self, host: str) -> None:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return
        self.check_address(host)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether packets to `address` leave for the public internet, whatever form it is written in."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _EMBEDDED):
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.teredo is not None or address.is_site_local or address in _LOCAL_NAT64:
            return False
    return address.is_global and not address.is_multicast


def _parse(text: str) -> URL:
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlNotAllowed(
            f"A URL must have at most {MAX_URL_CHARACTERS} characters. Received: {len(text)}."
        )
    # Parsers disagree on backslashes, spaces and other scripts; a percent-encoded URL has none of them.
    if "\\" in text or not text.isascii() or not text.isprintable() or " " in text:
        raise UrlNotAllowed("A URL must be percent-encoded ASCII without spaces or backslashes.")
    try:
        url = URL(text, encoded=True)  # re-encoding would break a signature
        url.port  # noqa: B018 - yarl checks the port when it is asked for
        return url
    except ValueError:
        raise UrlNotAllowed("A URL must be well-formed (RFC 3986).") from None


def _matches(pattern: str, host: str, port: int | None) -> bool:
    name, _, explicit_port = pattern.partition(":")
    if port != (int(explicit_port) if explicit_port else HTTPS_PORT):
        return False
    return host.endswith(name) if name.startswith(".") else host == name


def _host_and_port(url: URL) -> str:
    return f"{url.raw_host}:{url.port}" if url.port != HTTPS_PORT else str(url.raw_host)
