"""Requests and responses of external functions, over HTTP and through Snowflake's connector."""

import gzip
import json
import threading
from types import SimpleNamespace

import pytest

from app.emulator import LocalServer
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import DROP, Received, RemoteService, Reply, answer, echo
from tests.app.emulator.sql import Sql


def test_body_is_numbered_rows_compressed_with_gzip(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function("f(a VARCHAR, b VARCHAR)")
    sql.rows("SELECT f(a, a) FROM (VALUES ('x'), ('y')) AS t(a)")
    [received] = service.received
    assert received.headers["Content-Encoding"] == "gzip"
    assert received.body.startswith(b"\x1f\x8b")
    assert received.document == {"data": [[0, "x", "x"], [1, "y", "y"]]}
    assert received.headers["Content-Type"] == "application/json"
    assert received.headers["User-Agent"] == "snowflake/1.0"


@pytest.mark.parametrize(
    ("compression", "encoding"),
    [("AUTO", "gzip"), ("gzip", "gzip"), ("DEFLATE", "deflate"), ("NONE", None)],
)
def test_compression_is_an_option_of_the_function(
    sql: Sql, service: RemoteService, function: Function, compression: str, encoding: str | None
) -> None:
    function("f(a VARCHAR)", clauses=f"COMPRESSION = {compression}")
    assert json.loads(sql.value("SELECT f('x')")) == "x"
    [received] = service.received
    assert received.headers["Content-Encoding"] == encoding
    assert received.rows == [[0, "x"]]
    if encoding:
        assert received.headers["Accept-Encoding"] == encoding
    else:
        assert received.body.lstrip().startswith(b"{")


def test_compressed_answer_is_read(sql: Sql, service: RemoteService, function: Function) -> None:

    service.respond = lambda received: Reply(
        body=gzip.compress(echo(received).body), headers={"Content-Encoding": "gzip"}
    )
    function("f(a VARCHAR)", "VARCHAR")
    assert sql.value("SELECT f('x')") == "x"


def test_every_header_of_snowflake_is_sent(sql: Sql, service: RemoteService, function: Function) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    function(
        "f(file_url VARCHAR, options OBJECT, n INTEGER)",
        clauses="HEADERS = ('model-version' = 'v3') CONTEXT_HEADERS = (CURRENT_USER, current_schema)",
    )
    sql.rows("SELECT f('x', OBJECT_CONSTRUCT(), 1)")
    [received] = service.received
    headers = received.headers
    assert headers["sf-external-function-format"] == "json"
    assert headers["sf-external-function-format-version"] == "1.0"
    assert headers["sf-external-function-current-query-id"] == sql.query_id
    assert received.batch_id.startswith(sql.query_id)
    assert headers["sf-external-function-name"] == received.exact("sf-external-function-name") == "F"
    signature = "(FILE_URL VARCHAR, OPTIONS OBJECT, N NUMBER)"
    assert headers["sf-external-function-signature"] == signature
    assert received.exact("sf-external-function-signature") == signature
    assert headers["sf-external-function-return-type"] == "VARIANT"
    assert received.exact("sf-external-function-return-type") == "VARIANT"
    assert headers["sf-custom-model-version"] == "v3"
    assert headers["sf-context-current-user"] == received.exact("sf-context-current-user") == "LOCAL"
    assert headers["sf-context-current-schema"] == received.exact("sf-context-current-schema") == schema


def test_name_that_is_not_ascii_is_exact_in_base64(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function('"Größe 1\n2"(a VARCHAR)')
    sql.rows("SELECT \"Größe 1\n2\"('x')")
    [received] = service.received
    assert received.headers["sf-external-function-name"] == "Gr e 1 2"
    assert received.exact("sf-external-function-name") == "Größe 1\n2"


def test_return_type_header_includes_the_length(sql: Sql, service: RemoteService, function: Function) -> None:
    function("f(a VARCHAR)", "VARCHAR")
    sql.rows("SELECT f('x')")
    assert service.received[0].headers["sf-external-function-return-type"] == "VARCHAR(134217728)"


def test_each_row_is_sent_once_and_answered_in_order(
    sql: Sql, service: RemoteService, function: Function, numbers: int
) -> None:
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 100")
    rows = sql.rows("SELECT number, f('row ' || number) FROM numbers")
    assert [value for _, value in rows] == [f"row {number}" for number, _ in rows]
    assert len({number for number, _ in rows}) == numbers
    sent = [row[1] for received in service.received for row in received.rows]
    assert sorted(sent) == sorted(value for _, value in rows)


def test_batches_are_numbered_from_zero_and_never_too_large(
    sql: Sql, service: RemoteService, function: Function, numbers: int
) -> None:
    function("f(a VARCHAR)", clauses="MAX_BATCH_ROWS = 100")
    sql.rows("SELECT f(number) FROM numbers")
    assert max(len(received.rows) for received in service.received) == 100
    for received in service.received:
        assert [row[0] for row in received.rows] == list(range(len(received.rows)))
    assert len({received.batch_id for received in service.received}) == len(service.received)
    assert {received.headers["sf-external-function-current-query-id"] for received in service.received} == {
        sql.query_id
    }


def test_without_a_limit_rows_go_in_large_batches(
    sql: Sql, service: RemoteService, function: Function, numbers: int
) -> None:
    function("f(a VARCHAR)")
    sql.rows("SELECT f(number) FROM numbers")
    assert sum(len(received.rows) for received in service.received) == numbers
    assert len(service.received) <= 3


def test_null_is_sent_as_null(sql: Sql, service: RemoteService, function: Function) -> None:
    function("f(a VARCHAR)")
    assert sql.value("SELECT f(NULL)") is None
    assert service.received[0].rows == [[0, None]]


def test_strict_function_does_not_send_rows_with_null(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function("f(a VARCHAR, b VARCHAR)", "ARRAY", "RETURNS NULL ON NULL INPUT")
    answers = sql.column(
        "SELECT f(a, b) FROM (VALUES ('a', 'b'), (NULL, 'c'), ('d', NULL), ('e', 'f')) AS t(a, b)"
    )
    assert [value and json.loads(value) for value in answers] == [["a", "b"], None, None, ["e", "f"]]
    assert service.received[0].rows == [[0, "a", "b"], [1, "e", "f"]]


def test_strict_function_of_nulls_alone_sends_nothing(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function("f(a VARCHAR)", clauses="STRICT")
    assert sql.value("SELECT f(NULL)") is None
    assert service.received == []


def test_null_from_the_service_is_null(sql: Sql, service: RemoteService, function: Function) -> None:
    service.respond = lambda _: answer([None])
    function("f(a VARCHAR)")
    assert sql.value("SELECT f('a') IS NULL") is True


@pytest.mark.parametrize(
    ("kind", "expression", "sent"),
    [
        ("OBJECT", "OBJECT_CONSTRUCT('k', 1, 'l', ARRAY_CONSTRUCT('a', 'b'))", {"k": 1, "l": ["a", "b"]}),
        ("OBJECT", "{'evidence': true}", {"evidence": True}),
        ("VARIANT", "PARSE_JSON('{\"a\": [1.5]}')", {"a": [1.5]}),
        ("ARRAY", "ARRAY_CONSTRUCT(1, 2)", [1, 2]),
        ("BINARY", "TO_BINARY('00ffDe', 'HEX')", "00FFDE"),
        ("VARCHAR", "'naïve 猫 \"quoted\" \\\\ \\n \\t'", 'naïve 猫 "quoted" \\ \n \t'),
        ("VARCHAR", "'{\"a\": 1}'", '{"a": 1}'),
        ("VARCHAR", "12", "12"),
        ("VARCHAR", "TRUE", "true"),
        ("VARCHAR", 'PARSE_JSON(\'{"a": "text"}\'):a', "text"),
        ("VARCHAR", 'PARSE_JSON(\'{"a": {"b": 1}}\'):a', '{"b":1}'),
        ("NUMBER", "12345678901234567890123456789012345678", 12345678901234567890123456789012345678),
        ("NUMBER", "'12'", 12),
        ("NUMBER", "1.5", 2),
        ("NUMBER(10, 2)", "1.255", 1.26),
        ("FLOAT", "1.5", 1.5),
        ("FLOAT", "'2.5'", 2.5),
        ("BOOLEAN", "FALSE", False),
        ("BOOLEAN", "'yes'", True),
        ("VARIANT", "'text'", "text"),
    ],
)
def test_argument_is_of_the_declared_type(
    sql: Sql, function: Function, kind: str, expression: str, sent: object
) -> None:
    function(f"f(a {kind})")
    sql.rows(f"SELECT f({expression})")
    [[number, argument]] = function.service.received[0].rows
    assert number == 0
    assert argument == sent
    assert type(argument) is type(sent)


@pytest.mark.parametrize(
    ("kind", "expression", "errno"),
    [
        ("OBJECT", "'{\"evidence\": true}'", 1044),
        ("OBJECT", "ARRAY_CONSTRUCT(1)", 1044),
        ("ARRAY", "OBJECT_CONSTRUCT()", 1044),
        ("NUMBER", "'twelve'", 100038),
        ("NUMBER", "OBJECT_CONSTRUCT()", 1044),
        ("BOOLEAN", "'maybe'", 100037),
        ("FLOAT", "'NaN'::FLOAT", 2),
        ("FLOAT", "'inf'::FLOAT", 2),
    ],
)
def test_argument_of_another_type_is_refused(
    sql: Sql, function: Function, kind: str, expression: str, errno: int
) -> None:
    function(f"f(a {kind})")
    assert sql.error(f"SELECT f({expression})").errno == errno
    assert function.service.received == []


@pytest.mark.parametrize(
    ("returns", "answered", "expected"),
    [
        ("VARCHAR", "text", "text"),
        ("VARCHAR", 'with "quotes" and 猫', 'with "quotes" and 猫'),
        ("NUMBER", 12, 12),
        ("NUMBER", "12", 12),
        ("BOOLEAN", True, True),
        ("FLOAT", 0.1, 0.1),
    ],
)
def test_answer_is_of_the_declared_type(
    sql: Sql, function: Function, returns: str, answered: object, expected: object
) -> None:
    function.service.respond = lambda _: answer([answered])
    function("f(a VARCHAR)", returns)
    value = sql.value("SELECT f('x')")
    assert value == expected
    assert type(value) is type(expected)


def test_declared_scale_of_an_answer_is_kept(sql: Sql, service: RemoteService, function: Function) -> None:
    service.respond = lambda _: answer([0.9512])
    function("f(a VARCHAR)", "NUMBER(5, 4)")
    assert float(sql.value("SELECT f('x')")) == 0.9512


def test_answer_that_is_not_a_number_is_an_error(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    service.respond = lambda _: answer(["abc"])
    function("f(a VARCHAR)", "NUMBER")
    assert "abc" in str(sql.error("SELECT f('x')"))


def test_overload_is_chosen_by_the_number_of_arguments(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function("f(a VARCHAR)")
    function("f(a VARCHAR, b OBJECT)")
    sql.rows("SELECT f('x')")
    sql.rows("SELECT f('x', NULL)")
    signatures = [received.headers["sf-external-function-signature"] for received in service.received]
    assert signatures == ["(A VARCHAR)", "(A VARCHAR, B OBJECT)"]


def test_overloads_that_differ_only_in_types_are_refused(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    function("f(a VARCHAR)")
    function("f(a NUMBER)")
    assert sql.error("SELECT f(1)").errno == 2
    assert service.received == []


@pytest.mark.parametrize("arguments", ["", "'x', 'y', 'z'"])
def test_wrong_number_of_arguments_names_the_known_signatures(
    sql: Sql, service: RemoteService, function: Function, arguments: str
) -> None:
    function("f(a VARCHAR)")
    function("f(a VARCHAR, b OBJECT)")
    error = sql.error(f"SELECT f({arguments})")
    assert error.errno == 1044
    assert "(A VARCHAR), (A VARCHAR, B OBJECT)" in str(error)
    assert service.received == []


def test_function_without_arguments_is_called_for_each_row(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    service.respond = lambda received: answer([7] * len(received.rows))
    function("f()", "NUMBER")
    assert sql.column("SELECT f() FROM (VALUES (1), (2), (3))") == [7, 7, 7]
    assert service.received[0].rows == [[0], [1], [2]]


@pytest.mark.parametrize("failure", [Reply(429), Reply(500), Reply(503), DROP])
def test_transient_failure_is_retried_with_the_same_batch(
    sql: Sql, service: RemoteService, function: Function, server: LocalServer, failure: Reply
) -> None:
    failures = iter([failure, failure])
    service.respond = lambda received: next(failures, None) or echo(received)
    function("f(a VARCHAR)", "VARCHAR")
    assert sql.value("SELECT f('x')") == "x"
    assert len(service.received) == 3
    assert len({received.batch_id for received in service.received}) == 1
    assert len({received.body for received in service.received}) == 1
    assert server.local.queries.finished[sql.query_id].counts["retries"] == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 201, 204, 302])
def test_other_status_ends_the_query_at_once(
    sql: Sql, service: RemoteService, function: Function, status: int
) -> None:
    body = b"" if status == 204 else b'{"detail": "not so"}'
    service.respond = lambda _: Reply(status, body, {"Location": "/other"})
    function("f(a VARCHAR)")
    error = sql.error("SELECT f('x')")
    assert (error.errno, error.sqlstate) == (100351, "22023")
    assert f"{status} '{body.decode()}'" in str(error)
    assert len(service.received) == 1


@pytest.mark.slow
def test_service_that_stays_overloaded_ends_the_query(
    sql: Sql, service: RemoteService, function: Function, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def respond(_: Received) -> Reply:
        nonlocal now
        now += 1.0
        return Reply(503)

    service.respond = respond
    monkeypatch.setattr("app.emulator.remote.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(server.local.remote, "retry_seconds", 2.5)
    function("f(a VARCHAR)")
    error = sql.error("SELECT f('x')")
    assert error.errno == 100351
    assert "503" in str(error)
    assert len(service.received) == 3


@pytest.mark.slow
def test_unreachable_service_ends_the_query(
    sql: Sql, function: Function, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.local.remote, "retry_seconds", 0.5)
    function("f(a VARCHAR)")
    with RemoteService() as gone:
        sql.rows("ALTER API INTEGRATION gateway SET API_ALLOWED_PREFIXES = ('http://127.0.0.1')")
    sql.rows(
        "CREATE OR REPLACE EXTERNAL FUNCTION f(a VARCHAR) RETURNS VARIANT API_INTEGRATION = gateway "
        f"AS '{gone.url}'"
    )
    error = sql.error("SELECT f('x')")
    assert (error.errno, error.sqlstate) == (100350, "P0000")
    assert "Remote service cannot be reached" in str(error)


def test_deferred_batch_is_polled_without_a_body(
    sql: Sql, service: RemoteService, function: Function, server: LocalServer
) -> None:
    replies = iter([Reply(202), Reply(202), answer(["done"])])
    service.respond = lambda _: next(replies)
    function("f(a VARCHAR)", "VARCHAR", "HEADERS = ('model' = 'a')")
    assert sql.value("SELECT f('x')") == "done"
    post, *polls = service.received
    assert [received.method for received in service.received] == ["POST", "GET", "GET"]
    own = {name: value for name, value in post.headers.items() if name.lower().startswith("sf-")}
    for poll in polls:
        assert poll.body == b""
        assert {name: poll.headers[name] for name in own} == own
        assert "Content-Encoding" not in poll.headers
    assert server.local.queries.finished[sql.query_id].counts["polls"] == 2


@pytest.mark.slow
def test_throttled_poll_is_retried_as_a_poll(sql: Sql, service: RemoteService, function: Function) -> None:
    replies = iter([Reply(202), Reply(429), DROP, answer(["done"])])
    service.respond = lambda _: next(replies)
    function("f(a VARCHAR)", "VARCHAR")
    assert sql.value("SELECT f('x')") == "done"
    assert [received.method for received in service.received] == ["POST", "GET", "GET", "GET"]


@pytest.mark.parametrize("status", [500, 503, 404])
def test_error_while_polling_ends_the_query(
    sql: Sql, service: RemoteService, function: Function, status: int
) -> None:
    replies = iter([Reply(202), Reply(status, b"lost it")])
    service.respond = lambda _: next(replies)
    function("f(a VARCHAR)")
    error = sql.error("SELECT f('x')")
    assert error.errno == 100351
    assert f"{status} 'lost it'" in str(error)


@pytest.mark.parametrize(
    ("body", "errno", "message"),
    [
        (b"", 100287, "Error parsing JSON response"),
        (b"<html>", 100287, "Error parsing JSON response"),
        (b'"text"', 100287, 'top-level JSON object must contain "data" JSON array element'),
        (b'{"rows": []}', 100287, 'top-level JSON object must contain "data" JSON array element'),
        (b'{"data": {}}', 100287, 'top-level JSON object must contain "data" JSON array element'),
        (b'{"data": [[0]]}', 100287, "index 0 contains 1 elements, but 2 elements are expected"),
        (b'{"data": [[0, 1, 2]]}', 100287, "index 0 contains 3 elements, but 2 elements are expected"),
        (b'{"data": ["a"]}', 100287, "index 0 contains 0 elements, but 2 elements are expected"),
        (b'{"data": [[0, NaN]]}', 100287, "NaN"),
        (b'{"data": [[0, -Infinity]]}', 100287, "Infinity"),
        (b'{"data": [[0, 1e999]]}', 100287, "1e999 is out of range"),
        (b'{"data": [[0, "\xff"]]}', 100287, "Error parsing JSON response"),
        (b'{"data": [[0, "\\ud800"]]}', 100287, "Error parsing JSON response"),
        (b'{"data": [[0, ' + b"[" * 100_000 + b"]]}", 100287, "Error parsing JSON response"),
        (b'{"data": []}', 100352, "Function received the wrong number of rows, expected 1, got 0"),
        (b'{"data": [[0, 1], [1, 1]]}', 100352, "the wrong number of rows, expected 1, got 2"),
        (b'{"data": [[1, 1]]}', 100353, "Row numbers out of order"),
        (b'{"data": [["0", 1]]}', 100353, "Row numbers out of order"),
        (b'{"data": [[false, 1]]}', 100353, "Row numbers out of order"),
        (b'{"data": [[0, "' + b"a" * 10_000_000 + b'"]]}', 100351, "more than 10000000 bytes"),
    ],
    ids=range(20),
)
def test_answer_that_snowflake_rejects_ends_the_query(
    sql: Sql, function: Function, body: bytes, errno: int, message: str
) -> None:
    function.service.respond = lambda _: Reply(body=body)
    function("f(a VARCHAR)")
    error = sql.error("SELECT f('x')")
    assert error.errno == errno
    assert message in str(error)
    assert "F, request batch id" in str(error)
    assert len(function.service.received) == 1


def test_answer_with_a_wrong_content_encoding_ends_the_query(
    sql: Sql, service: RemoteService, function: Function
) -> None:
    service.respond = lambda received: Reply(body=echo(received).body, headers={"Content-Encoding": "gzip"})
    function("f(a VARCHAR)")
    assert sql.error("SELECT f('x')").errno == 100287
    assert len(service.received) == 1


def test_largest_answer_is_accepted(sql: Sql, service: RemoteService, function: Function) -> None:
    text = "a" * (10_000_000 - len('{"data": [[0, ""]]}'))
    service.respond = lambda _: answer([text])
    function("f(a VARCHAR)", "VARCHAR")
    assert sql.value("SELECT f('x')") == text


def test_rows_in_another_order_are_refused(sql: Sql, service: RemoteService, function: Function) -> None:
    service.respond = lambda _: Reply(body=b'{"data": [[1, "b"], [0, "a"]]}')
    function("f(a VARCHAR)")
    assert sql.error("SELECT f(a) FROM (VALUES ('x'), ('y')) AS t(a)").errno == 100353


def test_first_failure_ends_the_other_batches(
    sql: Sql, service: RemoteService, function: Function, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch is refused while all are in flight; without cancellation the others retry for ten minutes."""
    monkeypatch.setattr(server.local.remote, "retry_seconds", 600.0)
    all_sent = threading.Event()

    def respond(received: Received) -> Reply:
        if len(service.received) >= 8:
            all_sent.set()
        all_sent.wait()
        return Reply(400, b"no") if received.rows[0][1] == "7" else Reply(503)

    service.respond = respond
    function("f(a VARCHAR)", clauses="MAX_BATCH_ROWS = 1")
    error = sql.error("SELECT f(seq4()) FROM TABLE(GENERATOR(ROWCOUNT => 8))")
    assert error.errno == 100351
    assert "400 'no'" in str(error)


def test_query_fails_as_a_whole(sql: Sql, service: RemoteService, function: Function) -> None:
    service.respond = lambda received: Reply(400) if received.rows[0][1] == "3" else echo(received)
    function("f(a VARCHAR)", "VARCHAR", "MAX_BATCH_ROWS = 1")
    sql.rows("CREATE TABLE answers (answer VARCHAR)")
    error = sql.error("INSERT INTO answers SELECT f(a) FROM (VALUES ('1'), ('2'), ('3'), ('4')) AS t(a)")
    assert error.errno == 100351
    assert sql.value("SELECT COUNT(*) FROM answers") == 0
