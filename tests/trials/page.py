"""python -m tests.trials.page: the playground with many images, against `classify`, and how long it blocks.

Classifies the same images of NEU_DATA_DIR (or drawn ones) in turn with the terminal and in chromium. Reports
both rates, and the long tasks of the browser's main thread (Long Tasks API: over 50 ms), then and in later
steps. The task in which files are chosen counts from the first event that the page receives: before it, the
browser makes the File objects, with two synchronous calls to another process for each (FileBackedBlobFactory
and MimeRegistry in a trace), which no page can divide. That time is reported apart.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.test_playground import ARGUMENTS, CHROMIUM
from tests.conftest import SAMPLES
from tests.running import CLI, running_service

PATIENCE_MS = 600_000
OBSERVE = """
window.longTasks = [];
let chosen = Infinity;
addEventListener("input", () => (chosen = performance.now()), { capture: true });
new PerformanceObserver((list) => {
    for (const { startTime, duration } of list.getEntries()) {
        const before = chosen - startTime;
        const isChoice = before > 0 && before < duration;
        if (isChoice) window.choosing = before;
        window.longTasks.push(isChoice ? duration - before : duration);
    }
}).observe({ type: "longtask", buffered: true });
"""


def copy_images(folder: Path, images: int) -> list[Path]:
    source = Path(os.environ.get("NEU_DATA_DIR", SAMPLES))
    found = sorted(path for path in source.rglob("*") if path.suffix in {".png", ".jpg", ".bmp"})
    return [
        Path(shutil.copy(found[number % len(found)], folder / f"{number}{found[number % len(found)].suffix}"))
        for number in range(images)
    ]


def seconds_of(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def classify_in_terminal(url: str, folder: Path) -> None:
    command = [*CLI, "classify", "--url", url, "--json", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def classify_on_page(page: Page, files: list[Path]) -> None:
    page.locator("#files").set_input_files(files)
    expect(page.locator("#summary")).to_contain_text(f"{len(files)} of {len(files)}", timeout=PATIENCE_MS)


def report(page: Page, name: str) -> None:
    page.wait_for_timeout(1500)  # for what the step leaves running, such as evidence of the visible cards
    tasks = page.evaluate("() => window.longTasks.splice(0)")
    longest = f"longest {max(tasks):.0f} ms" if tasks else "none"
    print(f"  {name}: {len(tasks)} long tasks, {longest}")


def use(page: Page) -> None:
    """Scroll, sort, filter, open and step, as a user does with all images answered."""
    for _ in range(20):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(100)
    report(page, "scroll")
    page.locator("#sort").select_option("unsure")
    report(page, "sort")
    page.locator("#filter").select_option(index=1)
    report(page, "filter")
    page.locator("#filter").select_option("")
    report(page, "show all")
    page.locator(".picture").first.click()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(50)
    report(page, "large view, 20 steps")
    page.keyboard.press("Escape")
    page.locator("#clear").click()
    report(page, "clear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_service() as url, sync_playwright() as playwright:
        files = copy_images(Path(folder), options.images)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for _ in range(options.times):
            terminal = options.images / seconds_of(lambda: classify_in_terminal(url, Path(folder)))
            page = browser.new_page()
            page.add_init_script(OBSERVE)
            page.goto(url)
            on_page = options.images / seconds_of(lambda page=page: classify_on_page(page, files))
            print(f"{terminal:.0f} images/s in the terminal, {on_page:.0f} here: {on_page / terminal:.0%}")
            report(page, "classify")
            print(
                f"  the browser makes {options.images} files: {page.evaluate('window.choosing ?? 0'):.0f} ms"
            )
            use(page)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
