"""The SQL files against sqlfluff, their own README, and the order of Snowflake's reference."""

import re
from configparser import RawConfigParser
from itertools import takewhile
from pathlib import Path

import pytest
from sqlfluff.core import FluffConfig, Linter

from app.provisioning.ddl import FOLDER, VARIABLES, file_names, load, variables_of
from tests.app.provisioning.test_ddl import PLAIN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
STATEMENTS = [(name, statement) for name in file_names() for statement in load(name, PLAIN)]

# The order of clauses in the syntax of Snowflake's reference, each page named by its statement.
_FUNCTION = ["RETURNS VARIANT", "CALLED ON NULL INPUT", "RETURNS NULL ON NULL INPUT", "VOLATILE"]
REFERENCE = {
    "CREATE STAGE": ["ENCRYPTION", "DIRECTORY", "COMMENT"],
    "CREATE API INTEGRATION": [
        "API_PROVIDER",
        "API_AWS_ROLE_ARN",
        "AZURE_TENANT_ID",
        "AZURE_AD_APPLICATION_ID",
        "GOOGLE_AUDIENCE",
        "API_ALLOWED_PREFIXES",
        "ENABLED",
        "COMMENT",
    ],
    "ALTER API INTEGRATION": [
        "API_AWS_ROLE_ARN",
        "AZURE_AD_APPLICATION_ID",
        "API_KEY",
        "ENABLED",
        "API_ALLOWED_PREFIXES",
    ],
    "CREATE OR REPLACE EXTERNAL FUNCTION": [
        *_FUNCTION,
        "COMMENT",
        "API_INTEGRATION",
        "MAX_BATCH_ROWS",
        "COMPRESSION",
        "AS",
    ],
    "CREATE OR REPLACE FUNCTION … SERVICE": [
        *_FUNCTION,
        "SERVICE",
        "ENDPOINT",
        "COMMENT",
        "MAX_BATCH_ROWS",
        "MAX_BATCH_RETRIES",
        "ON_BATCH_FAILURE",
        "BATCH_TIMEOUT_SECS",
        "AS",
    ],
    "CREATE OR REPLACE FUNCTION … LANGUAGE PYTHON": [
        "COPY GRANTS",
        "RETURNS VARIANT",
        "LANGUAGE PYTHON",
        "CALLED ON NULL INPUT",
        "RETURNS NULL ON NULL INPUT",
        "VOLATILE",
        "RUNTIME_VERSION",
        "COMMENT",
        "ARTIFACT_REPOSITORY",
        "IMPORTS",
        "PACKAGES",
        "HANDLER",
    ],
    "CREATE STREAM": ["COMMENT"],
    "CREATE TASK": ["WAREHOUSE", "SCHEDULE", "USER_TASK_TIMEOUT_MS", "COMMENT", "AFTER", "WHEN"],
    "CREATE ALERT": ["SCHEDULE", "WAREHOUSE", "COMMENT"],
    "PUT": ["AUTO_COMPRESS", "OVERWRITE"],
}
CLAUSE = r"^    (AFTER(?= )|WHEN(?= )|[A-Z][A-Z_ ]*[A-Z](?= =| '|\s*$))"
# What these hold is a query, or columns.
WITHOUT_CLAUSES = ("CREATE TABLE IF NOT EXISTS ", "CREATE VIEW IF NOT EXISTS ")


def is_named(statement: str, name: str) -> bool:
    """Whether `name`, such as `CREATE FUNCTION … SERVICE`, says what kind of statement this is."""
    start, _, within = name.partition(" … ")
    return statement.startswith(start + " ") and re.search(rf"\b{within}\b", statement) is not None


def readme_rows(header: str) -> dict[str, str]:
    """The README's table with that first column: each row's first cell to its second."""
    [table] = re.findall(rf"^\| {header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", table, re.MULTILINE))


@pytest.fixture(scope="module")
def linter() -> Linter:
    return Linter(config=FluffConfig.from_path(str(FOLDER)))


def test_sqlfluff_finds_nothing_to_mend(linter: Linter) -> None:
    found = linter.lint_paths((str(FOLDER),))
    assert len(found.get_violations()) == 0, found.as_records()
    assert sum(len(folder.files) for folder in found.paths) == len(file_names())


def test_what_sqlfluff_cannot_parse_is_what_the_readme_lists(linter: Linter) -> None:
    listed = readme_rows("statement")
    unparsable = [statement for _, statement in STATEMENTS if linter.parse_string(statement + ";").violations]
    named = [statement for _, statement in STATEMENTS if any(is_named(statement, name) for name in listed)]
    assert unparsable == named
    assert [name for name in listed if not any(is_named(statement, name) for statement in named)] == []


@pytest.mark.parametrize("name", file_names())
def test_a_statement_that_cannot_be_parsed_is_marked(name: str) -> None:
    listed = readme_rows("statement")
    named = [s for file, s in STATEMENTS if file == name and any(is_named(s, kind) for kind in listed)]
    assert (FOLDER / name).read_text(encoding="utf-8").count("noqa") == len(named)


def test_the_readme_names_every_file_once_and_in_order() -> None:
    assert list(readme_rows("file")) == file_names()
    numbers = [name[:2] for name in file_names()]
    assert all(number.isdigit() for number in numbers)
    assert len(set(numbers)) == len(numbers)


def test_the_readme_documents_every_variable() -> None:
    assert list(readme_rows("variable")) == sorted(VARIABLES)


def test_the_readme_says_which_names_may_be_qualified() -> None:
    for variable, kind in readme_rows("variable").items():
        if "name" in kind.split():
            qualified = "a.b.c" if kind == "qualified name" else "a"
            assert VARIABLES[variable](qualified)
            with pytest.raises(ValueError, match=r"parts|file name"):
                VARIABLES[variable](qualified + ".d" if kind != "file name" else "a/b")


def test_sqlfluff_knows_every_variable() -> None:
    config = RawConfigParser()
    config.read(ROOT / ".sqlfluff", encoding="utf-8")
    known = set(config["sqlfluff:templater:placeholder"]) - {"param_regex"}
    assert known == set(VARIABLES)


@pytest.mark.parametrize("name", file_names())
def test_files_end_in_a_statement_and_begin_with_a_reason(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text.startswith("-- ")
    assert text.endswith("\n")
    assert text.splitlines()[-1].partition(" -- ")[0].endswith(";")
    assert "&" not in text  # the CLI's older variables


@pytest.mark.parametrize("kind", REFERENCE)
def test_clauses_stand_in_the_order_of_the_reference(kind: str) -> None:
    statements = [statement for _, statement in STATEMENTS if is_named(statement, kind)]
    assert statements != []
    for statement in statements:
        first, *rest = statement.splitlines()
        head = "\n".join([first, *takewhile(lambda line: line.startswith("    "), rest)])
        clauses = re.findall(CLAUSE, head, re.MULTILINE)
        assert len(clauses) == len(re.findall(r"^    [^ )]", head, re.MULTILINE))
        assert clauses == sorted(clauses, key=REFERENCE[kind].index)


def test_every_statement_that_takes_clauses_is_held_to_the_reference() -> None:
    ddl = ("CREATE ", "ALTER API", "PUT ")
    known = [s for _, s in STATEMENTS if any(is_named(s, kind) for kind in REFERENCE)]
    others = [s for _, s in STATEMENTS if s.startswith(ddl) and s not in known]
    assert all(statement.startswith(WITHOUT_CLAUSES) for statement in others), others


def test_nothing_that_holds_images_or_trust_is_replaced_or_dropped() -> None:
    replaced = [s for _, s in STATEMENTS if s.startswith("CREATE OR REPLACE")]
    assert all(" FUNCTION " in statement.split("(")[0] for statement in replaced)
    dropped = {name: variables_of(name) for name in file_names() if name.startswith("9")}
    assert not any("stage" in variables for variables in dropped.values())


def test_every_function_is_granted_and_dropped_with_the_signatures_it_is_created_with() -> None:
    created = re.findall(r"FUNCTION \S+?\((.*)\)\n", "\n".join(s for _, s in STATEMENTS))
    types = {", ".join(argument.split()[1] for argument in signature.split(", ")) for signature in created}
    for name in ("21_grant_callers.sql", "91_drop_functions.sql"):
        found = re.findall(r"FUNCTION (?:IF EXISTS )?\S+?\((.*?)\)", "\n".join(load(name, PLAIN)))
        assert sorted(found) == sorted(types)
