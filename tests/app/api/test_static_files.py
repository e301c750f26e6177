from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.api.pages import StaticFiles


@pytest.fixture
def files(tmp_path: Path) -> TestClient:
    (tmp_path / "page.html").write_text("<p>Hello</p>", encoding="utf-8")
    (tmp_path / "code.py").write_text("secret", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    return TestClient(StaticFiles(tmp_path, {"cache-control": "no-cache"}))


def test_file_is_served_with_its_type(files: TestClient) -> None:
    answer = files.get("/page.html")
    assert (answer.status_code, answer.text) == (200, "<p>Hello</p>")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-cache"
    assert files.head("/page.html").status_code == 200


def test_current_copy_of_a_file_is_not_modified(files: TestClient) -> None:
    etag = files.get("/page.html").headers["etag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}'):
        answer = files.get("/page.html", headers={"if-none-match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
    for condition in ('"other"', f"{',' * 10_000}{etag}"):
        assert files.get("/page.html", headers={"if-none-match": condition}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/none", "/code.py", "/folder", "/page.html/", "/%2e%2e/page.html", "/a" * 4000]
)
def test_other_path_is_unknown(files: TestClient, path: str) -> None:
    with pytest.raises(Exception, match="404"):
        files.get(path)


def test_range_is_ignored(files: TestClient) -> None:
    assert files.get("/page.html", headers={"range": "bytes=0-0,1-1,2-2"}).text == "<p>Hello</p>"
