"""The report in a real browser, opened as a file."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.test_playground import ARGUMENTS, CHROMIUM, PATIENCE_MS, check_with_axe
from tests.model.evaluation.test_report import evaluate_hostile_names

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make system-deps"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate_hostile_names(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def browser(report: Path) -> Iterator[Browser]:
    """Started after the report is written: Keras has threads, which a running event loop disturbs."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def opened(browser: Browser, report: Path, **context: Any) -> Iterator[Page]:
    """The page. Fails if it runs a script, or requests anything from a host."""
    visit = browser.new_context(**context)
    visit.set_default_timeout(PATIENCE_MS)
    page = visit.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda _: pytest.fail("a name ran as a script"))
    page.goto(report.as_uri())
    yield page
    assert [one for one in requests if not one.startswith(("file:", "data:"))] == []
    visit.close()


@pytest.mark.parametrize("width", [320, 1280, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violations_at_any_width(
    browser: Browser, report: Path, width: int, scheme: Any
) -> None:
    for page in opened(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme):
        check_with_axe(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def light_share(picture: bytes) -> float:
    return float((np.asarray(Image.open(io.BytesIO(picture)).convert("L")) > 200).mean())


def test_figures_are_light_on_dark_on_a_screen_and_dark_on_light_on_paper(
    browser: Browser, report: Path
) -> None:
    for page in opened(browser, report, color_scheme="dark"):
        figures = page.locator("figure.plot img").all()
        assert len(figures) >= 4
        for figure in figures:
            assert light_share(figure.screenshot()) < 0.4
        page.emulate_media(media="print", color_scheme="dark")
        for figure in figures:
            assert light_share(figure.screenshot()) > 0.5


def test_link_of_a_worst_answer_opens_the_image(browser: Browser, report: Path) -> None:
    for page in opened(browser, report):
        link = page.locator(".worst p a", has_text="a #1?b=100%.png").first
        with page.expect_navigation():
            link.press("Enter")
        assert page.locator("img").evaluate("(image) => image.naturalWidth") == 20
