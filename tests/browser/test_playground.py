"""The playground in a real browser, against the real service."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pyarrow import parquet

from app.api.auth import line_of, make_key
from app.client import is_ready
from model.defaults import DEFAULT_MODEL_PATH
from tests.app.forms import text_of
from tests.conftest import SAMPLES
from tests.running import ROOT, TIMEOUT_SECONDS, exchange, logging_service, running_service, wait_until

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
    assert [one for one in requests if not one.startswith((f"{url.rstrip('/')}/", "blob:", "data:"))] == []


def summary(page: Page) -> Any:
    return page.locator("#summary")


def card(page: Page, name: str) -> Any:
    return page.locator(".card", has=page.locator(f".name[title='{name}']"))


def test_samples_show_label_confidence_and_all_classes(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_have_text("6 of 6: 5 sure, 1 unsure")
    expect(page.locator("#labels button").first).to_have_text("Crazing1")
    shown = card(page, "scratches.png")
    expect(shown.locator(".verdict")).to_have_text("Scratches >99.9 %")
    expect(shown).to_have_attribute("data-kind", "sure")
    expect(card(page, "rolled.png")).to_have_attribute("data-kind", "unsure")
    expect(card(page, "rolled.png").locator(".classes li")).to_have_text(["Rolled81.0 %", "Pitted15.1 %"])
    card(page, "rolled.png").get_by_text("4 more").click()
    expect(card(page, "rolled.png").locator(".classes li")).to_have_count(6)
    expect(card(page, "rolled.png").locator(".rest li").last).to_be_in_viewport()
    expect(page.locator("#view")).to_be_hidden()
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
    odd = Path(shutil.copy(SAMPLES / "pitted.png", tmp_path / "a\nb.png"))
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", broken, odd])
    expect(page.locator(".name").first).to_have_js_property("innerText", "a b.png")
    expect(card(page, "pitted.png").locator(".verdict")).to_contain_text("Pitted")
    failed = card(page, "broken.png")
    expect(failed.locator(".verdict")).to_have_text("This image is damaged.")
    expect(failed.locator(".why")).to_contain_text("copy it from its source again")
    expect(failed.locator(".code")).to_have_text("corrupt_image")
    expect(failed.locator(".no-picture")).to_be_visible()


KINDS = [
    (b"", "The file is empty."),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "This is a HEIC photograph."),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "This is a HEIC photograph."),
    (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "This is an AVIF image."),
    (b"%PDF-1.7\n%\xe2\xe3\n", "This is a PDF document."),
    (b"GIF89a\x01\0\x01\0\x80\0\0", "This is a GIF."),
    (b"<!DOCTYPE html><title>Log in</title>", "This is a web page."),
    (b'<?xml version="1.0"?>\n<svg/>', "This is an SVG drawing."),
    (b"PK\x03\x04\x14\0\0\0", "This is an archive."),
    ("Prüfbericht, Blech 7".encode(), "This is a text file."),
    (bytes(range(256)), "This format cannot be read."),
]


def test_errors_are_explained_in_words(page: Page, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 2000})  # cards off the screen are not in the document
    for number, (content, _) in enumerate(KINDS):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    page.locator("#files").set_input_files(list(tmp_path.iterdir()))
    expect(summary(page)).to_have_text("11 of 11: 11 errors")
    expect(page.locator(".card .verdict")).to_have_text([words for _, words in KINDS])
    expect(page.locator(".card[data-kind=error] .code")).to_have_count(11)


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
    for name in ("a.heic", "b.HEIF", "report.pdf", "notes.txt", ".DS_Store", "README", "a.b.xlsx"):
        (below / name).write_text("no image")
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "coil")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})
    expect(summary(page)).to_have_text("1 of 1: 1 unsure")
    expect(card(page, "coil/7/rolled.png").locator(".verdict")).to_contain_text("Rolled")
    expect(page.locator("#notice")).to_contain_text(
        "7 skipped: 2 HEIC, 1 hidden, 1 PDF, 1 text, 1 without suffix, 1 XLSX. Convert HEIC"
    )


def test_folder_names_are_the_truth(page: Page, tmp_path: Path) -> None:
    for folder, sample in (("crazing", "crazing"), ("Patches/day 2", "patches"), ("Pitted", "scratches")):
        (tmp_path / "mill" / folder).mkdir(parents=True)
        shutil.copy(SAMPLES / f"{sample}.png", tmp_path / "mill" / folder)
    shutil.copy(SAMPLES / "inclusion.png", tmp_path / "mill")
    (tmp_path / "mill" / "Pitted" / "empty.png").touch()
    page.locator("#folder").set_input_files(tmp_path / "mill")
    expect(summary(page)).to_have_text("5 of 5: 4 sure, 1 error")
    expect(page.locator("#accuracy")).to_have_text(
        "66.6 % right by folder name: 2 of 3 answers, 1 error; 1 not in a class's folder"
    )
    expect(card(page, "mill/crazing/crazing.png").locator(".truth")).to_have_text("✓ right: folder Crazing")
    expect(card(page, "mill/Patches/day 2/patches.png").locator(".truth")).to_contain_text("✓")
    expect(card(page, "mill/Pitted/scratches.png").locator(".truth")).to_have_text("✗ wrong: folder Pitted")
    expect(card(page, "mill/inclusion.png").locator(".truth")).to_be_empty()
    page.locator("#accuracy").click()
    expect(page.locator("#confusion tr")).to_have_text(
        ["folderCrazingPatchesPitted(error)Scratches", "Crazing1····", "Patches·1···", "Pitted···11"]
    )
    page.locator("#filter").select_option("wrong")
    expect(page.locator("#shown")).to_have_text("1 of 5 shown")
    expect(page.locator(".card")).to_have_count(1)
    page.locator(".picture").click()
    expect(page.locator("#view-truth")).to_have_text("✗ wrong: folder Pitted")


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
    files = [Path(shutil.copy(samples[number % 6], tmp_path / f"{number}.png")) for number in range(200)]
    page.locator("#files").set_input_files(files[::-1])
    expect(summary(page)).to_have_text("200 of 200: 167 sure, 33 unsure")
    expect(page.locator(".card .name").nth(2)).to_have_text("2.png")  # not 10.png
    chips = ["Crazing34", "Inclusion34", "Patches33", "Pitted33", "Rolled33", "Scratches33"]
    expect(page.locator("#labels button")).to_have_text(chips)
    page.locator("#labels button").nth(2).click()
    expect(page.locator("#shown")).to_have_text("33 of 200 shown")
    expect(page.locator("#labels button").nth(2)).to_be_focused()
    page.locator("#labels button").nth(2).click()
    expect(page.locator("#shown")).to_be_empty()
    page.locator("#filter").select_option("kind:unsure")
    expect(page.locator("#shown")).to_have_text("33 of 200 shown")
    page.locator("#filter").select_option("")
    page.locator("#sort").select_option("unsure")
    expect(page.locator(".card .name").first).to_have_attribute("title", "4.png")


def test_evidence_is_requested_for_what_is_seen(page: Page, tmp_path: Path) -> None:
    files = [Path(shutil.copy(SAMPLES / "rolled.png", tmp_path / f"{number}.png")) for number in range(300)]
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.locator("#files").set_input_files(files)
    expect(summary(page)).to_contain_text("300 of 300")
    expect(card(page, "0.png").locator("canvas")).to_be_visible()
    assert page.locator(".card").count() < 60
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(card(page, "299.png").locator("canvas")).to_be_visible()
    expect(card(page, "0.png")).to_have_count(0)
    assert page.locator(".card").count() < 60
    plain = [url for url in sent if not url.endswith("evidence=true")]
    assert len(plain) < 30
    assert len(sent) - len(plain) < 40


def test_print_holds_all_cards(page: Page, tmp_path: Path) -> None:
    files = [Path(shutil.copy(SAMPLES / "pitted.png", tmp_path / f"{number}.png")) for number in range(100)]
    page.locator("#files").set_input_files(files)
    expect(summary(page)).to_contain_text("100 of 100")
    assert page.locator(".card").count() < 60
    printed = (
        "() => new Promise((done) => { window.print = () => done(document.querySelectorAll('.card').length);"
    )
    assert page.evaluate(printed + " document.getElementById('print').click(); })") == 100
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".card").count() < 60


def test_print_names_a_filter_that_leaves_images_out(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_contain_text("6 of 6")
    page.emulate_media(media="print")
    expect(page.locator("#filter")).to_be_hidden()
    page.emulate_media(media="screen")
    page.locator("#filter").select_option("kind:unsure")
    page.emulate_media(media="print")
    expect(page.locator("#filter")).to_be_visible()
    expect(page.locator("#shown")).to_be_visible()
    for tool in ("#sort", "#heatmaps", "#export-csv", "#clear"):
        expect(page.locator(tool)).to_be_hidden()


def test_closed_view_returns_to_its_card(page: Page, tmp_path: Path) -> None:
    files = [Path(shutil.copy(SAMPLES / "pitted.png", tmp_path / f"{number}.png")) for number in range(100)]
    page.locator("#files").set_input_files(files)
    expect(summary(page)).to_contain_text("100 of 100")
    card(page, "0.png").get_by_role("button").click()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#view-name")).to_have_text("60.png")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Look at 60.png")).to_be_focused()
    expect(card(page, "60.png")).to_be_in_viewport()


def test_file_chosen_again_is_shown_once(page: Page, tmp_path: Path) -> None:
    (tmp_path / "coil").mkdir()
    for name in ("pitted.png", "coil/pitted.png", "rolled.png"):
        shutil.copy(SAMPLES / Path(name).name, tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.locator("#folder").set_input_files(tmp_path)
    expect(summary(page)).to_have_text("4 of 4: 2 sure, 1 unsure, 1 error")
    shutil.copy(SAMPLES / "patches.png", tmp_path / "rolled.png")  # another image of the same name
    page.locator("#folder").set_input_files(tmp_path)
    expect(summary(page)).to_have_text("5 of 5: 3 sure, 1 unsure, 1 error")
    expect(page.locator("#notice")).to_have_text("2 shown already.")


def test_unreadable_and_large_files_do_not_fail_their_batch(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "1.png"
    large.write_bytes(bytes(65 * 1024 * 1024))
    heavy = tmp_path / "3.png"
    heavy.write_bytes(bytes(21 * 1024 * 1024))
    wide = tmp_path / "4.png"
    Image.new("1", (9000, 9000)).save(wide)
    gone = Path(shutil.copy(SAMPLES / "pitted.png", tmp_path / "2.png"))
    page.context.set_offline(True)
    page.locator("#files").set_input_files(
        [SAMPLES / "crazing.png", large, gone, heavy, wide, SAMPLES / "patches.png"]
    )
    expect(summary(page)).to_contain_text("Retrying")
    gone.unlink()
    page.context.set_offline(False)
    expect(card(page, "crazing.png").locator(".verdict")).to_contain_text("Crazing")
    expect(card(page, "patches.png").locator(".verdict")).to_contain_text("Patches")
    for name in ("1.png", "3.png"):
        expect(card(page, name).locator(".verdict")).to_have_text("This file is too large.")
    expect(card(page, "4.png").locator(".verdict")).to_have_text("This image has too many pixels.")
    expect(card(page, "2.png").locator(".verdict")).to_have_text("The browser cannot read this file.")


# Counts pixels of the heatmap and of the box.
COUNT_DRAWN = """(canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let box = 0, heat = 0;
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] && data[at] > 240) heat++;
        if (data[at] === 0 && data[at + 1] > 200 && data[at + 2] === 255) box++;
    }
    return [canvas.width / canvas.height, heat, box];
}"""


def test_heatmap_and_box_cover_the_image(page: Page) -> None:
    page.locator("#files").set_input_files(SAMPLES / "inclusion.png")
    canvas = card(page, "inclusion.png").locator("canvas")
    expect(canvas).to_be_visible()
    shape, heat, box = canvas.evaluate(COUNT_DRAWN)
    assert shape == 1
    assert heat > 200
    assert box > 100
    page.get_by_label("Show where").uncheck()
    expect(canvas).to_be_hidden()
    page.get_by_label("Show where").check()
    expect(canvas).to_be_visible()


def test_large_view_shows_everything_about_an_image(page: Page, url: str) -> None:
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", SAMPLES / "rolled.png"])
    expect(summary(page)).to_contain_text("2 of 2")
    page.get_by_label("Show where").uncheck()
    card(page, "rolled.png").get_by_role("button").click()
    view = page.get_by_role("dialog", name="rolled.png")
    expect(view.locator("#view-verdict")).to_have_text("Rolled 81.0 %")
    names = view.locator("#view-classes li span:first-child")
    expect(names).to_have_text(["Rolled", "Pitted", "Inclusion", "Scratches", "Patches", "Crazing"])
    expect(view.locator("#view-facts")).to_contain_text("rolled.png, 23.2 kB")
    expect(view.locator("#view-facts")).to_contain_text("steel_defects ")
    expect(view.locator("#view-facts")).to_contain_text("x 19 to 188, y 14 to 178")
    expect(view.locator("#view-size")).to_have_text("200 × 200 pixels")
    expect(view.locator("#view-evidence")).to_be_visible()
    expect(view.locator("#view-heat")).to_have_css("opacity", "0.8")
    view.get_by_label("Opacity").fill("30")
    expect(view.locator("#view-heat")).to_have_css("opacity", "0.3")
    assert view.locator("#view-heat").evaluate(COUNT_DRAWN)[1] > 1000
    assert view.locator("#view-box").evaluate(COUNT_DRAWN)[2] > 1000
    expect(page.locator("#view-sql")).to_contain_text("WHERE relative_path = 'rolled.png';")
    expect(page.locator("#view-curl")).to_contain_text(f"'@rolled.png' \\\n  '{url}/classify?evidence=true'")
    expect(page.locator("#view-python")).to_contain_text(f'Client("{url}", api_key=None)')


@pytest.mark.parametrize("has_key", [False, True])
def test_curl_and_python_run_as_they_are_shown(browser: Browser, tmp_path: Path, has_key: bool) -> None:
    folder = tmp_path / "coil's $7"
    folder.mkdir()
    shutil.copy(SAMPLES / "patches.png", folder / 'a "b" #ü.png')
    variables, made = {"EXT_CLASSIFY_ROOT_PATH": "/mill"}, make_key()
    if has_key:
        (tmp_path / "keys").write_text(line_of("visitor", made) + "\n", encoding="utf-8")
        variables |= {"EXT_CLASSIFY_AUTH": "api_key", "EXT_CLASSIFY_API_KEYS_FILE": str(tmp_path / "keys")}
    with running_service(**variables) as url:
        for page in opened_page(browser, f"{url}/mill/"):
            page.locator("#folder").set_input_files(folder)
            if has_key:
                page.get_by_label("API key").fill(made)
                page.keyboard.press("Enter")
            expect(summary(page)).to_contain_text("1 of 1")
            page.locator(".card .picture").click()
            environment = os.environ | {"KEY": made, "PYTHONPATH": str(ROOT)}
            for name, command in (("curl", ["sh", "-c"]), ("python", [sys.executable, "-c"])):
                shown = str(page.locator(f"#view-{name}").text_content())
                printed = subprocess.check_output([*command, shown], cwd=tmp_path, env=environment, text=True)
                assert "Patches" in printed


def test_large_view_is_used_by_keyboard(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_contain_text("6 of 6")
    page.get_by_role("button", name="Look at inclusion.png").focus()
    page.keyboard.press("Enter")
    name = page.locator("#view-name")
    expect(name).to_have_text("inclusion.png")
    page.keyboard.press("ArrowRight")
    expect(name).to_have_text("patches.png")
    expect(page.locator("#view-box")).to_have_js_property("width", 1200)
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(name).to_have_text("crazing.png")  # the first one
    expect(page.locator("#view-place")).to_have_text("1 of 6")
    page.keyboard.press("Escape")
    expect(page.locator("#view")).to_be_hidden()
    expect(page.get_by_role("button", name="Look at crazing.png")).to_be_focused()
    assert page.evaluate("location.hash") == ""


def test_link_opens_the_image(page: Page, url: str, tmp_path: Path) -> None:
    page.goto(f"{url}/#image=pitted.png")
    page.reload()
    expect(page.get_by_role("dialog", name="pitted.png")).to_be_visible()
    expect(page.locator("#view-link")).to_have_text(f"{url}/#image=pitted.png")
    own = Path(shutil.copy(SAMPLES / "rolled.png", tmp_path / "50 % ü #1.png"))
    page.goto(f"{url}/#image=50%20%25%20%C3%BC%20%231.png")
    page.reload()
    expect(page.locator("#notice")).to_contain_text("The link shows 50 % ü #1.png.")
    page.locator("#files").set_input_files(own)
    expect(page.get_by_role("dialog", name="50 % ü #1.png")).to_be_visible()
    page.goto(f"{url}/#image=%E0%A4%A")  # no valid link
    page.reload()
    expect(page.locator("#what")).to_contain_text("6 classes")


def test_sample_thumbnail_is_classified(page: Page) -> None:
    page.locator("#thumbnails").get_by_role("button", name="patches.png").click()
    expect(summary(page)).to_have_text("1 of 1: 1 sure")


def test_export_holds_every_outcome(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "=1+1.png"
    broken.write_bytes(b"no image")
    page.locator("#files").set_input_files([SAMPLES / "pitted.png", broken])
    expect(summary(page)).to_contain_text("2 of 2")
    page.get_by_label("with all boxes").check()
    with page.expect_download() as started:
        page.get_by_role("button", name="JSON").click()
    outcomes = json.loads(Path(started.value.path()).read_text(encoding="utf-8"))
    assert [(one["name"], one["label"]) for one in outcomes] == [("=1+1.png", None), ("pitted.png", "Pitted")]
    assert outcomes[0]["error"]["code"] == "unsupported_format"
    assert len(outcomes[1]["probabilities"]) == 6
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    text = Path(started.value.path()).read_text(encoding="utf-8-sig")
    broken_row, pitted = csv.DictReader(text.splitlines())
    assert broken_row["name"] == "'=1+1.png"  # escaped, so that spreadsheets do not read a formula
    assert (broken_row["label"], broken_row["error_code"]) == ("", "unsupported_format")
    assert (pitted["label"], pitted["model_name"]) == ("Pitted", "steel_defects")
    assert pitted["confidence"] == pitted["probability Pitted"]
    box = [int(pitted[f"box_{side}"]) for side in ("x0", "y0", "x1", "y1")]
    assert box == outcomes[1]["evidence"]["box"]
    with page.expect_download() as started:
        page.get_by_role("button", name="Parquet").click()
    table = parquet.read_table(started.value.path())
    assert [
        str(table.schema.field(name).type) for name in ("label", "confidence", "abstained", "box_x0")
    ] == [
        "string",
        "double",
        "bool",
        "int32",
    ]
    broken_row, pitted = table.to_pylist()
    assert (broken_row["name"], broken_row["error_code"]) == ("=1+1.png", "unsupported_format")
    assert {broken_row[name] for name in ("label", "confidence", "box_x0", "probability Pitted")} == {None}
    assert pitted["confidence"] == outcomes[1]["confidence"] == pitted["probability Pitted"]
    assert (pitted["abstained"], pitted["box_x0"]) == (False, box[0])


def test_export_holds_what_the_filter_shows_in_the_chosen_order(page: Page) -> None:
    page.get_by_role("button", name="use the samples").click()
    expect(summary(page)).to_contain_text("6 of 6")
    page.locator("#filter").select_option("kind:sure")
    page.locator("#sort").select_option("unsure")
    expect(page.locator("#shown")).to_have_text("5 of 6 shown")
    shown = page.locator(".card .name").all_text_contents()
    assert shown != sorted(shown)
    exported = {}
    for kind in ("CSV", "JSON", "Parquet"):
        with page.expect_download() as started:
            page.get_by_role("button", name=kind, exact=True).click()
        exported[kind] = Path(started.value.path())
    with exported["CSV"].open(encoding="utf-8-sig") as rows:
        assert [row["name"] for row in csv.DictReader(rows)] == shown
    assert [row["name"] for row in json.loads(exported["JSON"].read_text(encoding="utf-8"))] == shown
    assert parquet.read_table(exported["Parquet"])["name"].to_pylist() == shown


def test_parquet_holds_any_number_of_rows_and_any_text(page: Page, tmp_path: Path) -> None:
    """Encoded by hand, so that lengths of one and of several bytes are tried."""
    script = """async (rows) => {
        const { asParquet } = await import("/playground/parquet.js");
        const all = (make) => Array.from({ length: rows }, (_, at) => make(at));
        const columns = [
            ["texts ü", "text", all((at) => (at % 3 ? "⚙️".repeat(at % 200) : null))],
            ["flags", "boolean", all((at) => [true, false, undefined][at % 3])],
            ["numbers", "double", all((at) => at / 7)],
            ...Array.from({ length: 20 }, (_, at) => [`integers ${at}`, "int", all((row) => row * at)]),
        ];
        const bytes = new Uint8Array(await asParquet(columns, rows).arrayBuffer());
        return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    }"""
    for rows in (0, 1, 8, 9, 3000):
        file = tmp_path / f"{rows}.parquet"
        file.write_bytes(b64decode(page.evaluate(script, rows)))
        found = parquet.read_table(file).to_pydict()
        assert found["texts ü"] == [None if at % 3 == 0 else "⚙️" * (at % 200) for at in range(rows)]
        assert found["flags"] == [(True, False, None)[at % 3] for at in range(rows)]
        assert found["numbers"] == [at / 7 for at in range(rows)]
        assert found["integers 19"] == [at * 19 for at in range(rows)]


def test_sql_names_the_same_images_on_a_stage(page: Page, tmp_path: Path) -> None:
    (tmp_path / "coil's" / "7").mkdir(parents=True)
    for place in ("coil's/rolled.png", "coil's/7/pitted.png"):
        shutil.copy(SAMPLES / Path(place).name, tmp_path / place)
    page.locator("#folder").set_input_files(tmp_path / "coil's")
    page.get_by_role("button", name="Open in SQL").click()
    sql = page.locator("#stage-sql")
    expect(sql).to_contain_text("WHERE STARTSWITH(relative_path, 'coil''s/');")
    expect(sql).to_contain_text("upload 'coil'\\''s' --folder 'coil'\\''s' --stage DATABASE.SCHEMA.images")
    page.keyboard.press("Escape")
    page.locator("#files").set_input_files(SAMPLES / "patches.png")
    page.get_by_role("button", name="Open in SQL").click()
    expect(sql).to_contain_text("IN ('coil''s/7/pitted.png', 'coil''s/rolled.png', 'patches.png');")


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
                expect(summary(page)).to_contain_text("60 of 60: 50 sure, 10 unsure")
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
            expect(page.locator("#key-fault")).to_contain_text("unknown key")
            expect(field).to_be_focused()
            field.fill("Schlüssel ✓")  # no header may hold it
            field.press("Enter")
            expect(page.locator("#key-fault")).to_contain_text("ASCII")
            field.fill(made)
            field.press("Enter")
            expect(summary(page)).to_contain_text("6 of 6")
            card(page, "rolled.png").get_by_role("button").click()
            expect(page.locator("#view-curl")).to_contain_text('-H "Authorization: Bearer $KEY"')
            expect(page.locator("#view-evidence")).to_be_visible()
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
        "export-parquet",
        "Look at pitted.png",
        "open-sql",
    } <= reached


@pytest.mark.parametrize("width", [320, 390, 1280, 3840])
def test_page_fits_the_screen_width(browser: Browser, url: str, width: int) -> None:
    for page in opened_page(browser, url, viewport={"width": width, "height": 844}):
        page.get_by_role("button", name="use the samples").click()
        expect(summary(page)).to_contain_text("6 of 6")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        heights = page.locator(".card").evaluate_all("(cards) => cards.map((card) => card.offsetHeight)")
        assert len(set(heights)) == 1
        assert page.locator(".card meter").first.bounding_box()["width"] > 12
        page.locator(".picture").first.click()
        expect(page.locator("#view-evidence")).to_be_visible()
        assert page.locator("#view").evaluate("(view) => view.scrollWidth - view.clientWidth") == 0


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844), (320, 640), (568, 320)])
def test_results_have_the_screen(browser: Browser, url: str, tmp_path: Path, width: int, height: int) -> None:
    files = [Path(shutil.copy(SAMPLES / "pitted.png", tmp_path / f"{number}.png")) for number in range(40)]
    for page in opened_page(browser, url, viewport={"width": width, "height": height}):
        page.locator("#files").set_input_files(files)
        expect(summary(page)).to_contain_text("40 of 40")
        expect(summary(page)).to_be_in_viewport()
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
        first_free = page.evaluate(
            "(x) => { let y = 0; while (!document.elementFromPoint(x, y)?.closest('#cards')) y++; return y }",
            width // 2,
        )
        assert first_free < 0.13 * height
        page.locator(".picture").last.focus()
        for _ in range(10):
            page.keyboard.press("Shift+Tab")
            focused = page.evaluate(
                """() => { const { left, top } = document.activeElement.getBoundingClientRect();
                return document.activeElement.contains(document.elementFromPoint(left + 9, top + 9)); }"""
            )
            assert focused, "the toolbar covers the focused control"


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


@pytest.mark.parametrize(
    "media",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"forced_colors": "active", "reduced_motion": "reduce"},
    ],
    ids=["light", "dark", "forced colours"],
)
def test_axe_finds_no_violations(browser: Browser, url: str, tmp_path: Path, media: Any) -> None:
    """WCAG 2 rules, on the page with a failed card, and on the large view."""
    folder = tmp_path / "Pitted"
    folder.mkdir()
    for name in ("pitted", "rolled"):
        shutil.copy(SAMPLES / f"{name}.png", folder)
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (200, 200), "magenta").save(folder / "flat.png")
    for page in opened_page(browser, url, **media):
        page.locator("#folder").set_input_files(folder)
        expect(summary(page)).to_have_text("4 of 4: 1 sure, 1 unsure, 1 abstained, 1 error")
        for summaries in ("#batch summary", "#help summary", "#accuracy"):
            page.locator(summaries).click()
        check_with_axe(page)
        card(page, "Pitted/rolled.png").get_by_role("button").click()
        expect(page.locator("#view-evidence")).to_be_visible()
        check_with_axe(page)


def check_with_axe(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
