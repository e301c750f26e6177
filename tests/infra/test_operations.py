"""What the pages for operators name is there: settings, alerts, figures, codes, the log, commands."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.main import parse_arguments
from app.errors import ServiceError
from app.server.framing import BadRequest
from app.settings import Settings
from model.errors import InputError
from tests.infra.test_observability import exposed, named
from tests.test_house import ROOT

INFRA = ROOT / "infra"
DOCS = INFRA / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
PAGES = [DOCS / "operations.md", DOCS / "threat_model.md", DOCS / "faq.md"]
ALERTS: dict[str, Any] = yaml.safe_load((INFRA / "observability" / "alerts.yml").read_text(encoding="utf-8"))

# What looks like a setting of ours, and is Snowflake's, OpenSSL's or a gateway's.
OTHERS_WORDS = {
    "API_AWS_ROLE_ARN",
    "API_GCP_SERVICE_ACCOUNT",
    "API_KEY",
    "AI_CLASSIFY",
    "AUTO_COMPRESS",
    "AWS_IAM",
    "ENFORCE_NETWORK_RULES_FOR_INTERNAL_STAGES",
    "GOOGLE_AUDIENCE",
    "HTTPS_PROXY",
    "BATCH_TIMEOUT_SECS",
    "MAX_BATCH_RETRIES",
    "MAX_BATCH_ROWS",
    "NO_PROXY",
    "ON_BATCH_FAILURE",
    "REQUESTS_CA_BUNDLE",
    "SNOWFLAKE_SSE",
    "SSL_CERT_FILE",
}
# What looks like an error's code, and is a column.
OTHERS_NAMES = {"file_url", "nearest_label"}

SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
ANY_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([^`]+)` \|(.*)\|$", re.MULTILINE)


def name_of(path: Path) -> str:
    return path.stem


def spans(page: Path) -> list[str]:
    found = SPAN.findall(ANY_BLOCK.sub("", page.read_text(encoding="utf-8")))
    return [" ".join(span.split()) for span in found]


def section(heading: str) -> str:
    """What stands below a heading, up to the next one of its rank or a higher one."""
    rank = heading.partition(" ")[0]
    _, found, below = OPERATIONS.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{len(rank)}}} ", below, flags=re.MULTILINE)[0]


def codes_of(kind: type[Any]) -> set[str]:
    own = {kind.code} if "code" in vars(kind) else set()
    return own.union(*map(codes_of, kind.__subclasses__()))


def calls(name: str) -> Iterator[ast.Call]:
    """Of a function or method, wherever in app."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
                yield node


def texts_in(node: ast.AST) -> list[str]:
    found = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))
    return [value for value in found if isinstance(value, str)]


def codes_of_other_errors() -> set[str]:
    """Codes of responses to exceptions without a code of their own."""
    return {text for call in calls("ErrorDetail") for text in texts_in(call) if text.isidentifier()}


CODES = codes_of(InputError) | codes_of(ServiceError) | codes_of(BadRequest) | codes_of_other_errors()


def test_every_alert_is_explained_and_no_other() -> None:
    rules = {
        rule["alert"]: rule["labels"]["severity"] for group in ALERTS["groups"] for rule in group["rules"]
    }
    told = {alert: row.split("|")[0].strip() for alert, row in ROW.findall(section("## Alerts"))}
    assert told == rules


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_is_named_is_there(page: Path) -> None:
    settings = {name.upper() for name in Settings.model_fields}
    words = {
        found["name"]
        for span in spans(page)
        if (found := re.fullmatch(r"(EXT_CLASSIFY_)?(?P<name>[A-Z]+(_[A-Z]+)+)(\s*=.*)?", span))
    }
    words |= set(re.findall(r"EXT_CLASSIFY_([A-Z_]+[A-Z])", page.read_text(encoding="utf-8")))
    assert words <= settings | OTHERS_WORDS
    assert words & settings


def test_no_word_is_excused_that_nobody_uses() -> None:
    used = {span.partition(" ")[0] for page in PAGES for span in spans(page)}
    assert used >= OTHERS_WORDS | OTHERS_NAMES


def test_every_figure_that_is_named_is_exposed() -> None:
    names = named(OPERATIONS)
    assert len(names) > 8
    # A histogram is named without what is behind its name.
    histograms = {name.removesuffix("_bucket") for name in exposed() if name.endswith("_bucket")}
    assert names - {"ext_classify_"} <= exposed() | histograms


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_code_that_is_named_is_there(page: Path) -> None:
    names = {span for span in spans(page) if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", span)}
    logged = {span for row in event_rows().values() for span in row} | set(event_rows())
    figures = named(" ".join(names))
    assert names - figures <= CODES | logged | OTHERS_NAMES
    assert names & CODES or page.stem == "threat_model"


@pytest.mark.parametrize("heading", ["### Rows with errors", "### 202, and never an answer"])
def test_tables_of_errors_name_errors(heading: str) -> None:
    named_first = [code for row, _ in ROW.findall(section(heading)) for code in row.split("`, `")]
    assert set(named_first) <= CODES


def event_rows() -> dict[str, set[str]]:
    return {event: set(SPAN.findall(row)) for event, row in ROW.findall(section("## The log"))}


def test_every_event_of_the_log_is_explained_with_its_fields() -> None:
    events: dict[str, set[str]] = {}
    for call in (*calls("log_event"), *calls("log_model")):
        fields = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        for event in texts_in(call.args[0]):
            events.setdefault(event, set()).update(fields)
    # Given by name elsewhere: the identity of a network, and both ids.
    for event in ("ready", "reloaded"):
        events[event] |= {"name", "version"}
    told = {event: fields for event, fields in event_rows().items() if event in events}
    assert told == events


@pytest.mark.slow
def test_every_other_line_of_the_log_is_explained() -> None:
    written = {
        str(call.args[0].value)
        for level in ("warning", "error")
        for call in calls(level)
        if ast.unparse(call.func).startswith("logger.") and isinstance(call.args[0], ast.Constant)
    }
    told = {line for line, _ in re.findall(r"^\| `([A-Z][^`]*)`(.*)$", section("## The log"), re.MULTILINE)}
    assert len(told) > 5
    assert {line for line in told if not any(text.startswith(line) for text in written)} == set()
    assert {text for text in written if not any(text.startswith(line) for line in told)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    blocks = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    commands = [line for line in blocks.splitlines() if line.startswith("ext-classify ")]
    commands += [span for span in spans(page) if re.match(r"ext-classify [a-z]+ \S", span)]
    for command in commands:
        parse_arguments(shlex.split(command, comments=True)[1:])
    assert commands or page.stem == "threat_model"


def test_flags_of_register_are_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    of_register = [span for page in PAGES for span in spans(page) if re.match(r"register |--[a-z]", span)]
    named_flags = {flag for span in of_register for flag in re.findall(r"--[a-z-]+", span)}
    with pytest.raises(SystemExit):
        parse_arguments(["register", "--help"])
    assert len(named_flags) > 4
    assert named_flags <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_every_target_of_make_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        target for page in PAGES for span in spans(page) for target in re.findall(r"^make ([a-z-]+)", span)
    }
    assert len(targets) > 1
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()
