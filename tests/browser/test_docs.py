"""/docs in a real browser."""

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.running import running_service

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make system-deps"),
]


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--disable-background-networking",
            ],
        )
        yield browser.new_page()
        browser.close()


def test_documentation_works_offline(page: Page) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    with running_service() as url:
        page.goto(f"{url}/docs")
        operation = page.locator("#operations-classification-classify_classify_post")
        operation.locator(".opblock-summary").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table .response-col_description .highlight-code")
        expect(answer.first).to_contain_text('"probabilities"', timeout=120_000)
    own = re.compile(rf"{re.escape(url)}/|data:|blob:")
    assert [request for request in requests if not own.match(request)] == []
