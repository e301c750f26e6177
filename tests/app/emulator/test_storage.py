"""Signed URLs over HTTPS, and the responses of the storage."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

from app.emulator import LocalServer, Stage
from tests.app.emulator.sql import Sql

Fetch = Callable[..., tuple[int, bytes]]


@pytest.fixture
def stage(server: LocalServer, tmp_path: Path) -> Stage:
    """A mounted folder with two images, a text file, and links that lead out of it."""
    folder = tmp_path / "images"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"bytes of a")
    (folder / "sub dir" / "é%41 #1.png").write_bytes(b"bytes of b")
    (folder / "notes.txt").write_bytes(b"notes")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_bytes(b"private")
    (folder / ".hidden.png").write_bytes(b"hidden")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "outside").symlink_to(tmp_path)
    return server.mount(folder)


@pytest.fixture
def fetch(server: LocalServer) -> Fetch:
    context = ssl.create_default_context(cafile=str(server.authority_file))

    def fetch(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(url, method=method, data=body)  # noqa: S310 - https or http
        try:
            with urllib.request.urlopen(request, context=context, timeout=10) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    return fetch


def sign(sql: Sql, path: str, seconds: int = 60) -> str:
    return str(sql.value("SELECT GET_PRESIGNED_URL(@LOCAL.PUBLIC.IMAGES, %s, %s)", (path, seconds)))


@pytest.mark.parametrize(
    ("path", "content"), [("a.png", b"bytes of a"), ("sub dir/é%41 #1.png", b"bytes of b")]
)
def test_signed_url_returns_the_file(sql: Sql, stage: Stage, fetch: Fetch, path: str, content: bytes) -> None:
    assert fetch(sign(sql, path)) == (200, content)


def test_head_is_answered_without_a_body(sql: Sql, stage: Stage, fetch: Fetch) -> None:
    assert fetch(sign(sql, "a.png"), "HEAD") == (200, b"")


def test_storage_certificate_is_untrusted_by_default(sql: Sql, stage: Stage) -> None:
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(sign(sql, "a.png"), timeout=10)  # noqa: S310


def test_missing_file_is_no_such_key(sql: Sql, stage: Stage, fetch: Fetch) -> None:
    status, body = fetch(sign(sql, "nothing.png"))
    assert status == 404
    assert b"<Code>NoSuchKey</Code>" in body


def test_expired_url_is_refused(server: LocalServer, stage: Stage, fetch: Fetch) -> None:
    url = server.local.storage.sign(stage, "a.png", 1)
    while (answer := fetch(url))[0] == 200:
        assert answer == (200, b"bytes of a")
    assert answer[0] == 403
    assert b"Request has expired" in answer[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a.png?", "b.png?"),
        ("/IMAGES/", "/OTHER/"),
        ("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        ("X-Amz-Date=2", "X-Amz-Date=3"),
        ("X-Amz-Signature=", "X-Amz-Signature=0"),
        ("&X-Amz-Signature=", "&overwrite=true&X-Amz-Signature="),
        ("X-Amz-Signature", "x"),
        ("?", "?x=1&"),
        ("?X-Amz", "?X-Amz-Expires=600000&X-Amz"),
        ("X-Amz-Signature=", "X-Amz-Signature=%C3%A9"),
    ],
)
def test_tampered_url_is_refused(sql: Sql, stage: Stage, fetch: Fetch, old: str, new: str) -> None:
    url = sign(sql, "a.png")
    assert fetch(url)[0] == 200
    assert old in url
    status, body = fetch(url.replace(old, new, 1))
    assert status == 403
    assert b"SignatureDoesNotMatch" in body


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "PATCH"])
def test_signed_get_url_refuses_other_methods(sql: Sql, stage: Stage, fetch: Fetch, method: str) -> None:
    status, _ = fetch(sign(sql, "a.png"), method, b"other bytes")
    assert status == (403 if method == "PUT" else 405)
    assert fetch(sign(sql, "a.png")) == (200, b"bytes of a")


def test_storage_refuses_urls_of_the_other_storage(server: LocalServer, stage: Stage, fetch: Fetch) -> None:
    url = urlsplit(server.local.storage.sign(stage, "a.png", 60))
    assert fetch(f"http://127.0.0.1:{server.port}{url.path}?{url.query}")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "sub dir/../../secret.png",
        "sub dir/../a.png",
        "./a.png",
        "//a.png",
        "/a.png",
        "outside/secret.png",
        "link.png",
        ".hidden.png",
        ".git/config",
        "sub dir",
        "",
        "a.png/",
        "a.png/b.png",
        "nul\0.png",
        "x" * 5000 + ".png",
    ],
    ids=range(16),
)
def test_nothing_but_the_shown_files_of_the_folder_is_served(
    server: LocalServer, stage: Stage, fetch: Fetch, path: str
) -> None:
    url = server.local.storage.sign(stage, path, 60)
    assert fetch(url)[0] == 404


def test_absolute_paths_and_encoded_dots_are_refused(
    server: LocalServer, stage: Stage, fetch: Fetch, tmp_path: Path
) -> None:
    absolute = server.local.storage.sign(stage, str(tmp_path / "secret.png"), 60)
    assert fetch(absolute)[0] == 404
    url = server.local.storage.sign(stage, "a.png", 60)
    for path in ("%2e%2e/secret.png", "%2e%2e%2fsecret.png", "..%2f..%2fetc/passwd"):
        assert fetch(url.replace("a.png", path))[0] == 403


def test_mounted_folder_lists_all_files_inside_it_but_hidden_ones(sql: Sql, stage: Stage) -> None:
    paths = ["a.png", "notes.txt", "sub dir/é%41 #1.png"]
    assert sql.column("LIST @local.public.images") == [f"images/{path}" for path in paths]
    assert sql.column("SELECT relative_path FROM DIRECTORY(@local.public.images)") == paths


def test_path_is_encoded_once(server: LocalServer, stage: Stage) -> None:
    path = urlsplit(server.local.storage.sign(stage, "sub dir/é%41 #1.png", 60)).path
    assert path == "/LOCAL/PUBLIC/IMAGES/" + quote("sub dir/é%41 #1.png")
    assert unquote(path).endswith("/sub dir/é%41 #1.png")


def test_dropped_stage_serves_nothing(sql: Sql, server: LocalServer, tmp_path: Path, fetch: Fetch) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    stage = server.mount(tmp_path, "OTHER_IMAGES")
    url = server.local.storage.sign(stage, "a.png", 60)
    assert fetch(url)[0] == 200
    sql.rows("DROP STAGE local.public.other_images")
    assert fetch(url)[0] == 404
    assert (tmp_path / "a.png").exists()


def test_unsigned_request_does_not_reveal_which_files_exist(
    server: LocalServer, stage: Stage, fetch: Fetch
) -> None:
    for origin in (f"https://{server.storage_host}", f"http://127.0.0.1:{server.port}"):
        answers = {fetch(f"{origin}/LOCAL/PUBLIC/IMAGES/{name}") for name in ("a.png", "nothing.png")}
        assert [status for status, _ in answers] == [403]
