import ipaddress

import pytest

from app.errors import UrlNotAllowed
from app.images.allowlist import Allowlist, is_public

ALLOWLIST = Allowlist(("images.example.com", ".blob.example.net", "store.example.org:9000"))


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/a.png",
        "HTTPS://IMAGES.EXAMPLE.COM/a.png",
        "https://images.example.com:443/a.png",
        "https://mill.blob.example.net/a.png?sig=a%2Fb%3D",
        "https://a.b.blob.example.net/",
        "https://store.example.org:9000/a",
    ],
)
def test_allowed_url_passes(url: str) -> None:
    ALLOWLIST.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.com/a.png",
        "ftp://images.example.com/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "gopher://images.example.com/",
        "https:images.example.com/a",
        "https:///a",
        "https://",
        "https://images.example.com:8443/a",
        "https://images.example.com:99999/a",
        "https://images.example.com:x/a",
        "https://images.example.com./a",
        "https://images.example.com.evil.net/a",
        "https://evilimages.example.com/a",
        "https://sub.images.example.com/a",
        "https://blob.example.net/a",
        "https://evilblob.example.net/a",
        "https://store.example.org/a",
        "https://user@images.example.com/a",
        "https://user:word@images.example.com/a",
        "https://@images.example.com/a",
        "https://images.example.com@evil.net/a",
        "https://evil.net#@images.example.com/a",
        "https://evil.net?@images.example.com/a",
        "https://evil.net\\@images.example.com/a",
        "https://images.example.com\\.evil.net/a",
        "https://images.example.com/a b",
        "https://images.example.com/a\nb",
        "https://images.example.com/\r\nHost: evil.net",
        "https://images。example。com/a",
        "https://ımages.example.com/a",
        "https://images.example.com/ü",
        "https://%69mages.example.com/a",
        "https://[::1]/a",
        "https://[::ffff:127.0.0.1]/a",
        "https://[images.example.com]/a",
        "https://127.0.0.1/a",
        "https://2130706433/a",
        "https://0x7f.1/a",
        "https://0177.0.0.1/a",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/a",
        "https://images.example.com/" + "a" * 9000,
    ],
)
def test_other_url_is_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        ALLOWLIST.check_url(url)


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(UrlNotAllowed, match="allowlist"):
        Allowlist(()).check_url("https://images.example.com/a")


def test_signature_comes_through_as_it_was_signed() -> None:
    signed = "https://images.example.com/a%20b/%C3%BC+%2B.png?X-Sig=a%2Fb%2bc%3D&e=&x=1%3B2"
    assert str(ALLOWLIST.check_url(signed + "#part")) == signed


def test_address_on_the_allowlist_must_still_be_public() -> None:
    with pytest.raises(UrlNotAllowed, match="public"):
        Allowlist(("10.0.0.5",)).check_url("https://10.0.0.5/a")
    Allowlist(("10.0.0.5",), allow_private_addresses=True).check_url("https://10.0.0.5/a")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_address_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "255.255.255.255",
        "224.0.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
    ],
)
def test_other_address_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
