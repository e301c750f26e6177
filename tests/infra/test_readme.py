"""infra's pages against what they point to and what was measured."""

import re
import shlex
from pathlib import Path

import pytest

from app.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "infra" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "infra").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


RESULTS = ROOT / "tests" / "trials" / "results"
LONG_RESULTS = {"networks"}  # the README links to them


@pytest.mark.parametrize("name", sorted({path.stem for path in RESULTS.glob("*.md")} - LONG_RESULTS))
def test_trials_are_quoted_as_measured(name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(LONG_RESULTS))
def test_long_results_of_trials_are_linked(name: str) -> None:
    assert f"](tests/trials/results/{name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    for path, anchor in links:
        if path.startswith(("https://", "http://")):
            continue
        target = page.parent / path
        assert target.exists(), path
        if anchor:
            assert anchor in anchors_of(target), f"{path}#{anchor}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_folder_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for folder in sorted(path.name for path in (ROOT / "infra").iterdir() if path.is_dir()):
        assert f"[{folder}](" in text or f"`{folder}`" in text


def test_plan_that_is_quoted_gives_what_its_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    [command] = re.findall(r"`ext-classify (plan --provider spcs [^`]*)`", text)
    assert main(shlex.split(command)) == 0
    printed = capsys.readouterr().out
    cheapest = printed[printed.index("It costs less") :]
    [row] = re.findall(
        r"\| 1,000,000,000 within 24 h \| Snowpark Container Services \|([^|]*)\|([^|]*)\|", text
    )
    assert [cell.strip().replace(",", "") for cell in row] == re.findall(
        r"(?:instances|MAX_BATCH_ROWS) +(\d+)", cheapest
    )[:2]
