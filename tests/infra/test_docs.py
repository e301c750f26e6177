"""The pages of the manual: links, generated pages, quoted tables and figures."""

import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from app.cli.main import main, parse_arguments
from tests.write_docs import DOCS, GROUPS, REFERENCE, ROOT, reference_page, with_tables

CAPACITY = (DOCS / "capacity.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "model" / "saved" / "README.md"]
PAGES += sorted((ROOT / "infra").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
RESULTS = [
    *(ROOT / "tests" / "benchmarks" / "results").rglob("*.md"),
    *(ROOT / "tests" / "trials" / "results").glob("*.md"),
]
# Dialect that readers cannot search for.
BARRED = re.compile(
    r"\b(whoever|(is|are) told|anew|go(es)? on|strangers?|promises?|promised|remember(s|ed)?|at hand|beside"
    r"|what it takes|stands? (for|there)|forgotten|nobody|may call|wants?|lets? in|(is|are) to be)\b",
    re.IGNORECASE,
)
COMMENTED = ("*.sql", "*.yaml", "*.yml", "*.toml", "*.conf", "*.sh", "*.bicep", "*.xml", "*.svg")
COMMENTED += ("*Dockerfile*", "*Makefile", ".ci/*", ".sqlfluff", ".dockerignore", "infra/**/*.json")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_page_is_current(name: str) -> None:
    if name == "cli.md" and sys.version_info[:2] != (3, 11):
        pytest.skip("argparse formats its help differently in each version of Python; the page is of 3.11")
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == reference_page(name), "make docs"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_tables_are_quoted_as_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "make docs"


@pytest.mark.parametrize("table", RESULTS, ids=name_of)
def test_every_result_is_quoted_or_linked(table: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    assert f"<!-- table: {name_of(table)} -->" in pages or f"({'../../' + name_of(table)})" in pages


@pytest.mark.parametrize("page", ["infra/docs/model.md", "model/saved/README.md"])
def test_cross_validation_is_quoted_as_measured(page: str) -> None:
    measured = (ROOT / "model" / "saved" / "crossvalidation.md").read_text(encoding="utf-8")
    overview = measured.split("\n\n")[1].splitlines()[2:]
    assert len(overview) > 10
    assert "\n".join(overview) in (ROOT / page).read_text(encoding="utf-8")


def test_first_setting_of_each_group_exists() -> None:
    page = reference_page("settings.md")
    assert all(f"\n## {group}\n" in page for group in GROUPS.values())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if path.startswith(("https://", "http://")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors_of(target), f"{path}#{anchor}"


def anchors_of(page: Path) -> set[str]:
    """As GitHub derives them from headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_are_in_plain_english(page: Path) -> None:
    text = re.sub(
        r"<!-- table: .*?<!-- end of table -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert [found[0] for found in BARRED.finditer(text)] == []


def tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--", *patterns]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_comments_of_other_files_are_in_plain_english() -> None:
    listed = tracked(*COMMENTED, ":!tests")
    assert len(listed) > 50
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in listed}
    assert {(name, found[0]) for name, text in texts.items() for found in BARRED.finditer(text)} == set()


def prose_of(source: Path) -> str:
    """Comments and docstrings of a Python file."""
    with source.open("rb") as file:
        tokens = list(tokenize.tokenize(file.readline))
    prose = [token.string for token in tokens if token.type == tokenize.COMMENT or token.string[:3] == '"""']
    return " ".join(" ".join(prose).split())


@pytest.mark.parametrize("package", ["app", "model", "tests"])
def test_comments_and_docstrings_are_in_plain_english(package: str) -> None:
    texts = {name: prose_of(ROOT / name) for name in tracked(f"{package}/*.py")}
    assert len("".join(texts.values())) > 10_000
    assert {(name, found[0]) for name, text in texts.items() for found in BARRED.finditer(text)} == set()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_every_page_is_in_the_table_of_contents(page: Path) -> None:
    assert page.name == "README.md" or f"({page.name})" in (DOCS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_commands_parse(page: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for command in re.findall(r"^ext-classify ((?:.*\\\n)*.*)$", "".join(blocks), re.MULTILINE):
        parse_arguments(shlex.split(command.replace("\\\n", " "), comments=True))


@pytest.mark.parametrize("picture", sorted((ROOT / "infra" / "pictures").iterdir()), ids=name_of)
def test_pictures_are_small_and_have_a_dark_scheme(picture: Path) -> None:
    assert picture.stat().st_size < 200_000
    assert any(picture.name in page.read_text(encoding="utf-8") for page in PAGES)
    if picture.suffix == ".png":
        assert all(picture.with_stem(f"playground_{scheme}").exists() for scheme in ("light", "dark"))
    elif picture.name != "terminal.svg":  # a terminal is dark in both
        assert "prefers-color-scheme: dark" in picture.read_text(encoding="utf-8")


def test_every_folder_is_in_the_table_of_contents() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    for folder in sorted(path.name for path in (ROOT / "infra").iterdir() if path.is_dir()):
        assert folder in ("docs", "tutorials") or f"[{folder}](" in text or f"`{folder}`" in text


def test_plan_is_quoted_as_calculated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rate", "700", "--cores", "2"]) == 0
    assert capsys.readouterr().out.partition("\n\nOne instance")[0] in CAPACITY


def test_plan_of_a_billion_images_agrees_with_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(CAPACITY.split())
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
