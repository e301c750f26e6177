"""Create the README's pictures of the playground and of a terminal.

python -m tests.browser.screenshots [FOLDER]
"""

import io
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console
from rich.text import Text

from tests.browser.test_playground import ARGUMENTS, CHROMIUM, PATIENCE_MS
from tests.conftest import SAMPLES
from tests.running import running_service, shown_on_a_terminal

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "infra" / "pictures"
COLUMNS = 84
WIDTH, HEIGHT = 1180, 780


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    with running_service() as url, tempfile.TemporaryDirectory() as photos, _browser() as browser:
        shutil.copytree(SAMPLES, photos, dirs_exist_ok=True)
        (Path(photos) / "notes.png").write_bytes(b"no image")
        for scheme in ("light", "dark"):
            page = _classified(browser, url, scheme, WIDTH, HEIGHT)
            taken = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
            taken.quantize(256).save(folder / f"playground_{scheme}.png", optimize=True)
        command = ["classify", "--url", url, photos]
        (folder / "terminal.svg").write_text(_terminal("classify photos/", command), encoding="utf-8")


@contextmanager
def _browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def _classified(browser: Browser, url: str, scheme: str, width: int, height: int) -> Page:
    """Open the playground with the classified samples and their heatmaps."""
    page = browser.new_page(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": width, "height": height}
    )
    page.goto(url)
    page.get_by_role("button", name="use the samples").click()
    expect(page.locator("#summary")).to_have_text(re.compile("^6 of 6"), timeout=PATIENCE_MS)
    for drawn in page.locator(".card canvas").all():
        expect(drawn).to_be_visible(timeout=PATIENCE_MS)
    page.mouse.move(0, 0)
    return page


def _terminal(shown: str, command: list[str]) -> str:
    """Run a command on a terminal and return its output as SVG."""
    printed = shown_on_a_terminal(*command, columns=COLUMNS)
    # Drop the progress bar, which the command draws and erases below the lines.
    lines = [line.rpartition("\x1b[2K")[2] for line in printed.split("\n")]
    lines = [line for line in lines if "━" not in line and not line.startswith("ext-classify: ")]
    text = re.sub(r"\x1b\[[?0-9;]*[A-HJ-Zhl]", "", "\n".join(lines))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"$ ext-classify {shown}", style="bold", highlight=False)
    console.print(Text.from_ansi(text.replace("\r", "").strip("\n")))
    svg = console.export_svg(title="ext-classify")
    svg = re.sub(r"\s*@font-face {.*?}|<!--.*?-->", "", svg, flags=re.DOTALL)  # no requests to other hosts
    about = f"<title>ext-classify {shown}</title><desc>A terminal: one line per image, then a table</desc>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{about}", svg, count=1)


if __name__ == "__main__":
    main()
