"""Local SQL at the terminal: runs one statement, or reads statements interactively."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

from app.cli.service_process import describe_model, own_service
from app.cli.sql import LOCAL_INTEGRATION
from app.cli.terminal import open_screen
from app.client import Client, ClientError
from app.emulator import DATABASE, SCHEMA, Chaos, LocalServer, split_statements
from app.errors import SnowflakeNotConfigured, WrongAccount
from app.images.files import find_images, is_named_as_image
from app.provisioning.register import Registration, register
from app.provisioning.user_session import StatementFailed, UserSession, connect

MAX_BATCH_ROWS = 32
# Small, so that a few images make several batches.
MAX_BATCH_ROWS_IN_CHAOS = 4
WIDEST_CELL = 80
# A heatmap, which no one reads.
_BASE64 = re.compile(r"[A-Za-z0-9+/=]{200,}")
# Snowflake retries for longer; at a terminal, a closed port is a service that has ended.
REFUSED_SECONDS = 1.0
MAX_HISTORY_LINES = 1000
_POLL_SECONDS = 0.1
_ACCIDENTS = ("repeated", "delayed", "dropped")
_BANNER = """
Local SQL: an emulation of Snowflake on DuckDB that calls the service at {url}; {network} answers.
The stage @images holds the {images} images of {folder}. Try:

  SELECT relative_path, ext_classify(file_url):label::string FROM DIRECTORY(@images);

End each statement with a semicolon. Type help for the shell's commands, or exit to quit.
"""
_HELP = r"""
SELECT …;   run a statement, which may have several lines and ends with a semicolon
\x          show each row as lines of column and value, or stop doing so; rows too wide for a table always are
help        show this text
exit        quit, as Ctrl-D does; Ctrl-C discards what is typed, or interrupts the statement

Try:
  SHOW STAGES;
  SELECT relative_path, size FROM DIRECTORY(@images) ORDER BY relative_path;
  SELECT relative_path, ext_classify(file_url) AS answer FROM DIRECTORY(@images);
"""


class LocalSql(NamedTuple):
    """An emulated Snowflake, its shell, and the service: a process, unless its URL was given.

    `network` is the name and version of the network that answers.
    """

    shell: "Shell"
    server: LocalServer
    url: str
    network: str
    service: "subprocess.Popen[bytes] | None"


@contextmanager
def local_sql(  # noqa: PLR0913 - each is said by its name
    images: Path,
    url: str | None,
    model: Path | None,
    *,
    service_port: int | None = None,
    chaos_seed: int | None = None,
    port: int = 0,
) -> Iterator[LocalSql]:
    """Start the emulator and, without a URL, a service with the network `model`. Raises ClientError."""
    find_images([images])
    with ExitStack() as stack:
        chaos = None if chaos_seed is None else Chaos(chaos_seed)
        server = stack.enter_context(LocalServer(port, chaos=chaos, refused_seconds=REFUSED_SECONDS))
        stage = server.mount(images.resolve())
        shown = sum(is_named_as_image(file.relative_path) for file in stage.directory)
        if not shown:
            raise ClientError(
                f"There are no images in {images}; links that lead out of the folder are ignored."
            )
        service = None
        if url is None:
            url, service = stack.enter_context(
                own_service(port=service_port, environment=server.service_environment, model=model)
            )
        server.run_service((DATABASE, SCHEMA, "EXT_CLASSIFY_SERVICE"), url.rstrip("/"))
        user_session = stack.enter_context(connect(**server.connect_arguments))
        stack.callback(server.cancel_queries)  # a statement that Ctrl-C interrupts, before its service stops
        batch_rows = MAX_BATCH_ROWS if chaos is None else MAX_BATCH_ROWS_IN_CHAOS
        for _ in register(user_session, _registration(url.rstrip("/"), batch_rows)):
            pass
        with Client(url) as client:
            network = describe_model(client)
        yield LocalSql(Shell(user_session, server, shown), server, url, network, service)


class Shell:
    """Runs statements and prints their results."""

    def __init__(self, user_session: UserSession, server: LocalServer | None = None, images: int = 0) -> None:
        self._user_session = user_session
        self.server = server
        self.images = images
        self._is_expanded = False

    def run(self, sql: str, *, as_json: bool) -> list[list[Any]]:
        """Print and return the rows; print the counts of service calls to stderr. Raises StatementFailed."""
        started = time.perf_counter()
        with self._progress(as_json=as_json):
            columns, rows, query_id = self._user_session.table(sql)
        seconds = time.perf_counter() - started
        if as_json:
            for row in rows:
                print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, default=_plain))
        else:
            print_table(columns, rows, expanded=self._is_expanded)
        query = self.server.query(query_id) if self.server else None
        if query is not None and query.counts:
            sys.stdout.flush()
            models = f", answered by {', '.join(sorted(query.models))}" if query.models else ""
            print(f"({_describe_calls(query.counts)}{models}, {seconds:.1f} s)", file=sys.stderr)
            if query.row_errors:
                errors = ", ".join(f"{count} {code}" for code, count in query.row_errors.most_common())
                print(f"(rows with an error, see answer:error: {errors})", file=sys.stderr)
            if query.row_errors.keys() & {SnowflakeNotConfigured.code, WrongAccount.code}:
                print("(only the service that sql starts without --url can read @images)", file=sys.stderr)
        return rows

    def answer(self, statement: str | None, *, as_json: bool, banner: str = "") -> None:
        """Run the statement, or read statements interactively if it is None. Raises ClientError."""
        if statement is not None:
            self.run(statement, as_json=as_json)
        else:
            self.converse(as_json=as_json, banner=banner)

    def converse(self, *, as_json: bool, banner: str = "", read: Callable[[str], str] = input) -> None:
        """Run statements until exit or the end of input. Raises ClientError at the end if any failed."""
        if not sys.stdin.isatty():
            if failed := sum(not self._try(sql, as_json=as_json) for sql in _statements(read, self._obey)):
                raise ClientError(f"Statements that failed: {failed}.")
            return
        print(banner)
        with _history():
            for sql in _statements(read, self._obey):
                try:
                    self._try(sql, as_json=as_json)
                except KeyboardInterrupt:
                    self._cancel()

    def _try(self, sql: str, *, as_json: bool) -> bool:
        """Whether the statement succeeds; print its error."""
        try:
            self.run(sql, as_json=as_json)
        except StatementFailed as error:
            print(error, file=sys.stderr)
            return False
        return True

    def _cancel(self) -> None:
        if self.server is None:
            print("(interrupted; the statement may still be running)", file=sys.stderr)
            return
        self.server.cancel_queries()
        print("(interrupted)", file=sys.stderr)

    def _obey(self, line: str) -> bool:
        """Whether the line is a command of the shell, which needs no semicolon."""
        match line.strip().rstrip(";").strip().lower():
            case "help" | "?" | "\\?" | "\\h" | "\\help":
                print(_HELP)
            case "\\x":
                self._is_expanded = not self._is_expanded
                print(f"Expanded rows are {'on' if self._is_expanded else 'off'}.")
            case word if word.startswith("\\") and word != "\\q":
                print(f"There is no command {word}: type help.", file=sys.stderr)
            case _:
                return False
        return True

    @contextmanager
    def _progress(self, *, as_json: bool) -> Iterator[None]:
        """Show on a terminal how many rows the statement in the block has sent to the service."""
        if self.server is None:
            yield
            return
        is_over = threading.Event()
        showing = threading.Thread(target=_show_calls, args=(self.server, is_over, as_json), daemon=True)
        showing.start()
        try:
            yield
        finally:
            is_over.set()
            showing.join()


def _show_calls(server: LocalServer, is_over: threading.Event, as_json: bool) -> None:
    while not server.sent_rows:
        if is_over.wait(_POLL_SECONDS):
            return
    shown = 0
    with open_screen(as_json=as_json).progress(None, "rows to the service") as advance:
        while not is_over.wait(_POLL_SECONDS):
            sent = server.sent_rows
            advance(sent - shown)
            shown = sent


@contextmanager
def _history() -> Iterator[None]:
    """Line editing, with the statements of earlier sessions; only this user can read their file."""
    try:
        import readline  # noqa: PLC0415 - not on all platforms
    except ImportError:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "ext-classify" / "sql_history"
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(MAX_HISTORY_LINES)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            readline.write_history_file(path)


def serve(server: LocalServer, url: str, network: str) -> None:
    """Accept logins of other clients until Ctrl-C."""
    print(
        f"Local SQL listens on 127.0.0.1:{server.port} and calls the service at {url}; {network} answers. "
        "Ctrl-C stops it."
    )
    print(f"Clients connect with:\n\n  {server.connect_arguments}\n\nIn another terminal, try:\n")
    print(
        f"  ext-classify register --local --port {server.port} --provider aws --stage photos --verify \\\n"
        "    --role-arn arn:aws:iam::000000000000:role/local",
        flush=True,
    )
    threading.Event().wait()


def banner(shell: Shell, url: str, network: str, folder: Path) -> str:
    return _BANNER.format(url=url, network=network, images=shell.images, folder=folder)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, expanded: bool = False) -> None:
    """Print a table, or a line for each value if `expanded` or if the table is wider than the terminal."""
    screen, is_terminal = open_screen(), sys.stdout.isatty()
    if not rows:
        screen.table(columns, [])
        print("(0 rows)")
        return
    table = [[_cell(value, WIDEST_CELL if is_terminal else None) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *table, strict=True)]
    if not expanded and not (is_terminal and sum(widths) + 2 * len(widths) > get_terminal_size().columns):
        screen.table(columns, table)
        return
    width = max(map(len, columns))
    for number, row in enumerate(rows, 1):
        screen.line(f"-[ row {number} ]-".ljust(width + 2, "-"), "bold")
        for name, value in zip(columns, row, strict=True):
            text = _BASE64.sub(_shorten, _cell(value)) if is_terminal else _cell(value)
            screen.line(f"{name:<{width}}  {text}")


def _shorten(found: re.Match[str]) -> str:
    return f"{found[0][:20]}… ({len(found[0])} characters)"


def _cell(value: Any, widest: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    text = "NULL" if value is None else " ".join(text.split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if widest is None or len(text) <= widest else f"{text[: widest - 1]}…"


def _plain(value: Any) -> Any:
    """Convert a value that has no JSON type: a Decimal to a number, any other value to text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _describe_calls(counts: Counter[str]) -> str:
    """`6 rows to the service in 1 batch`, then the faults, retries and polls."""
    batches = f"{counts['batches']} batch{'es' if counts['batches'] != 1 else ''}"
    events = [f"{counts[name]} {name}" for name in (*_ACCIDENTS, "retries", "polls") if counts[name]]
    rows = f"{counts['rows']} row{'s' if counts['rows'] != 1 else ''}"
    return ", ".join([f"{rows} to the service in {batches}", *events])


def _statements(read: Callable[[str], str], obey: Callable[[str], bool]) -> Iterator[str]:
    """Yield each statement as soon as its semicolon is read; `obey` runs commands of the shell."""
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
            text = ""  # discard the unfinished statement
            continue
        if not text and obey(line):
            continue
        text += f"{line}\n"
        if text.strip().rstrip(";").strip().lower() in {"exit", "quit", "\\q"}:
            return
        statements, text = split_statements(text)
        yield from statements
    if text:
        yield text


def _registration(url: str, max_batch_rows: int) -> Registration:
    """The objects to create before the first statement, as `register` does."""
    return Registration(
        "aws",
        {
            "database": DATABASE,
            "schema": SCHEMA,
            "stage": "IMAGES",
            "function": "EXT_CLASSIFY",
            "integration": LOCAL_INTEGRATION,
            "api_provider": "aws_api_gateway",
            "aws_role_arn": "arn:aws:iam::000000000000:role/local",
            "allowed_prefix": f"{url}/",
            "url": f"{url}/classify",
            "max_batch_rows": str(max_batch_rows),
        },
    )
