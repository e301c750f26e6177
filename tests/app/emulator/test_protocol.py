"""Clients and sessions: logins, binds, threads, failures, and shutdown."""

import contextlib
import gzip
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from snowflake.connector.errors import Error

from app.emulator import LocalServer
from app.emulator.query import MAX_FINISHED_QUERIES, Query
from app.provisioning.user_session import StatementFailed, connect
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import Received, RemoteService, Reply, echo
from tests.app.emulator.sql import Sql


def post(server: LocalServer, path: str, document: Any, token: str = "") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
    url = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def log_in(server: LocalServer, query: str = "", **parameters: Any) -> str:
    data = {"LOGIN_NAME": "x", "SESSION_PARAMETERS": parameters, "CLIENT_APP_VERSION": "4.8.1"}
    status, answer = post(server, f"/session/v1/login-request?{query}", {"data": data})
    assert (status, answer["success"]) == (200, True)
    return str(answer["data"]["token"])


def ask(server: LocalServer, token: str, statement: str) -> Any:
    status, answer = post(server, "/queries/v1/query-request", {"sqlText": statement}, token)
    assert status == 200
    return answer


# Logins.


def test_session_has_the_user_role_and_warehouse_of_the_login(server: LocalServer) -> None:
    with Sql(server, user="anna", role='"An alyst"', warehouse="small") as sql:
        row = sql.row("SELECT CURRENT_USER(), CURRENT_ROLE(), CURRENT_WAREHOUSE()")
        assert row == ("ANNA", "An alyst", "SMALL")
        assert sql.connection.role == "An alyst"
        assert sql.connection.database == "LOCAL"


def test_login_without_a_database_gets_the_default_one(server: LocalServer) -> None:
    with Sql(server, database=None, schema=None) as sql:
        assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == ("LOCAL", "PUBLIC")


@pytest.mark.parametrize(
    ("database", "schema", "current"),
    [
        ("nope", "public", (None, None)),
        ("local", "nope", ("LOCAL", None)),
        ("LOCAL", "public", ("LOCAL", "PUBLIC")),
    ],
)
def test_missing_database_or_schema_is_not_current(
    server: LocalServer, database: str, schema: str, current: tuple[str | None, str | None]
) -> None:
    with Sql(server, database=database, schema=schema) as sql:
        assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == current


def test_unqualified_names_need_a_current_database(server: LocalServer, tmp_path: Path) -> None:
    server.mount(tmp_path)
    with Sql(server, database="nope") as sql:
        for statement in ("LIST @images", "CREATE TABLE t (a INT)", "SELECT * FROM DIRECTORY(@images)"):
            assert sql.error(statement).errno in {90105, 90106}
        assert sql.error("SELECT f('a')").errno == 2
        assert sql.rows("LIST @local.public.images") == []
        assert len(sql.rows("SHOW STAGES IN ACCOUNT")) >= 1
        assert sql.value("SELECT 1") == 1


def test_session_parameters_of_fakesnow_are_ignored(server: LocalServer, tmp_path: Path) -> None:
    token = log_in(server, FAKESNOW_DB_PATH=str(tmp_path), nop_regexes=["^CREATE"])
    assert not ask(server, token, "CREATE FUNCTION g() RETURNS INT AS '1'")["success"]
    assert list(tmp_path.iterdir()) == []


def test_unknown_token_requires_a_login(server: LocalServer) -> None:
    status, answer = post(server, "/queries/v1/query-request", {"sqlText": "SELECT 1"}, "unknown")
    assert (status, answer["code"]) == (401, "390104")


def test_logout_ends_the_session(server: LocalServer) -> None:
    token = log_in(server)
    assert ask(server, token, "SELECT 1")["success"]
    assert post(server, "/session?delete=true", {}, token)[0] == 200
    assert post(server, "/queries/v1/query-request", {"sqlText": "SELECT 1"}, token)[0] == 401


# Binds.


@pytest.fixture
def qmark(server: LocalServer, sql: Sql) -> Any:
    with Sql(server, paramstyle="qmark", schema=sql.value("SELECT CURRENT_SCHEMA()")) as session:
        yield session


def test_binds_of_each_type_arrive(qmark: Sql) -> None:
    given = ("it's ? \\ \n 猫", 12, True, None)
    assert qmark.row("SELECT ?, ?, ?, ?", given) == given


def test_binds_are_arguments_of_external_functions(
    qmark: Sql, function: Function, service: RemoteService
) -> None:
    function("f(a VARCHAR, b NUMBER)")
    qmark.rows("SELECT f(?, ?) WHERE ? = 3", ("it's", 2, 3))
    assert service.received[0].rows == [[0, "it's", 2]]


def test_binds_are_arguments_of_signed_urls(qmark: Sql, server: LocalServer, tmp_path: Path) -> None:
    server.mount(tmp_path)
    url = qmark.value("SELECT GET_PRESIGNED_URL(@local.public.images, ?, 60)", ("a b.png",))
    assert "/IMAGES/a%20b.png?" in url


def test_executemany_binds_each_row(qmark: Sql) -> None:
    qmark.rows("CREATE TABLE t (a VARCHAR, n NUMBER)")
    with qmark.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t VALUES (?, ?)", [("x", 1), ("y", 2)])
    assert qmark.rows("SELECT * FROM t WHERE n > ? ORDER BY n", (0,)) == [("x", 1), ("y", 2)]


def test_missing_bind_is_an_error(qmark: Sql) -> None:
    assert qmark.error("SELECT ?").errno == 2049


# Sessions and threads.


def test_sessions_do_not_share_role_and_schema(server: LocalServer, sql: Sql) -> None:
    with Sql(server) as other:
        other.rows("USE ROLE another")
        other.rows("CREATE SCHEMA LOCAL.of_the_other")
        assert sql.value("SELECT CURRENT_ROLE()") == "PUBLIC"
        assert sql.value("SELECT CURRENT_SCHEMA()") != "OF_THE_OTHER"


@pytest.mark.slow
def test_concurrent_sessions_get_their_own_answers(
    server: LocalServer, function: Function, service: RemoteService, sql: Sql
) -> None:
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 10")
    name = f"{sql.value('SELECT CURRENT_SCHEMA()')}.f"

    def work(number: int) -> bool:
        with Sql(server) as session:
            statement = f"SELECT {name}('{number}-' || seq4()) FROM TABLE(GENERATOR(ROWCOUNT => 100))"  # noqa: S608
            answers = [session.column(statement) for _ in range(5)]
        return answers == [[f"{number}-{row}" for row in range(100)]] * 5

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


@pytest.mark.slow
def test_threads_of_one_session_get_their_own_answers(sql: Sql, server: LocalServer, tmp_path: Path) -> None:
    """As in `upload`, they share one connection, which holds one result of DuckDB at a time."""
    (tmp_path / "a.png").write_bytes(b"x")
    server.mount(tmp_path)
    stage = "LOCAL.PUBLIC.IMAGES"

    def work(number: int) -> bool:
        with sql.connection.cursor() as cursor:
            rows = cursor.execute(f"SELECT {number}, relative_path FROM DIRECTORY(@{stage})").fetchall()  # noqa: S608
            listed = cursor.execute(f"LIST @{stage}").fetchall()
        return rows == [(number, "a.png")] and [row[0] for row in listed] == ["images/a.png"]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(100)))


def test_session_answers_while_another_waits_for_the_service(
    sql: Sql, server: LocalServer, function: Function, service: RemoteService
) -> None:
    """During the call the service requests signed URLs from the emulator."""

    def respond(received: Received) -> Reply:
        with Sql(server) as inner:
            return echo(received) if inner.value("SELECT 1") == 1 else Reply(400)

    service.respond = respond
    function("f(a VARCHAR)", "VARCHAR")
    assert sql.value("SELECT f('x')") == "x"


def test_running_query_is_not_evicted(
    sql: Sql, server: LocalServer, function: Function, service: RemoteService
) -> None:
    """Even when more queries finish meanwhile than the emulator keeps."""

    def respond(received: Received) -> Reply:
        for _ in range(MAX_FINISHED_QUERIES):
            query = Query({})
            server.local.queries.start(query)
            server.local.queries.finish(query)
        return echo(received)

    service.respond = respond
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 2000")
    answers = sql.column("SELECT f(seq4()) FROM TABLE(GENERATOR(ROWCOUNT => 4000))")
    assert answers == [str(number) for number in range(4000)]
    assert server.local.queries.finished[sql.query_id].counts["rows"] == 4000
    assert len(server.local.queries.finished) <= MAX_FINISHED_QUERIES


def test_calls_of_a_query_are_counted(
    sql: Sql, server: LocalServer, function: Function, service: RemoteService
) -> None:
    function("f(a VARCHAR)", clauses="MAX_BATCH_ROWS = 2")
    sql.rows("SELECT f(seq4()) FROM TABLE(GENERATOR(ROWCOUNT => 5))")
    assert server.local.queries.finished[sql.query_id].counts == {"rows": 5, "batches": 3, "requests": 3}


# Results and failures.


def test_result_scan_returns_the_whole_result(sql: Sql) -> None:
    rows = sql.rows("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y' ORDER BY a")
    query_id = sql.query_id
    sql.rows("SELECT 3 AS c")
    for _ in range(2):
        assert sql.rows("SELECT * FROM TABLE(RESULT_SCAN(%s))", (query_id,)) == rows
    assert sql.error("SELECT * FROM TABLE(RESULT_SCAN('nothing'))").errno == 709


def test_result_is_a_table_of_a_query(sql: Sql) -> None:
    sql.rows("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y'")
    query_id = sql.query_id
    assert sql.rows("SELECT b FROM TABLE(RESULT_SCAN(LAST_QUERY_ID())) WHERE a / 2 = 1") == [("y",)]
    sql.rows("CREATE TABLE t AS SELECT * FROM TABLE(RESULT_SCAN(%s)) AS r WHERE r.a = 1", (query_id,))
    assert sql.rows("SELECT * FROM t") == [(1, "x")]
    sql.rows("SHOW TABLES")
    assert sql.column("""SELECT "name" FROM TABLE(RESULT_SCAN(LAST_QUERY_ID())) WHERE "rows" = 1""") == ["T"]
    assert sql.error("SELECT name FROM TABLE(RESULT_SCAN(LAST_QUERY_ID()))").errno == 904
    assert sql.error("SELECT * FROM TABLE(RESULT_SCAN(LAST_QUERY_ID(-1)))").errno == 2


def test_result_may_be_fetched_later(sql: Sql, function: Function, service: RemoteService) -> None:
    function("f(a VARCHAR)", "VARCHAR")
    with sql.connection.cursor() as cursor:
        query_id = cursor.execute_async("SELECT f('x')")["queryId"]
        cursor.get_results_from_sfqid(query_id)
        assert cursor.fetchall() == [("x",)]
    assert len(service.received) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'unfinished",
        'SELECT "unfinished',
        "SELECT /* unfinished",
        "SELECT $$ unfinished",
        "LIST",
        "LIST @",
        "SHOW STAGES IN a.b.c.d",
        "GRANT",
        "GRANT USAGE ON",
        "CREATE STAGE",
        "CREATE EXTERNAL FUNCTION f(",
        "PUT",
        "GET",
        "USE",
        "USE a.b.c",
        "DROP FUNCTION f",
        "ALTER API INTEGRATION",
        "DESC STAGE a.b.c.d",
        "SELECT " + "(" * 3000 + "1" + ")" * 3000,
        "\0",
        "SELECT * FROM DIRECTORY()",
        "SELECT * FROM DIRECTORY('x')",
        "SELECT GET_PRESIGNED_URL()",
        "SELECT SYSTEM$ALLOWLIST(1, 2)",
        "INSERT INTO nowhere SELECT 1",
        "🦆",
    ],
    ids=range(26),
)
def test_no_statement_causes_an_http_error(server: LocalServer, statement: str) -> None:
    """The connector retries an HTTP 500."""
    token = log_in(server)
    answer = ask(server, token, statement)
    assert answer["success"] is False
    assert int(answer["code"]) > 0
    assert "Traceback" not in answer["message"]
    assert 'File "' not in answer["message"]
    assert ask(server, token, "SELECT 1")["success"]


@pytest.mark.parametrize(
    "statement", ["DROP STAGE s", "REMOVE @s", "DROP TABLE t", "USE SCHEMA public", "LIST @s"]
)
def test_describe_does_not_execute_the_statement(sql: Sql, statement: str) -> None:
    sql.rows("CREATE STAGE s")
    sql.rows("CREATE TABLE t (a INT)")
    before = sql.value("SELECT CURRENT_SCHEMA()")
    with sql.connection.cursor() as cursor, contextlib.suppress(Error):
        cursor.describe(statement)
    assert sql.rows("LIST @s") == sql.rows("SELECT * FROM t") == []
    assert sql.value("SELECT CURRENT_SCHEMA()") == before


def test_request_may_be_compressed(server: LocalServer) -> None:
    token = log_in(server)
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/queries/v1/query-request",
        gzip.compress(b'{"sqlText": "SHOW STAGES"}', mtime=0),
        {"Content-Encoding": "gzip", "Authorization": f'Snowflake Token="{token}"'},
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        assert json.load(response)["success"] is True


def test_user_session_gets_names_and_json(
    server: LocalServer, function: Function, service: RemoteService, sql: Sql
) -> None:
    function("f(a OBJECT)")
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    with connect(**server.connect_arguments | {"schema": schema}) as user_session:
        rows = user_session.rows("SELECT f(OBJECT_CONSTRUCT('a', ARRAY_CONSTRUCT(1))) AS answer, 'x' AS text")
        assert rows == [{"answer": {"a": [1]}, "text": "x"}]
        with pytest.raises(StatementFailed, match="function NOPE"):
            user_session.rows("SELECT nope()")


# Shutdown.


@pytest.mark.slow
def test_two_servers_are_independent(server: LocalServer) -> None:
    with LocalServer() as another, Sql(another) as sql:
        sql.rows("CREATE TABLE only_here (a INT)")
        sql.rows("CREATE STAGE only_here")
        with Sql(server) as before:
            assert before.error("SELECT * FROM only_here").errno == 2003
            assert before.error("LIST @only_here").errno == 2003
    with pytest.raises(Error):
        Sql(another, login_timeout=1)
    with Sql(server) as before:
        assert before.value("SELECT 1") == 1


@pytest.mark.slow
def test_shutdown_does_not_wait_for_a_query_that_retries(service: RemoteService) -> None:
    """The retries would last for ten minutes."""
    asked = threading.Event()

    def respond(_: Received) -> Reply:
        asked.set()
        return Reply(503)

    service.respond = respond
    failures: list[Error] = []
    with LocalServer(retry_seconds=600) as server:
        sql = Sql(server)
        sql.rows(
            "CREATE API INTEGRATION gateway API_PROVIDER = aws_api_gateway API_AWS_ROLE_ARN = 'x' "
            f"API_ALLOWED_PREFIXES = ('{service.origin}')"
        )
        Function(sql, service)("f(a VARCHAR)")
        thread = threading.Thread(target=lambda: failures.append(sql.error("SELECT f('x')")))
        thread.start()
        asked.wait()
    thread.join()
    assert [failure.errno for failure in failures] == [604]


def test_port_in_use_is_an_error(server: LocalServer) -> None:
    with pytest.raises(OSError, match="in use"):
        LocalServer(server.port)


# Clients without Arrow.


def test_node_client_gets_rows_as_json(server: LocalServer) -> None:
    login = {"CLIENT_APP_ID": "JavaScript", "LOGIN_NAME": "node"}
    _, answer = post(server, "/session/v1/login-request", {"data": login})
    token = answer["data"]["token"]
    statement = (
        "SELECT 1.5::NUMBER(3, 1) AS a, 'x' AS b, TRUE AS c, NULL AS d, '2026-01-02'::DATE AS e, "
        "'2026-01-02 03:04:05.25'::TIMESTAMP_NTZ AS f, '2026-01-02 03:04:05'::TIMESTAMP_TZ AS g, "
        "'01:02:03'::TIME AS h, PARSE_JSON('{\"k\": 1}') AS i, NULL::TIMESTAMP_NTZ AS j, 'y' AS b"
    )
    data = ask(server, token, statement)["data"]
    assert (data["queryResultFormat"], data["returned"]) == ("json", 1)
    [row] = data["rowset"]
    assert row == [
        "1.5",
        "x",
        "1",
        None,
        "20455",
        "1767323045.250000000",
        "1767323045.000000000 1440",
        "3723.000000000",
        '{"k":1}',
        None,
        "y",
    ]
    assert ask(server, token, "SELECT nonsense(")["success"] is False


def test_telemetry_is_accepted(server: LocalServer) -> None:
    status, answer = post(server, "/telemetry/send", {"logs": []})
    assert (status, answer["success"]) == (200, True)
