"""Sessions of the real connector with a fake Snowflake server."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import snowflake.connector  # noqa: F401 - takes a second, which would delay the first login

from app.errors import (
    FileMissing,
    SnowflakeLoginFailed,
    SnowflakeRefused,
    SnowflakeUnavailable,
    StageNotAuthorized,
    WarehouseUnavailable,
)
from app.settings import Settings
from app.snowflake import session as session_module
from app.snowflake.session import SnowflakeSession
from model.errors import ImageTooLarge, InputError
from tests.snowflake_front import LOGIN, QUERY, SESSION, Answer, Asked, Front, failure, front, success, table

RENEWAL = "/session/token-request"
STAGE = ("DB", "S", "IMAGES")
# Far longer than the timeouts under test, and far shorter than the connector's own.
TEST_TIMEOUT_SECONDS = 180

_Result = TypeVar("_Result")


@pytest.fixture
def server() -> Iterator[Front]:
    with front() as opened:
        yield opened


def run(server: Front, work: Callable[[SnowflakeSession], Awaitable[_Result]], **changes: Any) -> _Result:
    """The result of `work` with its own session, which has already logged in."""

    async def with_session() -> _Result:
        given = {
            "snowflake_account": "local",
            "snowflake_user": "CLASSIFIER",
            "snowflake_token": "any",
            "snowflake_host": "127.0.0.1",
            "snowflake_port": server.port,
            "snowflake_protocol": "http",
            "snowflake_timeout_seconds": 120,
        }
        async with asyncio.timeout(TEST_TIMEOUT_SECONDS):
            async with SnowflakeSession(Settings(**given | changes)) as session:
                await session._warming  # noqa: SLF001 - so that tests count from the first login
                return await work(session)

    return asyncio.run(with_session())


async def outcome(result: Awaitable[object]) -> object:
    """The rows, or the error's class."""
    try:
        return await result
    except InputError as error:
        return type(error)


def test_one_login_serves_all_statements(server: Front) -> None:
    async def ask(session: SnowflakeSession) -> None:
        for _ in range(5):
            assert await session.query("SELECT 1") == [("1",)]

    run(server, ask)
    assert len(server.logins) == 1
    assert len(server.statements) == 5


def test_parameters_are_sent_separately(server: Front) -> None:
    run(server, lambda session: session.query("SELECT PARSE_JSON(?)", ["['); DROP --"]))
    [asked] = [asked for asked in server.asked if asked.path == QUERY]
    assert asked.sql == "SELECT PARSE_JSON(?)"
    assert asked.body["bindings"] == {"1": {"type": "TEXT", "value": "['); DROP --"}}


def test_login_sends_user_role_and_query_tag(server: Front) -> None:
    changes = {"snowflake_role": "READER", "snowflake_warehouse": "SMALL"}
    run(server, lambda session: session.query("SELECT 1"), **changes)
    [asked] = server.logins
    assert (asked.query["roleName"], asked.query["warehouse"]) == (["READER"], ["SMALL"])
    assert asked.body["data"]["LOGIN_NAME"] == "CLASSIFIER"
    parameters = asked.body["data"]["SESSION_PARAMETERS"]
    assert parameters["QUERY_TAG"] == "ext-classify"
    assert parameters["USE_CACHED_RESULT"] is False
    assert asked.body["data"]["CLIENT_ENVIRONMENT"]["APPLICATION"] == "ext_classify"


@pytest.mark.slow
def test_burst_opens_at_most_the_maximum_of_connections(server: Front) -> None:
    together, inside, most = threading.Barrier(3), [0], [0]
    lock = threading.Lock()

    def wait_for_three(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait()
        with lock:
            inside[0] -= 1
        return table(["1"])

    server.answer = wait_for_three

    async def burst(session: SnowflakeSession) -> None:
        assert await asyncio.gather(*(session.query("SELECT 1") for _ in range(51))) == [[("1",)]] * 51

    run(server, burst, snowflake_max_connections=3)
    assert most == [3]
    assert len(server.logins) == 3


@pytest.mark.parametrize(
    ("number", "status"),
    [(390104, 200), (390104, 401), (390111, 200), (390114, 200), (390115, 200), (390195, 200), (250002, 200)],
)
def test_expired_session_causes_one_login_and_no_error(server: Front, number: int, status: int) -> None:
    over = iter([failure(number, status=status)])
    server.answer = lambda asked: next(over, None) if asked.path == QUERY else None
    assert run(server, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(server.logins) == 2
    assert len(server.statements) == 2


def test_expired_session_is_closed_before_a_new_login(server: Front) -> None:
    over = iter([failure(390104)])
    server.answer = lambda asked: next(over, None) if asked.path == QUERY else None
    run(server, lambda session: session.query("SELECT 1"))
    assert [asked.path for asked in server.asked] == [LOGIN, QUERY, "/session", LOGIN, QUERY, "/session"]


def test_expired_token_is_renewed_without_a_login(server: Front) -> None:
    over = iter([failure(390112)])

    def answer(asked: Asked) -> Answer:
        if asked.path == RENEWAL:
            return success(**SESSION | {"sessionToken": "renewed"})
        return next(over, None) if asked.path == QUERY else None

    server.answer = answer
    assert run(server, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(server.logins) == 1


def test_token_that_cannot_be_renewed_causes_one_login(server: Front) -> None:
    over = iter([failure(390112)])

    def answer(asked: Asked) -> Answer:
        if asked.path == RENEWAL:
            return failure(390114)
        return next(over, None) if asked.path == QUERY else None

    server.answer = answer
    assert run(server, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(server.logins) == 2


def test_session_that_always_expires_is_a_retryable_error(server: Front) -> None:
    server.answer = lambda asked: failure(390104) if asked.path == QUERY else None
    with pytest.raises(SnowflakeUnavailable) as caught:
        run(server, lambda session: session.query("SELECT 1"))
    assert caught.value.retryable
    assert len(server.logins) == 2


def test_failed_login_is_not_repeated_at_once(server: Front) -> None:
    server.answer = lambda asked: failure(390100) if asked.path == LOGIN else None

    async def burst(session: SnowflakeSession) -> object:
        return await asyncio.gather(*(outcome(session.query("SELECT 1")) for _ in range(20)))

    assert run(server, burst) == [SnowflakeLoginFailed] * 20
    assert len(server.logins) == 1


def test_failed_login_is_retried_after_the_pause(server: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LOGIN_PAUSE_SECONDS", 0.0)
    refusals = iter([failure(390100), failure(390100)])
    server.answer = lambda asked: next(refusals, None) if asked.path == LOGIN else None

    async def ask_twice(session: SnowflakeSession) -> object:
        return [await outcome(session.query("SELECT 1")) for _ in range(2)]

    assert run(server, ask_twice) == [SnowflakeLoginFailed, [("1",)]]
    assert len(server.logins) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failure(390100), SnowflakeLoginFailed),
        (failure(390144), SnowflakeLoginFailed),
        ((403, {}), SnowflakeLoginFailed),
        ((404, {}), SnowflakeLoginFailed),
        ((503, {}), SnowflakeUnavailable),
    ],
)
def test_rejected_login_maps_to_an_error(server: Front, answer: Answer, error: type[InputError]) -> None:
    server.answer = lambda asked: answer if asked.path == LOGIN else None
    seconds = (
        1 if error is SnowflakeUnavailable else 10
    )  # the connector retries temporary errors for this long
    asked = run(server, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=seconds)
    assert asked is error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failure(2003), StageNotAuthorized),
        (failure(3001), StageNotAuthorized),
        (failure(606), WarehouseUnavailable),
        (failure(90073), WarehouseUnavailable),
        (failure(1003), SnowflakeRefused),
        (failure(604), SnowflakeRefused),
        ((503, {}), SnowflakeUnavailable),
        ((500, {}), SnowflakeUnavailable),
        ((404, {}), SnowflakeUnavailable),
    ],
)
def test_refused_statement_says_why(server: Front, answer: Answer, error: type[InputError]) -> None:
    server.answer = lambda asked: answer if asked.path == QUERY else None
    seconds = (
        1 if error is SnowflakeUnavailable else 10
    )  # the connector retries temporary errors for this long
    asked = run(server, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=seconds)
    assert asked is error
    assert len(server.logins) == 1


def test_closed_port_is_unavailable() -> None:
    with front() as gone:
        pass
    asked = run(gone, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=1)
    assert asked is SnowflakeUnavailable


@pytest.mark.slow
def test_hanging_login_times_out(server: Front) -> None:
    server.answer = lambda asked: server.hang() if asked.path == LOGIN else None
    asked = run(server, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=1)
    assert asked is SnowflakeUnavailable


@pytest.mark.slow
def test_hanging_statement_times_out_with_all_queued_calls(server: Front) -> None:
    server.answer = lambda asked: server.hang() if asked.path == QUERY else None

    async def burst(session: SnowflakeSession) -> object:
        return await asyncio.gather(*(outcome(session.query("SELECT 1")) for _ in range(30)))

    limits = {"snowflake_max_connections": 1, "snowflake_timeout_seconds": 1}
    assert run(server, burst, **limits) == [SnowflakeUnavailable] * 30
    assert len(server.statements) == 1


@pytest.mark.slow
def test_slow_response_times_out(server: Front) -> None:
    """Each read is short, so no socket timeout applies."""

    async def ask(session: SnowflakeSession) -> object:
        server.drip_seconds = 0.3
        answer = await outcome(session.query("SELECT 1"))
        server.drip_seconds = 0.0
        return answer

    assert run(server, ask, snowflake_timeout_seconds=1) is SnowflakeUnavailable


@pytest.mark.slow
def test_session_recovers_with_snowflake(server: Front) -> None:
    server.answer = lambda asked: server.hang() if asked.path == QUERY else None

    async def ask_twice(session: SnowflakeSession) -> object:
        first = await outcome(session.query("SELECT 1"))
        server.answer = lambda _: None
        return [first, await outcome(session.query("SELECT 1"))]

    assert run(server, ask_twice, snowflake_timeout_seconds=4) == [SnowflakeUnavailable, [("1",)]]


def test_event_loop_is_not_blocked_by_a_statement(server: Front) -> None:
    release = threading.Event()

    def wait(asked: Asked) -> Answer:
        if asked.path == QUERY:
            release.wait()
        return None

    server.answer = wait

    async def ask(session: SnowflakeSession) -> object:
        asked = asyncio.ensure_future(session.query("SELECT 1"))
        while not server.statements:  # noqa: ASYNC110 - the server is not on this loop
            await asyncio.sleep(0.01)
        assert not asked.done()
        release.set()
        return await asked

    assert run(server, ask) == [("1",)]


@pytest.mark.slow
def test_hanging_logout_does_not_delay_shutdown(server: Front) -> None:
    server.answer = lambda asked: server.hang() if asked.path == "/session" else None
    asked = run(server, lambda session: session.query("SELECT 1"), snowflake_timeout_seconds=4)
    assert asked == [("1",)]
    assert server.asked[-1].path == "/session"


def test_sessions_are_closed(server: Front) -> None:
    run(server, lambda session: session.query("SELECT 1"))
    assert (server.asked[-1].path, server.asked[-1].query["delete"]) == ("/session", ["true"])


def test_session_without_an_account_sends_no_request(server: Front) -> None:
    async def run_idle() -> None:
        async with SnowflakeSession(Settings(snowflake_host="127.0.0.1", snowflake_port=server.port)):
            pass

    asyncio.run(run_idle())
    assert server.asked == []


def download(server: Front, *listed: tuple[str, int], path: str = "july/a.png") -> object:
    """Download a file of at most 100 bytes from a stage that lists these names and sizes."""
    rows = [[name, str(size), "md5", "date"] for name, size in listed]

    def answer(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        return (table(*rows) if rows else table(width=4)) if asked.sql.startswith("LIST") else failure(1003)

    server.answer = answer
    return run(server, lambda session: outcome(session.download(STAGE, path, 100)))


LOCATION = """'@"DB"."S"."IMAGES"/july/a.png'"""


@pytest.mark.parametrize("name", ["images/july/a.png", "s3://bucket/steel/july/a.png"])
@pytest.mark.parametrize("size", [0, 100, 116])
def test_listed_file_is_downloaded(server: Front, name: str, size: int) -> None:
    assert download(server, (name, size)) is SnowflakeRefused
    listing, getting = server.statements
    assert listing == f"LIST {LOCATION}"
    assert getting.startswith(f"GET {LOCATION} 'file://")
    assert "PATTERN" not in getting


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("images/july/a.png.gz",),
        ("images/july/a.png/a.png",),
        ("images/july/a.png/b.png", "images/july/a.png2"),
    ],
)
def test_unlisted_file_is_missing(server: Front, names: tuple[str, ...]) -> None:
    assert download(server, *((name, 10) for name in names)) is FileMissing
    assert len(server.statements) == 1


def test_too_large_listed_file_is_not_downloaded(server: Front) -> None:
    assert download(server, ("images/july/a.png", 117)) is ImageTooLarge
    assert len(server.statements) == 1


def test_files_with_the_same_prefix_are_not_downloaded(server: Front) -> None:
    assert download(server, ("images/july/a.png", 10), ("images/july/a.png.gz", 10**9)) is SnowflakeRefused
    assert server.statements[1].endswith(r" PATTERN = '.*a\\.png'")


def test_file_with_the_path_of_a_folder_is_rejected(server: Front) -> None:
    assert download(server, ("images/july/a.png", 10), ("images/july/a.png/a.png", 10)) is SnowflakeRefused
    assert len(server.statements) == 1
