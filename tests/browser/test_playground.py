"""The playground in a real browser, against the real service."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.api.auth import line_of, make_key
from app.client import is_ready
from model.defaults import DEFAULT_MODEL_PATH
from tests.app.forms import text_of
from tests.conftest import SAMPLES
from tests.running import TIMEOUT_SECONDS, exchange, logging_service, running_service, wait_until

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make system-deps"),
]

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The opened page. Fails if a script raises an error or sends a request to another host."""
    yield from opened_page(browser, url)


def opened_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    visit = browser.new_context(**context)
    visit.set_default_timeout(PATIENCE_MS)
    page = visit.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    yield page
    visit.close()
    assert errors == []
    assert [one for one in requests if not one.startswith((f"{url}/", "blob:", "data:"))] == []


def summary(page: Page) -> Any:
    return page.locator("#summary")


def card(page: Page, name: str) -> Any:
    return page.locator(".card", has=page.locator(f".name[title='{name}']"))


def test_samples_show_label_confidence_and_all_classes(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_have_text(re.compile("^6 of 6: 1 Crazing, 1 Inclusion, "))
    shown = card(page, "scratches.png")
    expect(shown.locator(".verdict")).to_have_text(re.compile(r"^Scratches 99\.\d %$"))
    expect(shown.locator(".classes li")).to_have_count(6)
    expect(page.locator("#model")).to_contain_text("steel_defects")


def test_network_without_samples_offers_none(browser: Browser, tmp_path: Path) -> None:
    for suffix in (".h5", ".json", ".tflite", ".tflite.json"):
        shutil.copy(DEFAULT_MODEL_PATH.with_suffix(suffix), tmp_path)
    model = tmp_path / DEFAULT_MODEL_PATH.name
    with running_service(EXT_CLASSIFY_MODEL_PATH=str(model)) as url:
        for page in opened_page(browser, url):
            expect(page.locator("#model")).to_contain_text("steel_defects")
            expect(page.locator("#samples")).to_be_hidden()


def test_picked_files_include_a_broken_one(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", broken])
    expect(card(page, "pitted.png").locator(".verdict")).to_contain_text("Pitted")
    failed = card(page, "broken.png")
    expect(failed.locator(".verdict")).to_have_text("corrupt_image")
    expect(failed.locator(".why")).to_contain_text("copy it from its source again")
    expect(failed.locator(".no-picture")).to_be_visible()


def test_dropped_file_is_classified(page: Page) -> None:
    """A drop from the browser, which has file paths, unlike a synthetic event."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(SAMPLES / "patches.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})
    expect(card(page, "patches.png").locator(".verdict")).to_contain_text("Patches")


def test_dropped_folder_is_read_recursively(page: Page, tmp_path: Path) -> None:
    below = tmp_path / "coil" / "7"
    below.mkdir(parents=True)
    shutil.copy(SAMPLES / "rolled.png", below)
    (below / "notes.txt").write_text("no image")
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "coil")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})
    expect(summary(page)).to_have_text("1 of 1: 1 Rolled")


def test_pasted_image_is_classified(page: Page) -> None:
    page.evaluate(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
        }""",
        text_of((SAMPLES / "crazing.png").read_bytes()),
    )
    expect(card(page, "image.png").locator(".verdict")).to_contain_text("Crazing")


def test_many_files_are_classified_filtered_and_sorted(page: Page, tmp_path: Path) -> None:
    samples = sorted(SAMPLES.glob("*.png"))
    files = [Path(shutil.copy(samples[number % 6], tmp_path / f"{number:03}.png")) for number in range(200)]
    page.locator("#files").set_input_files(files)
    expect(summary(page)).to_contain_text("200 of 200: 34 Crazing, 34 Inclusion, 33 Patches")
    page.locator("#filter").select_option("Patches")
    expect(page.locator(".card")).to_have_count(33)
    page.locator("#filter").select_option("")
    page.locator("#sort").select_option("unsure")
    expect(page.locator(".card .name").first).to_have_attribute("title", "004.png")


def test_heatmap_and_box_cover_the_image(page: Page) -> None:
    page.locator("#files").set_input_files(SAMPLES / "inclusion.png")
    shown = card(page, "inclusion.png")
    expect(shown.locator(".verdict")).to_contain_text("Inclusion")
    canvas = shown.locator("canvas")
    expect(canvas).to_be_hidden()
    page.get_by_label("Show where").check()
    expect(canvas).to_be_visible()
    drawn = """(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let box = 0, heat = 0;
        for (let at = 0; at < data.length; at += 4) {
            if (data[at + 3] && data[at] === 255) heat++;
            if (data[at] === 0 && data[at + 1] > 200 && data[at + 2] === 255) box++;
        }
        return [canvas.width, canvas.height, heat, box];
    }"""
    width, height, heat, box = canvas.evaluate(drawn)
    assert (width, height) == (200, 200)
    assert heat > 200
    assert box > 100
    page.get_by_label("Show where").uncheck()
    expect(canvas).to_be_hidden()


def test_export_holds_every_outcome(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "=1+1.png"
    broken.write_bytes(b"no image")
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", broken])
    expect(summary(page)).to_contain_text("2 of 2")
    with page.expect_download() as started:
        page.get_by_role("button", name="JSON").click()
    outcomes = json.loads(Path(started.value.path()).read_text(encoding="utf-8"))
    assert [(one["name"], one["label"]) for one in outcomes] == [("pitted.png", "Pitted"), ("=1+1.png", None)]
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    lines = Path(started.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].startswith("name,label,confidence,")
    assert lines[1].startswith("pitted.png,Pitted,0.9")
    assert lines[2].startswith("'=1+1.png,,")  # escaped, so that spreadsheets do not read a formula


def test_page_shows_sql_and_curl_for_the_image(page: Page, url: str) -> None:
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", SAMPLES / "patches.png"])
    card(page, "patches.png").get_by_role("button").click()
    expect(page.locator("#same-sql")).to_contain_text("WHERE relative_path = 'patches.png';")
    expect(page.locator("#same-curl")).to_contain_text(f"'@patches.png' \\\n  '{url}/classify?evidence=true'")


def test_batch_is_shown_as_snowflake_sends_it(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_contain_text("6 of 6")
    page.locator("#batch summary").click()
    page.get_by_role("button", name="Send the batch").click()
    expect(page.locator("#batch-response")).to_contain_text('"label": "Crazing"')
    request = page.locator("#batch-request").inner_text()
    assert request.startswith("POST classify\nContent-Type: application/json\n")
    assert "iVBOR" in request
    assert len(request) < 1000


def test_page_retries_while_the_service_restarts(browser: Browser, tmp_path: Path) -> None:
    samples = sorted(SAMPLES.glob("*.png"))
    files = [Path(shutil.copy(samples[number % 6], tmp_path / f"{number:03}.png")) for number in range(60)]
    with logging_service(tmp_path / "log") as (service, port):
        wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
        for page in opened_page(browser, f"http://127.0.0.1:{port}"):
            page.locator("#files").set_input_files(files[:10])
            expect(summary(page)).to_contain_text("10 of 10")
            service.send_signal(signal.SIGTERM)
            assert service.wait(TIMEOUT_SECONDS) == 0
            page.locator("#files").set_input_files(files[10:])
            expect(summary(page)).to_contain_text("10 of 60")
            expect(summary(page)).to_contain_text("Retrying")
            with logging_service(tmp_path / "log again", "--port", str(port)):
                expect(summary(page)).to_contain_text("60 of 60: 10 Crazing")
                expect(summary(page)).not_to_contain_text("Retrying")


def test_key_is_requested_sent_and_not_stored(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = make_key()
    keys.write_text(line_of("visitor", made) + "\n", encoding="utf-8")
    variables = {"EXT_CLASSIFY_AUTH": "api_key", "EXT_CLASSIFY_API_KEYS_FILE": str(keys)}
    with running_service(**variables) as url:
        for page in opened_page(browser, url):
            page.get_by_role("button", name="use the samples").click()
            field = page.get_by_label("API key")
            expect(field).to_be_focused(timeout=PATIENCE_MS)
            field.fill("wrong")
            field.press("Enter")
            expect(page.locator("#key-fault")).to_contain_text("key")
            expect(field).to_be_focused()
            field.fill(made)
            field.press("Enter")
            expect(summary(page)).to_contain_text("6 of 6")
            expect(page.locator("#same-curl")).to_contain_text('-H "X-API-Key: $KEY"')
            assert made not in page.content()
            stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
            assert stored == [0, 0, ""]


def test_controls_are_reached_by_keyboard(page: Page) -> None:
    page.get_by_role("button", name="use the samples").focus()
    page.keyboard.press("Enter")
    expect(summary(page)).to_contain_text("6 of 6")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")
        )
    assert {
        "filter",
        "sort",
        "heatmaps",
        "export-csv",
        "export-json",
        "Choose pitted.png",
        "same-sql",
    } <= reached


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_fits_the_screen_width(browser: Browser, url: str, width: int) -> None:
    for page in opened_page(browser, url, viewport={"width": width, "height": 844}):
        page.get_by_role("button", name="use the samples").click()
        expect(summary(page)).to_contain_text("6 of 6")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_page_can_be_switched_off() -> None:
    with running_service(EXT_CLASSIFY_SHOW_PLAYGROUND="false") as url:
        port = int(url.rpartition(":")[2])
        assert exchange(port, "GET", "/").headers["location"] == "docs"
        assert exchange(port, "GET", "/playground/playground.js").status == 404


def test_page_says_what_it_may_do(url: str) -> None:
    port = int(url.rpartition(":")[2])
    for method in ("GET", "HEAD"):
        headers = exchange(port, method, "/").headers
        assert (
            "default-src 'none'; script-src 'self'; style-src 'self';" in headers["content-security-policy"]
        )
        assert headers["cache-control"] == "no-cache"


def test_axe_finds_no_violations(browser: Browser, url: str, tmp_path: Path) -> None:
    """WCAG 2 rules, in the light and the dark colour scheme, with a failed card."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for scheme in ("light", "dark"):
        for page in opened_page(browser, url, color_scheme=scheme):
            page.locator("#files").set_input_files([SAMPLES / "pitted.png", broken])
            expect(summary(page)).to_contain_text("2 of 2")
            page.locator("#batch summary").click()
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
