"""The SQL shell: printed rows, counts of service calls, and reading of statements."""

import json
from collections.abc import Iterator

import pytest

from app.cli.main import main
from app.cli.sql_shell import Shell, print_table
from app.client import ClientError
from app.emulator import LocalServer
from app.provisioning.user_session import StatementFailed, connect
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService, answer
from tests.app.emulator.sql import Sql
from tests.running import free_port


@pytest.fixture
def shell(server: LocalServer, sql: Sql) -> Iterator[Shell]:
    arguments = server.connect_arguments | {"schema": sql.value("SELECT CURRENT_SCHEMA()")}
    with connect(**arguments) as user_session:
        yield Shell(user_session, server, 0)


def converse(shell: Shell, *lines: str) -> None:
    """Type these lines, then end the input."""
    typed = iter(lines)

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    shell.converse(as_json=False, read=read)


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "N"], [["a", 1], ["longer", None], ["x\ny", {"k": "ü"}]])
    assert capsys.readouterr().out.splitlines() == [
        "NAME    N",
        "------  ----------",
        "a       1",
        "longer  NULL",
        'x y     {"k": "ü"}',
    ]


def test_run_prints_the_rows_and_counts_of_calls(
    shell: Shell, function: Function, service: RemoteService, capsys: pytest.CaptureFixture[str]
) -> None:
    function("f(a VARCHAR)", clauses="MAX_BATCH_ROWS = 2")
    shell.run("SELECT f(seq4()) AS answer FROM TABLE(GENERATOR(ROWCOUNT => 3))", as_json=True)
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines == [
        {"ANSWER": "0"},
        {"ANSWER": "1"},
        {"ANSWER": "2"},
    ]
    assert err.startswith("(3 rows to the service in 2 batches, ")


def test_run_counts_rows_with_errors_by_code(
    shell: Shell, function: Function, service: RemoteService, capsys: pytest.CaptureFixture[str]
) -> None:
    """The selected column may hide the error: a label is only NULL."""
    function("f(a VARCHAR)")
    errors = [{"code": "wrong_account"}, {"code": "corrupt_image"}, {"code": "wrong_account"}, None]
    service.respond = lambda received: answer(
        [{"label": None, "error": errors[row[0]]} for row in received.rows]
    )
    statement = "SELECT f(seq4()):label::string AS label FROM TABLE(GENERATOR(ROWCOUNT => 4))"
    shell.run(statement, as_json=True)
    assert "2 wrong_account, 1 corrupt_image" in capsys.readouterr().err
    service.respond = lambda received: answer([{"error": "text", "label": 1} for _ in received.rows])
    shell.run(statement, as_json=True)
    assert "error" not in capsys.readouterr().err


def test_one_row_is_in_the_singular(
    shell: Shell, function: Function, service: RemoteService, capsys: pytest.CaptureFixture[str]
) -> None:
    function("f(a VARCHAR)")
    shell.run("SELECT f('a') AS answer", as_json=True)
    assert capsys.readouterr().err.startswith("(1 row to the service in 1 batch, ")


def test_statement_without_calls_prints_no_counts(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run("SELECT 1 AS a", as_json=False)
    assert capsys.readouterr() == ("A\n-\n1\n", "")


def test_statement_runs_to_its_semicolon(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    converse(shell, "SELECT 'a;", "b' AS x", ";", "SELECT 2 AS y; SELECT 3 AS z; -- both", "SELECT 4 AS w")
    out = capsys.readouterr().out.split()
    assert out == ["X", "----", "a;", "b", "Y", "-", "2", "Z", "-", "3", "W", "-", "4"]


def test_failed_statement_does_not_end_the_shell(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClientError, match="failed: 1"):  # without a terminal, the exit status reports it
        converse(shell, "SELECT nope();", "SELECT 1 AS a;")
    out, err = capsys.readouterr()
    assert out == "A\n-\n1\n"
    assert "function NOPE" in err


@pytest.mark.parametrize("word", ["exit", "exit;", "QUIT;"])
def test_exit_ends_the_shell(shell: Shell, capsys: pytest.CaptureFixture[str], word: str) -> None:
    converse(shell, word, "SELECT 1;")
    assert capsys.readouterr().out == ""


def test_commands_of_the_shell_need_no_semicolon(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    converse(
        shell,
        "help",
        "\\x",
        "SELECT 1 AS a, 'b' AS long;",
        "\\x",
        "SELECT 2 AS c;",
        "\\nope",
        "\\q",
        "SELECT 3;",
    )
    out, err = capsys.readouterr()
    assert "semicolon" in out
    shown = out.partition("Expanded rows are on.\n")[2]
    assert shown.splitlines() == [
        "-[ row 1 ]-",
        "A     1",
        "LONG  b",
        "Expanded rows are off.",
        "C",
        "-",
        "2",
    ]
    assert "\\nope" in err


def test_word_of_a_command_may_be_a_line_of_a_statement(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    converse(shell, "SELECT 1 AS", "help", ";")
    assert capsys.readouterr().out == "HELP\n----\n1\n"


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:{port}", "does not answer"), ("127.0.0.1:{port}", "must begin with http://")],
)
def test_unusable_url_is_refused_before_the_emulator_starts(
    url: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sql", "--url", url.format(port=free_port()), "SELECT 1"]) == 1
    assert reason in capsys.readouterr().err


def test_service_that_has_ended_is_refused_without_the_retries_of_snowflake() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    with (
        LocalServer(retry_seconds=600, refused_seconds=0) as server,
        connect(**server.connect_arguments) as user_session,
    ):
        user_session.rows(
            "CREATE API INTEGRATION i API_PROVIDER = aws_api_gateway ENABLED = TRUE "
            f"API_AWS_ROLE_ARN = 'arn:aws:iam::000000000000:role/r' API_ALLOWED_PREFIXES = ('{url}')"
        )
        user_session.rows(
            f"CREATE EXTERNAL FUNCTION f(a VARCHAR) RETURNS VARIANT API_INTEGRATION = i AS '{url}f'"
        )
        with pytest.raises(StatementFailed, match="100350"):
            user_session.rows("SELECT f('a')")
