"""What the pages for operators name is there: settings, alerts, figures, codes, the log, commands."""

import ast
import functools
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
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
from tests.write_docs import OTHER_REQUEST_ERRORS

INFRA = ROOT / "infra"
DOCS = INFRA / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
PAGES = [DOCS / "operations.md", DOCS / "threat_model.md", DOCS / "faq.md"]
AMAZON = (INFRA / "aws" / "ext_classify.yaml").read_text(encoding="utf-8")
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
# What looks like an error's code, and is a column or an alert of Snowflake.
OTHERS_NAMES = {"file_url", "image_drift_alert", "nearest_label"}

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
    """The text below a heading, up to the next one of its rank or a higher one."""
    rank = heading.partition(" ")[0]
    _, found, below = OPERATIONS.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{len(rank)}}} ", below, flags=re.MULTILINE)[0]


def codes_of(kind: type[Any]) -> set[str]:
    own = {kind.code} if "code" in vars(kind) else set()
    return own.union(*map(codes_of, kind.__subclasses__()))


@functools.cache
def all_calls() -> Mapping[str, list[ast.Call]]:
    """By the name of the function or method, wherever in app."""
    found = defaultdict[str, list[ast.Call]](list)
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                    found[name].append(node)
    return found


def calls(name: str) -> list[ast.Call]:
    return all_calls()[name]


def texts_in(node: ast.AST) -> list[str]:
    found = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))
    return [value for value in found if isinstance(value, str)]


def codes_of_other_errors() -> set[str]:
    """Codes of responses to exceptions without a code of their own."""
    written = {text for call in calls("ErrorDetail") for text in texts_in(call) if text.isidentifier()}
    return written - {"_"} | {code for _, code, _, _ in OTHER_REQUEST_ERRORS}


CODES = codes_of(InputError) | codes_of(ServiceError) | codes_of(BadRequest) | codes_of_other_errors()


def test_every_alert_is_explained_and_no_other() -> None:
    rules = {
        rule["alert"]: rule["labels"]["severity"] for group in ALERTS["groups"] for rule in group["rules"]
    }
    alarms = dict.fromkeys(re.findall(r"^  (\w+Alarm):$", AMAZON, re.MULTILINE))
    rows = dict(ROW.findall(section("## Alerts")))
    explained = {
        name: None if name.endswith("Alarm") else row.split("|")[0].strip() for name, row in rows.items()
    }
    assert len(alarms) > 3
    assert explained == rules | alarms


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


@pytest.mark.parametrize(
    ("heading", "codes"),
    [
        ("### Rows with errors", codes_of(InputError)),
        ("### Requests with errors", CODES - codes_of(InputError)),
    ],
)
def test_every_code_has_a_row_for_the_caller_and_the_operator(heading: str, codes: set[str]) -> None:
    rows = [line.strip("| ").split(" | ") for line in section(heading).splitlines() if line.startswith("| `")]
    assert sorted(code for row in rows for code in SPAN.findall(row[0])) == sorted(codes)
    assert [row for row in rows if len(row) != 3] == []


def event_rows() -> dict[str, set[str]]:
    rows = ROW.findall(section("### Events"))
    return {event: set(SPAN.findall(row.rpartition(" | ")[2])) for event, row in rows}


def test_every_event_of_the_log_is_explained_with_its_fields() -> None:
    events: dict[str, set[str]] = {}
    for call in (*calls("log_event"), *calls("log_model")):
        fields = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        for event in texts_in(call.args[0]):
            events.setdefault(event, set()).update(fields)
    for call in calls("format_event"):  # an event that the log's writer adds itself
        if isinstance(call.args[1], ast.Dict) and None not in call.args[1].keys:
            keys = [text for key in call.args[1].keys if key is not None for text in texts_in(key)]
            events[texts_in(call.args[1].values[0])[0]] = set(keys) - {"event"}
    # Given by name elsewhere: the identity of a network, and both ids.
    for event in ("ready", "reloaded"):
        events[event] |= {"name", "version"}
    assert event_rows() == events


def logged_texts() -> set[str]:
    """First arguments of all calls that log a line, wherever in app."""
    levels = ("debug", "info", "warning", "error", "exception", "critical", "log")
    logged = [call for level in levels for call in calls(level)]
    ours = [call for call in logged if ast.unparse(call.func).rpartition(".")[0].lower().endswith("logger")]
    assert all(isinstance(call.args[0], ast.Constant) for call in ours), "a constant, so that it can be found"
    return {text for call in ours for text in texts_in(call.args[0])} - {"%s"}


def test_every_other_line_of_the_log_is_explained() -> None:
    written = logged_texts()
    lines = [line for line, _ in ROW.findall(section("### Warnings and errors").replace("` …", "` |"))]
    assert len(lines) > 5
    assert [line for line in lines if not any(text.startswith(line) for text in written)] == []
    assert [text for text in written if not any(text.startswith(line) for line in lines)] == []


def test_every_start_that_fails_is_explained() -> None:
    rows = section("### It does not start, or exits")
    messages = {
        text for kind in ("ArtifactError", "OSError") for call in calls(kind) for text in texts_in(call)
    }
    beginnings = {text for text in messages if text.startswith("The ")}
    assert len(beginnings) > 2
    explained = re.findall(r"`(?:ext-classify: )?(The [^`]*)`", rows)
    assert [text for text in beginnings if not any(text.startswith(line) for line in explained)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page: Path) -> None:
    blocks = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    commands = [line for line in blocks.splitlines() if line.startswith("ext-classify ")]
    commands += [span for span in spans(page) if re.match(r"ext-classify [a-z]+ \S", span)]
    for command in commands:
        parse_arguments(shlex.split(command, comments=True)[1:])
    assert commands or page.stem == "threat_model"


def test_flags_of_register_are_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    others = ("--tmpfs", "--pids-limit")  # docker's
    of_register = [
        span
        for page in PAGES
        for span in spans(page)
        if re.match(r"register |--[a-z]", span) and not span.startswith(others)
    ]
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
