import ipaddress
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UrlNotAllowed
from app.images import allowlist
from app.images.allowlist import SNOWFLAKE_STORAGE, Allowlist, has_dot_segment, is_public

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
def test_allowed_url_is_accepted(url: str) -> None:
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
        "https://[v1.blob.example.net]/a",
        "https://images.example.com:+443/a",
        "https://store.example.org:9_000/a",
        "https://images.example.com:443:443/a",
        "https://images.example.com:0/a",
        "https://evil.net%2f.blob.example.net/a",
        "https://evil.net;.blob.example.net/a",
        "https://evil.net,.blob.example.net/a",
        "https://.blob.example.net/a",
        "https://a..blob.example.net/a",
        "https://127.0.0.1/a",
        "https://2130706433/a",
        "https://0x7f.1/a",
        "https://0177.0.0.1/a",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/a",
        "https://images.example.com/" + "a" * 9000,
    ],
)
def test_other_url_is_rejected(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        ALLOWLIST.check_url(url)


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://images.example.com/a", "must be https. Received: http"),
        ("images.example.com/a", "must be https. Received: no scheme"),
        ("https://user:secret@images.example.com/a", "user name"),
        ("https:///a", "name a host"),
        ("https://images.example.com:99999/a", "well-formed"),
        ("https://images.example.com/a b", "percent-encoded"),
        ("https://images.example.com/" + "a" * 9000, "at most 8192 characters. Received: 9027"),
        (
            "https://evil.example.com:9000/a",
            "EXT_CLASSIFY_ALLOWED_URL_HOSTS.* Received: evil.example.com:9000",
        ),
    ],
)
def test_refusal_states_the_rule_that_was_broken(url: str, rule: str) -> None:
    with pytest.raises(UrlNotAllowed, match=rule) as raised:
        ALLOWLIST.check_url(url)
    assert "secret" not in raised.value.message


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(UrlNotAllowed, match="allowlist"):
        Allowlist(()).check_url("https://images.example.com/a")


BUCKETS = Allowlist((
    "s3.eu-central-1.amazonaws.com/mill-images",
    "storage.example.org:9000/mill/strips",
    ".blob.core.windows.net/$root",
    "slash.example.com/bucket/",
))  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.eu-central-1.amazonaws.com/mill-images/a.png",
        "https://S3.EU-central-1.AMAZONAWS.com/mill-images/a/b.png?X-Amz-Signature=a%2Fb",
        "https://s3.eu-central-1.amazonaws.com/mill-images/",
        "https://s3.eu-central-1.amazonaws.com/mill-images/100%25.png",
        "https://s3.eu-central-1.amazonaws.com/mill-images/50%2525.png",
        "https://s3.eu-central-1.amazonaws.com/mill-images/..a/.b/c../.../d.png",
        "https://s3.eu-central-1.amazonaws.com/mill-images/strip%207/%C3%BC+%2B.png",
        "https://s3.eu-central-1.amazonaws.com/mill-images/a%2Fb.png",
        "https://s3.eu-central-1.amazonaws.com/mill-images/a.png?next=../../",
        "https://storage.example.org:9000/mill/strips/a.png",
        "https://account.blob.core.windows.net/$root/a.png",
        "https://slash.example.com/bucket/a.png",
    ],
)
def test_url_below_an_allowed_prefix_is_accepted(url: str) -> None:
    assert str(BUCKETS.check_url(url)) == url


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "?/mill-images/",
        "#/mill-images/",
        "/mill-images",
        "/mill-images?a",
        "/mill-images-evil/a",
        "/mill-image/a",
        "/MILL-IMAGES/a",
        "/evil/mill-images/a",
        "//mill-images/a",
        "/./mill-images/a",
        "/evil/../mill-images/a",
        "/%6dill-images/a",
        "/mill-images%2fa",
        "/mill-images%2Fa/b",
        "/mill-images%00/a",
        "/mill-images;/a",
        "/mill-images/../evil/a",
        "/mill-images/..",
        "/mill-images/.",
        "/mill-images/./a",
        "/mill-images/a/../../evil/a",
        "/mill-images/%2e%2e/evil/a",
        "/mill-images/%2E%2e/evil/a",
        "/mill-images/.%2E/evil/a",
        "/mill-images/%2e./evil/a",
        "/mill-images/%2e/a",
        "/mill-images/..%2fevil/a",
        "/mill-images/..%2Fevil%2Fa",
        "/mill-images/a%2f..%2f..%2fevil/a",
        "/mill-images/%2f..%2f../evil",
        "/mill-images/..%5cevil/a",
        "/mill-images/%252e%252e/evil/a",
        "/mill-images/%25252e%25252e/evil/a",
        "/mill-images/%2525252e%2525252e/evil/a",
        "/mill-images/%25%32%65%25%32%65/evil/a",
        "/mill-images/..%252fevil/a",
        "/mill-images/..;/evil/a",
        "/mill-images/..;a=b/evil/a",
        "/mill-images/..%3b/evil/a",
        "/mill-images/..%00/evil/a",
        "/mill-images/..%20/evil/a",
        "/mill-images/%09../evil/a",
        "/mill-images/%0a..%0d/evil/a",
        "/mill-images/%c0%ae%c0%ae/evil/a",
        "/mill-images/%ff",
        "/mill-images/%" + "25" * 3000 + "2e",
    ],
)
def test_path_outside_the_allowed_prefix_is_rejected(path: str) -> None:
    with pytest.raises(UrlNotAllowed, match="bucket"):
        BUCKETS.check_url(f"https://s3.eu-central-1.amazonaws.com{path}")


@pytest.mark.parametrize(
    "url",
    [
        "https://storage.example.org/mill/strips/a.png",
        "https://storage.example.org:9000/mill/a.png",
        "https://storage.example.org:9000/mill/strips%2Fa.png",
        "https://storage.example.org:9000/mill%2Fstrips/a.png",
        "https://evil.example.org:9000/mill/strips/a.png",
        "https://mill-images.s3.eu-central-1.amazonaws.com/mill-images/a.png",
        "https://account.blob.core.windows.net/other/a.png",
        "https://account.blob.core.windows.net/%24root/a.png",
    ],
)
def test_prefix_on_another_host_or_port_is_rejected(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        BUCKETS.check_url(url)


def test_error_message_does_not_contain_the_path() -> None:
    with pytest.raises(UrlNotAllowed) as raised:
        BUCKETS.check_url("https://s3.eu-central-1.amazonaws.com/secret/a?sig=secret")
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    "host",
    [
        "s3.amazonaws.com",
        "s3.us-east-1.amazonaws.com",
        "s3-us-west-2.amazonaws.com",
        "mill.s3.amazonaws.com",
        "mill.s3.eu-central-1.amazonaws.com",
        "mill.s3-eu-west-1.amazonaws.com",
        "mill.images.of.2026.s3.ap-southeast-2.amazonaws.com",
        "mill_images.s3.us-east-1.amazonaws.com",
        "mill.s3.dualstack.us-west-2.amazonaws.com",
        "mill.s3-fips.us-gov-west-1.amazonaws.com",
        "mill.s3-fips.dualstack.us-gov-east-1.amazonaws.com",
        "mill.s3-fips-us-gov-west-1.amazonaws.com",
        "mill.s3-accelerate.amazonaws.com",
        "mill.s3-external-1.amazonaws.com",
        "mill.s3.cn-north-1.amazonaws.com.cn",
        "sfc-prod3-ds1-16-customer-stage.s3.us-west-2.amazonaws.com",
        "mill-123456789012.s3-accesspoint.eu-central-1.amazonaws.com",
        "mill-123456789012.s3-accesspoint.dualstack.us-west-2.amazonaws.com",
        "mill-123456789012.s3-accesspoint-fips.us-gov-west-1.amazonaws.com",
        "mill-123456789012.s3-accesspoint.cn-north-1.amazonaws.com.cn",
        "bucket.vpce-0a1b2c3d-4e5f6a7b.s3.us-east-1.vpce.amazonaws.com",
        "mill.images.bucket.vpce-0a1b2c3d-4e5f6a7b.s3.us-east-1.vpce.amazonaws.com",
        "bucket.vpce-0a1b2c3d-4e5f6a7b-us-east-1a.s3.us-east-1.vpce.amazonaws.com",
        "sfc-customer-stage.vpce-0a1b2c3d-abcdefgh.s3.us-west-2.vpce.amazonaws.com",
        "mill-123456789012.accesspoint.vpce-0a1b2c3d-4e5f6a7b.s3.us-east-1.vpce.amazonaws.com",
        "sfcprodstage16.blob.core.windows.net",
        "strips.z01.blob.storage.azure.net",
        "strips.z7.blob.storage.azure.net",
        "onelake.dfs.fabric.microsoft.com",
        "onelake.blob.fabric.microsoft.com",
        "westeurope-onelake.dfs.fabric.microsoft.com",
        f"{'0af' * 10}01.z0a.blob.fabric.microsoft.com",
        "sfcgovstage.blob.core.usgovcloudapi.net",
        "sfccnstage.blob.core.chinacloudapi.cn",
        "storage.googleapis.com",
        "mill-images.storage.googleapis.com",
        "mill.images.storage.googleapis.com",
        "storage.me-central2.rep.googleapis.com",
    ],
)
def test_snowflake_storage_hosts_are_recognized(host: str) -> None:
    Allowlist(SNOWFLAKE_STORAGE).check_url(f"https://{host}/a?sig=b")


@pytest.mark.parametrize(
    "host",
    [
        "amazonaws.com",
        "ec2-1-2-3-4.compute-1.amazonaws.com",
        "ec2-1-2-3-4.eu-central-1.compute.amazonaws.com",
        "mill-123.us-east-1.elb.amazonaws.com",
        "abc123.execute-api.us-east-1.amazonaws.com",
        "sts.amazonaws.com",
        "lambda.us-east-1.amazonaws.com",
        "abc.lambda-url.us-east-1.on.aws",
        "s3-website-us-east-1.amazonaws.com",
        "mill.s3-website-us-east-1.amazonaws.com",
        "mill.s3-website.eu-central-1.amazonaws.com",
        "123.s3-control.us-east-1.amazonaws.com",
        "mill-123.s3-object-lambda.us-east-1.amazonaws.com",
        "s3tables.us-east-1.amazonaws.com",
        "s3.evil.amazonaws.com",
        "s3.evil.amazonaws.com.evil.com",
        "s3.us-east-1.amazonaws.com.evil.com",
        "mill.s3.amazonaws.com.",
        "mill.s3.amazonaws.com.cn.evil.com",
        "evil-s3.amazonaws.com",
        "evil-s3.amazonaws.com.",
        "evils3.us-east-1.amazonaws.com",
        "s3.us-east-1.evilamazonaws.com",
        "s3.us-east-1-amazonaws.com",
        "s3xamazonaws.com",
        "s3.us-east-1xamazonaws.com",
        "s3.amazonaws.com:8443",
        ".s3.amazonaws.com",
        "a..s3.amazonaws.com",
        "mill.evil.s3-accesspoint.eu-central-1.amazonaws.com",
        "s3-accesspoint.eu-central-1.amazonaws.com",
        "mill.s3-accesspoint.evil.amazonaws.com",
        "mill.s3-accesspoint.eu-central-1.amazonaws.com.evil.com",
        "mill.s3-accesspoint.eu-central-1.vpce.amazonaws.com",
        "s3.us-east-1.vpce.amazonaws.com",
        "bucket.s3.us-east-1.vpce.amazonaws.com",
        "vpce-0a1b2c3d-4e5f6a7b.execute-api.us-east-1.vpce.amazonaws.com",
        "vpce-svc-0a1b2c3d.us-east-1.vpce.amazonaws.com",
        "bucket.vpce-0a1b2c3d-4e5f6a7b.s3.evil.vpce.amazonaws.com",
        "bucket.vpce-0a1b2c3d-4e5f6a7b.s3.us-east-1.vpce.amazonaws.com.evil.com",
        "bucket.evilvpce-0a1b.s3.us-east-1.vpce.amazonaws.com",
        "strips.blob.storage.azure.net",
        "strips.z01.file.storage.azure.net",
        "strips.evil.z01.blob.storage.azure.net",
        "strips.z01.blob.storage.azure.net.evil.com",
        "blob.storage.azure.net",
        "fabric.microsoft.com",
        "dfs.fabric.microsoft.com",
        "evilonelake.dfs.fabric.microsoft.com",
        "onelake.dfs.fabric.microsoft.com.evil.com",
        "a.onelake.dfs.fabric.microsoft.com",
        "onelake.api.fabric.microsoft.com",
        "onelake.dfs.pbidedicated.windows.net",
        "blob.core.windows.net",
        "account.dfs.core.windows.net",
        "account.file.core.windows.net",
        "a.b.blob.core.windows.net",
        "account.blob.core.windows.net.evil.com",
        "accountxblob.core.windows.net",
        "account.blob.core.windows.com",
        "account-x.blob.core.windows.net",
        "evilstorage.googleapis.com",
        "storage.googleapis.com.evil.com",
        "compute.googleapis.com",
        "storage.evil.rep.googleapis.com",
        "mill.storage.me-central2.rep.googleapis.com",
        "169.254.169.254",
        "metadata.google.internal",
    ],
)
def test_host_that_only_resembles_a_storage_is_refused(host: str) -> None:
    with pytest.raises(UrlNotAllowed):
        Allowlist(SNOWFLAKE_STORAGE).check_url(f"https://{host}/a?sig=b")


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "a.0x7f", "1.2.3.4.5"]
)
def test_nonstandard_ipv4_address_is_rejected_even_if_on_the_allowlist(host: str) -> None:
    with pytest.raises(UrlNotAllowed, match="four decimal numbers"):
        Allowlist((host, ".0x7f"), allow_private_addresses=True).check_url(f"https://{host}/a")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b", "https://images.example.com/b"),
        ("b?sig=%2F", "https://images.example.com/a/b?sig=%2F"),
        ("?b", "https://images.example.com/a/c?b"),
        ("../../../b", "https://images.example.com/b"),
        ("//a.blob.example.net/b", "https://a.blob.example.net/b"),
        ("https://store.example.org:9000/b%2Fc#d", "https://store.example.org:9000/b%2Fc"),
    ],
)
def test_redirect_is_resolved_against_its_url(location: str, target: str) -> None:
    url = ALLOWLIST.check_url("https://images.example.com/a/c?d")
    assert str(ALLOWLIST.check_redirect(url, location)) == target


@pytest.mark.parametrize(
    "location",
    [
        "/evil/a",
        "../evil/a",
        "/mill-images/%2e%2e/evil",
        "//s3.eu-central-1.amazonaws.com/evil/a",
        "http:",
        "https://[",
    ],
)
def test_redirect_out_of_the_bucket_is_rejected(location: str) -> None:
    url = BUCKETS.check_url("https://s3.eu-central-1.amazonaws.com/mill-images/a.png")
    with pytest.raises(UrlNotAllowed):
        BUCKETS.check_redirect(url, location)


def test_signed_url_is_unchanged() -> None:
    signed = "https://images.example.com/a%20b/%C3%BC+%2B.png?X-Sig=a%2Fb%2bc%3D&e=&x=1%3B2"
    assert str(ALLOWLIST.check_url(signed + "#part")) == signed


def test_private_address_is_rejected_even_if_on_the_allowlist() -> None:
    with pytest.raises(UrlNotAllowed, match="EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES"):
        Allowlist(("10.0.0.5",)).check_url("https://10.0.0.5/a")
    Allowlist(("10.0.0.5",), allow_private_addresses=True).check_url("https://10.0.0.5/a")


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
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
        "240.0.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.88.99.1",
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
        "2001:0:808:808::",
        "::8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::",
        "fe80::1%eth0",
        "::1%lo",
        "4000::1",
        "5f00::1",
        "3fff::1",
        "100::1",
    ],
)
def test_other_address_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@given(
    st.lists(
        st.sampled_from(
            ["/", "\\", ".", "..", "...", ";", " ", "%2e", "%2f", "%20", "%252e", "a", "%", "%ff", "%5c"]
        )
    ).map("".join)
)
def test_dot_segments_are_found_in_every_encoding(path: str) -> None:
    """Compares has_dot_segment with a loop over the segments."""
    segment = re.compile(r"[\x00-\x20]*\.{1,2}([\x00-\x20;].*)?", re.DOTALL)

    def has_dots(path: str, decodings: int) -> bool:
        if decodings == 0 or any(segment.fullmatch(part) for part in re.split(r"[/\\]", path)):
            return True
        try:
            decoded = unquote(path, errors="strict")
        except UnicodeDecodeError:
            return True
        return decoded != path and has_dots(decoded, decodings - 1)

    assert has_dot_segment(path) == has_dots(path, 3)


@pytest.mark.parametrize("path", ["/" * 8000, "%22" * 2600, "?" + "&a=" * 2600, "#" + "%" * 8000])
def test_url_of_another_host_is_refused_by_its_host_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_none(*_: object, **__: object) -> None:
        raise AssertionError("the path must not be parsed")

    monkeypatch.setattr(allowlist, "URL", parse_none)
    monkeypatch.setattr(allowlist, "has_dot_segment", parse_none)
    with pytest.raises(UrlNotAllowed, match=r"must be on the allowlist.*Received: evil\.net\."):
        ALLOWLIST.check_url(f"https://evil.net/{path}")


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        (f"{'a' * 63}.blob.example.net", True),
        (f"{'a' * 64}.blob.example.net", False),
        ("a." * 118 + "blob.example.net", True),
        ("a." * 119 + "blob.example.net", False),
        ("a." * 4000 + "blob.example.net", False),
    ],
)
def test_host_has_at_most_253_characters(host: str, is_allowed: bool) -> None:
    if is_allowed:
        assert ALLOWLIST.check_url(f"https://{host}/a").host == host
    else:
        with pytest.raises(UrlNotAllowed) as refused:
            ALLOWLIST.check_url(f"https://{host}/a")
        assert len(refused.value.message) < 200


def test_long_scheme_is_not_in_the_error_message() -> None:
    with pytest.raises(UrlNotAllowed, match=r"must be https\. Received: no scheme\."):
        ALLOWLIST.check_url(f"{'a' * 8000}:x")
