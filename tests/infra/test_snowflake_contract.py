"""infra/docs/snowflake_contract.md: a line for each statement, header and status, with tests that exist."""

import re
from pathlib import Path

import pytest

from app.cli.snowflake_questions import QUESTIONS
from app.provisioning.ddl import file_names, load
from tests.app.provisioning.test_ddl import PLAIN

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "infra" / "docs" / "snowflake_contract.md"
TEXT = PAGE.read_text(encoding="utf-8")
TEST = re.compile(r"\[(test_\w+)\]\(\.\./\.\./(tests/[\w/]+\.py)\)")


def rows(title: str) -> list[list[str]]:
    section = TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def statements() -> list[str]:
    """The first line of each statement of infra/snowflake and infra/spcs."""
    ours = [statement for name in file_names() for statement in load(name, PLAIN)]
    for path in sorted((ROOT / "infra" / "spcs").glob("*.sql")):
        text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
        ours += [statement.strip() for statement in text.split(";") if statement.strip()]
    return ours


def is_named(statement: str, name: str) -> bool:
    start, _, within = name.partition(" … ")
    return statement.startswith(start) and re.search(rf"\b{within}\b", statement) is not None


@pytest.mark.parametrize("title", ["Statements", "Headers", "Statuses"])
def test_each_line_names_its_page_and_tests_that_exist(title: str) -> None:
    assert len(rows(title)) > 5
    for row in rows(title):
        assert "https://docs.snowflake.com/en/" in row[1], row
        assert TEST.findall(row[-1]), row
        for name, path in TEST.findall(row[-1]):
            source = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), name


def test_each_statement_has_a_line_of_its_kind() -> None:
    names = [row[0].strip("`") for row in rows("Statements") if row[0] != "`SELECT`"]
    unnamed = [s for s in statements() if not any(is_named(s, name) for name in names)]
    assert [s for s in unnamed if not s.startswith("SELECT\n")] == []
    assert all("warehouse" in row[2] or "as CREATE" in row[2] for row in rows("Statements"))


def test_each_header_that_the_emulator_sends_has_a_line() -> None:
    source = (ROOT / "app" / "emulator" / "wire.py").read_text(encoding="utf-8")
    sent = {name.removesuffix("-base64") for name in re.findall(r'"(sf-external-function-[a-z-]+)"', source)}
    assert sent
    assert sent <= {row[0].strip("`") for row in rows("Headers")}


def test_each_open_question_is_one_that_doctor_asks() -> None:
    assert [(row[0].strip("`"), row[1]) for row in rows("Open questions")] == [
        (key, text) for key, (text, _) in QUESTIONS.items()
    ]


def test_no_page_names_a_deprecated_function() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "infra").rglob("*.md"), *(ROOT / "infra").rglob("*.sql")]
    pages = [page for page in pages if page not in (PAGE, ROOT / "CHANGELOG.md")]
    assert [page.name for page in pages if "GET_SERVICE_STATUS" in page.read_text(encoding="utf-8")] == []
