"""Write the reference pages and the tables of pages, from code and results: python -m tests.write_docs."""

import argparse
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI

from app.api.asgi import ServiceState
from app.api.health import Gauges, create_router
from app.api.pages import document_classify
from app.cli.main import parser
from app.errors import InputError, ServiceError
from app.server.framing import BadRequest
from app.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "infra" / "docs"
_TABLE = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end of table -->", re.DOTALL)
# The first setting of each group.
GROUPS = {
    "host": "Server and authentication",
    "model_path": "Network and processes",
    "max_wait_seconds": "Limits",
    "allowed_url_hosts": "Fetching images",
    "snowflake_account": "Reading stages",
}
# What the service answers without an error class of its own.
OTHER_REQUEST_ERRORS = [
    (404, "not_found", "no", "There is no such path."),
    (405, "method_not_allowed", "no", "The path does not allow this method; see `Allow`."),
    (500, "internal_error", "yes", "The service failed; its log has the traceback."),
]


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Each setting is an environment variable, `EXT_CLASSIFY_` followed by its name. The service reads",
        "them once, at startup, and rejects invalid values. It warns of variables with that prefix that name",
        "no setting.",
    ]
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            lines += ["", f"## {GROUPS[name]}", "", "| name | default | meaning |", "| --- | --- | --- |"]
        description = " ".join((field.description or "").split()).rstrip(".")
        lines.append(f"| `{name.upper()}` | {_default(name, field.default)} | {_cell(description)} |")
    return "\n".join(lines)


def _default(name: str, value: object) -> str:
    computed = {
        "model_path": "the default network",
        "cache_dir": "the user's cache folder",
        "classifiers": "a process for each core",
        "patience_seconds": "20 in Snowpark Container Services, 0 elsewhere",
    }
    if name in computed:
        return computed[name]
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def errors_page() -> str:
    lines = [
        "# Error codes",
        "",
        "Codes are stable; messages name the rule and what was received, and may change.",
        "",
        "## Errors of a row",
        "",
        "One image cannot be classified. Its outcome has `error: {code, message, retryable}`, the status is",
        "200, and the other rows are unaffected. `retryable` is true if the same row may succeed later.",
        "What to do about each: [rows with errors](../operations.md#rows-with-errors).",
        "",
        "| `error.code` | meaning |",
        "| --- | --- |",
        *(
            f"| `{kind.code}` | {_meaning(kind)} |"
            for kind in _subclasses(InputError)
            if "code" in vars(kind)
        ),
        "",
        "## Errors of a request",
        "",
        'The whole request fails with `{"error": {code, message, retryable}}`. Snowflake retries on 429 and',
        "5xx, and fails the query on any other 4xx. What to do about each:",
        "[requests with errors](../operations.md#requests-with-errors).",
        "",
        "| status | `error.code` | retryable | meaning |",
        "| --- | --- | --- | --- |",
    ]
    rows = {
        (kind.status, kind.code, "yes" if kind.retryable else "no", _meaning(kind))
        for kind in (*_subclasses(ServiceError), BadRequest, *_subclasses(BadRequest))
    }
    lines += [
        f"| {status} | `{code}` | {retryable} | {meaning} |"
        for status, code, retryable, meaning in sorted(rows | set(OTHER_REQUEST_ERRORS))
    ]
    return "\n".join(lines)


def _subclasses(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from _subclasses(one)


def _meaning(kind: type) -> str:
    return _cell((inspect.getdoc(kind) or "").partition("\n")[0])


def command_line_page() -> str:
    lines = [
        "# Command line",
        "",
        "Exit codes: 0 for success, 1 for failure, 2 for invalid arguments, 3 if part of the images or files",
        "failed, 130 after Ctrl-C.",
        "",
        "| command | |",
        "| --- | --- |",
    ]
    # argparse has no public access to the commands of a parser.
    actions = parser()._actions  # noqa: SLF001
    [commands] = [one for one in actions if isinstance(one, argparse._SubParsersAction)]  # noqa: SLF001
    lines += [
        f"| [`{choice.dest}`](#{choice.dest}) | {_cell(choice.help or '')} |"
        for choice in commands._choices_actions  # noqa: SLF001
    ]
    for name, command in commands.choices.items():
        lines += ["", f"## {name}", "", "```", command.format_help().strip(), "```"]
    return "\n".join(lines)


def http_page() -> str:
    app = FastAPI()
    document_classify(app)
    app.include_router(create_router(cast("ServiceState", None), cast("Gauges", None)))
    lines = [
        "# HTTP",
        "",
        "A running service serves the same description as `/docs` and `/openapi.json`. Every error has the",
        "shape of [errors of a request](errors.md#errors-of-a-request). `/` is the",
        "[playground](../http.md#the-playground).",
    ]
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", f"{operation['summary']}.", ""]
            lines += [operation["description"], ""] if "description" in operation else []
            lines += _parameters(operation)
            lines += ["| status | meaning |", "| --- | --- |"]
            lines += [
                f"| {status} | {_cell(response['description'])} |"
                for status, response in sorted(operation["responses"].items())
            ]
    return "\n".join(lines)


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", []):
        yield f"- `{parameter['name']}` ({parameter['in']}): {parameter['description']}"
        yield ""


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


REFERENCE = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "cli.md": command_line_page,
    "http.md": http_page,
}


def reference_page(name: str) -> str:
    """The text of a reference page. It depends neither on the terminal nor on this shell's settings."""
    os.environ["COLUMNS"] = "100"  # argparse reads it
    return f"<!-- Written by python -m tests.write_docs; do not edit. -->\n\n{REFERENCE[name]()}\n"


def with_tables(page: str) -> str:
    """A page with its tables as the files have them that its markers name."""

    def table(marker: re.Match[str]) -> str:
        text = (ROOT / marker[1]).read_text(encoding="utf-8").strip()
        return f"<!-- table: {marker[1]} -->\n\n{text}\n\n<!-- end of table -->"

    return _TABLE.sub(table, page)


def main() -> None:
    for name in REFERENCE:
        (DOCS / "reference" / name).write_text(reference_page(name), encoding="utf-8")
    for path in DOCS.glob("*.md"):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
