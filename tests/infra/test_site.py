"""The manual as a site, built by `make site`: no external requests, links that lead somewhere, a search."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / ".venv-site" / "bin" / "zensical").exists(), reason="make .venv-site/.installed"
    ),
]


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        links = self.links if tag == "a" else self.loads
        links += [url for name in ("href", "src", "srcset") if (url := found.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy of the pages, with links to everything else of the clone."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("infra", "site", ".cache", ".git", ".zensical.toml"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "infra", folder / "infra")
    shutil.copy(ROOT / ".zensical.toml", folder)
    command = ["make", "--assume-old=.venv-site/.installed", "site"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) >= len(list((ROOT / "infra").rglob("*.md")))
    return pages


def test_pages_load_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert {url for page in pages.values() for url in page.loads if urlsplit(url).netloc} == set()


def test_links_lead_somewhere(pages: dict[Path, Page]) -> None:
    assert [fault for page in pages.values() for fault in faults_of(page, pages)] == []


def faults_of(page: Page, pages: dict[Path, Page]) -> list[str]:
    faults = []
    for url in page.links + page.loads:
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            continue
        target = Path(os.path.normpath(page.path.parent / unquote(parts.path))) if parts.path else page.path
        if not target.exists() or (
            parts.fragment and target in pages and parts.fragment not in pages[target].anchors
        ):
            faults.append(f"{page.path.name}: {url}")
    return faults


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make system-deps")
def test_site_searches_without_a_web_server(site: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        loaded: list[str] = []
        page.on("request", lambda request: loaded.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type("log_lines_dropped")
        expect(page.locator("a[href$='operations.html#events']")).to_be_visible(timeout=120_000)
        browser.close()
    assert [url for url in loaded if urlsplit(url).scheme not in ("file", "data", "blob")] == []
