"""Local SQL at the terminal: one statement, or one after the other."""

import contextlib
import importlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from app.client import ClientError
from app.image_files import find_images
from app.own_service import own_service
from app.snowflake.console import Console, StatementFailed, connect
from app.snowflake.local.catalog import DATABASE, SCHEMA
from app.snowflake.local.chaos import Chaos
from app.snowflake.local.grammar import split_statements
from app.snowflake.local.server import LocalServer
from app.snowflake.register import Registration, register
from app.terminal import open_screen

MAX_BATCH_ROWS = 32
# So that even a few images travel in several.
MAX_BATCH_ROWS_IN_CHAOS = 4
WIDEST_CELL = 80
_ACCIDENTS = ("repeated", "delayed", "dropped")
_BANNER = """
Local SQL: an emulation of Snowflake on DuckDB, calling the real service at {url}.
@images holds the {images} images of {folder}. Try:

  SELECT relative_path, ext_classify(file_url):label::string FROM DIRECTORY(@images);

A statement ends with a semicolon; Ctrl-D or exit; leaves.
"""


@contextmanager
def local_sql(
    images: Path,
    *,
    url: str | None = None,
    chaos_seed: int | None = None,
    port: int = 0,
    service_port: int | None = None,
) -> Iterator[tuple["Shell", str, "subprocess.Popen[bytes] | None"]]:
    """A shell, the service's URL, and its process if it is our own. Raises ClientError."""
    find_images([images])
    with ExitStack() as stack:
        chaos = None if chaos_seed is None else Chaos(chaos_seed)
        server = stack.enter_context(LocalServer(port, chaos=chaos))
        stage = server.mount(images.resolve())
        if not stage.directory:
            raise ClientError(f"There are no images in {images}; links that lead out of it do not count.")
        service = None
        if url is None:
            url, service = stack.enter_context(
                own_service(port=service_port, environment=server.service_environment)
            )
        console = stack.enter_context(connect(**server.connect_arguments))
        batch_rows = MAX_BATCH_ROWS if chaos is None else MAX_BATCH_ROWS_IN_CHAOS
        for _ in register(console, _registration(url.rstrip("/"), batch_rows)):
            pass
        yield Shell(console, server, len(stage.directory)), url, service


class Shell:
    """Runs statements and prints what they answer."""

    def __init__(self, console: Console, server: LocalServer | None = None, images: int = 0) -> None:
        self._console = console
        self.server = server
        self.images = images

    def run(self, sql: str, *, as_json: bool) -> list[list[Any]]:
        """Print the answer, and how it came about on stderr. Raises StatementFailed."""
        started = time.perf_counter()
        columns, rows, query_id = self._console.table(sql)
        seconds = time.perf_counter() - started
        if as_json:
            for row in rows:
                print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=_plain))
        else:
            print_table(columns, rows)
        query = self.server.local.queries.get(query_id) if self.server else None
        if query is not None and query.counts:
            sys.stdout.flush()
            print(f"({_describe_calls(query.counts)}, {seconds:.1f} s)", file=sys.stderr)
            if query.row_errors:
                errors = ", ".join(f"{count} {code}" for code, count in query.row_errors.most_common())
                print(f"(answered with an error, which answer:error tells of: {errors})", file=sys.stderr)
        return rows

    def answer(self, statement: str | None, *, as_json: bool, banner: str = "") -> None:
        """One statement, or those that are typed. Raises ClientError."""
        if statement is not None:
            self.run(statement, as_json=as_json)
        else:
            self.converse(as_json=as_json, banner=banner)

    def converse(self, *, as_json: bool, banner: str = "", read: Callable[[str], str] = input) -> None:
        """Until exit or the end of the input. Raises ClientError in the end for statements that failed."""
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # lets input() edit and remember lines
        if sys.stdin.isatty():
            print(banner)
        failed = 0
        for sql in _statements(read):
            try:
                self.run(sql, as_json=as_json)
            except StatementFailed as error:
                failed += 1
                print(f"{error}", file=sys.stderr)
            except KeyboardInterrupt:
                print("(not waited for)", file=sys.stderr)
        if failed and not sys.stdin.isatty():
            raise ClientError(f"Statements that failed: {failed}.")


def serve(server: LocalServer, url: str) -> None:
    """Let other clients log in until Ctrl-C."""
    print(f"Local SQL on 127.0.0.1:{server.port}, calling the service at {url}, until Ctrl-C.")
    print(f"Clients log in by:\n\n  {server.connect_arguments}\n\nIn another terminal, try:\n")
    print(
        f"  ext-classify register --local --port {server.port} --provider aws --stage photos --verify \\\n"
        f"    --url {url}/classify --role-arn arn:aws:iam::000000000000:role/local",
        flush=True,
    )
    threading.Event().wait()


def banner(shell: Shell, url: str, folder: Path) -> str:
    return _BANNER.format(url=url, images=shell.images, folder=folder)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    open_screen().table(columns, [[_cell(value) for value in row] for row in rows])
    if not rows:
        print("(0 rows)")


def _cell(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    text = "NULL" if value is None else " ".join(text.split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    is_too_wide = len(text) > WIDEST_CELL and sys.stdout.isatty()
    return text[: WIDEST_CELL - 1] + "…" if is_too_wide else text


def _plain(value: Any) -> Any:
    """JSON for what it has no form of: numbers stay numbers."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _describe_calls(counts: Counter[str]) -> str:
    """`6 rows in 1 batch`, and what went wrong on the way."""
    batches = f"{counts['batches']} batch{'es' if counts['batches'] != 1 else ''}"
    events = [f"{counts[name]} {name}" for name in (*_ACCIDENTS, "retries", "polls") if counts[name]]
    rows = f"{counts['rows']} row{'s' if counts['rows'] != 1 else ''}"
    return ", ".join([f"{rows} to the service in {batches}", *events])


def _statements(read: Callable[[str], str]) -> Iterator[str]:
    """One statement at a time, each up to its semicolon; an error message may follow each."""
    first, next_one = ("sql> ", "..> ") if sys.stdin.isatty() else ("", "")
    text = ""
    while True:
        try:
            line = read(next_one if text else first)
        except EOFError:
            break
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print()
            text = ""  # what was typed so far is dropped
            continue
        text += f"{line}\n"
        if text.strip().rstrip(";").strip().lower() in {"exit", "quit"}:
            return
        statements, text = split_statements(text)
        yield from statements
    if text:
        yield text


def _registration(url: str, max_batch_rows: int) -> Registration:
    """What local SQL sets up before the first statement, as `register` would."""
    return Registration(
        "aws",
        {
            "database": DATABASE,
            "schema": SCHEMA,
            "stage": "IMAGES",
            "function": "EXT_CLASSIFY",
            "integration": "EXT_CLASSIFY",
            "api_provider": "aws_api_gateway",
            "aws_role_arn": "arn:aws:iam::000000000000:role/local",
            "allowed_prefix": f"{url}/",
            "url": f"{url}/classify",
            "max_batch_rows": str(max_batch_rows),
        },
    )
