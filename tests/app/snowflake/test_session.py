"""Sessions through the real connector, at a door that can answer in Snowflake's stead."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import snowflake.connector  # noqa: F401 - takes a second, which the first login would wait for

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
# Far longer than what is waited for, and far shorter than what the connector would wait by itself.
PATIENCE_SECONDS = 20

_Result = TypeVar("_Result")


@pytest.fixture
def door() -> Iterator[Front]:
    with front() as opened:
        yield opened


def run(door: Front, work: Callable[[SnowflakeSession], Awaitable[_Result]], **changes: Any) -> _Result:
    """What comes of work with a session of its own, which has logged in already."""

    async def with_session() -> _Result:
        given = {
            "snowflake_account": "local",
            "snowflake_user": "CLASSIFIER",
            "snowflake_token": "any",
            "snowflake_host": "127.0.0.1",
            "snowflake_port": door.port,
            "snowflake_protocol": "http",
            "snowflake_timeout_seconds": 10,
        }
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with SnowflakeSession(Settings(**given | changes)) as session:
                await session._warming  # noqa: SLF001 - so that logins are counted from a known one
                return await work(session)

    return asyncio.run(with_session())


async def outcome(asked: Awaitable[object]) -> object:
    """The rows, or the error's class."""
    try:
        return await asked
    except InputError as error:
        return type(error)


def test_one_login_serves_all_statements(door: Front) -> None:
    async def ask(session: SnowflakeSession) -> None:
        for _ in range(5):
            assert await session.query("SELECT 1") == [("1",)]

    run(door, ask)
    assert len(door.logins) == 1
    assert len(door.statements) == 5


def test_parameters_travel_beside_the_statement(door: Front) -> None:
    run(door, lambda session: session.query("SELECT PARSE_JSON(?)", ["['); DROP --"]))
    [asked] = [asked for asked in door.asked if asked.path == QUERY]
    assert asked.sql == "SELECT PARSE_JSON(?)"
    assert asked.body["bindings"] == {"1": {"type": "TEXT", "value": "['); DROP --"}}


def test_session_says_who_it_is(door: Front) -> None:
    changes = {"snowflake_role": "READER", "snowflake_warehouse": "SMALL"}
    run(door, lambda session: session.query("SELECT 1"), **changes)
    [asked] = door.logins
    assert (asked.query["roleName"], asked.query["warehouse"]) == (["READER"], ["SMALL"])
    assert asked.body["data"]["LOGIN_NAME"] == "CLASSIFIER"
    assert asked.body["data"]["SESSION_PARAMETERS"]["QUERY_TAG"] == "ext-classify"
    assert asked.body["data"]["CLIENT_ENVIRONMENT"]["APPLICATION"] == "ext_classify"


def test_burst_opens_no_more_connections_than_allowed(door: Front) -> None:
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

    door.answer = wait_for_three

    async def burst(session: SnowflakeSession) -> None:
        assert await asyncio.gather(*(session.query("SELECT 1") for _ in range(51))) == [[("1",)]] * 51

    run(door, burst, snowflake_max_connections=3)
    assert most == [3]
    assert len(door.logins) == 3


@pytest.mark.parametrize(
    ("number", "status"),
    [(390104, 200), (390104, 401), (390111, 200), (390114, 200), (390115, 200), (390195, 200), (250002, 200)],
)
def test_session_that_is_over_costs_one_login_and_no_statement(door: Front, number: int, status: int) -> None:
    over = iter([failure(number, status=status)])
    door.answer = lambda asked: next(over, None) if asked.path == QUERY else None
    assert run(door, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(door.logins) == 2
    assert len(door.statements) == 2


def test_session_that_is_over_is_ended_before_another_begins(door: Front) -> None:
    over = iter([failure(390104)])
    door.answer = lambda asked: next(over, None) if asked.path == QUERY else None
    run(door, lambda session: session.query("SELECT 1"))
    assert [asked.path for asked in door.asked] == [LOGIN, QUERY, "/session", LOGIN, QUERY, "/session"]


def test_token_that_is_over_is_renewed_without_a_login(door: Front) -> None:
    over = iter([failure(390112)])

    def answer(asked: Asked) -> Answer:
        if asked.path == RENEWAL:
            return success(**SESSION | {"sessionToken": "renewed"})
        return next(over, None) if asked.path == QUERY else None

    door.answer = answer
    assert run(door, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(door.logins) == 1


def test_token_that_cannot_be_renewed_costs_one_login(door: Front) -> None:
    over = iter([failure(390112)])

    def answer(asked: Asked) -> Answer:
        if asked.path == RENEWAL:
            return failure(390114)
        return next(over, None) if asked.path == QUERY else None

    door.answer = answer
    assert run(door, lambda session: session.query("SELECT 1")) == [("1",)]
    assert len(door.logins) == 2


def test_session_that_is_always_over_ends_in_an_error_that_may_pass(door: Front) -> None:
    door.answer = lambda asked: failure(390104) if asked.path == QUERY else None
    with pytest.raises(SnowflakeUnavailable) as caught:
        run(door, lambda session: session.query("SELECT 1"))
    assert caught.value.retryable
    assert len(door.logins) == 2


def test_failed_login_is_not_repeated_at_once(door: Front) -> None:
    door.answer = lambda asked: failure(390100) if asked.path == LOGIN else None

    async def burst(session: SnowflakeSession) -> object:
        return await asyncio.gather(*(outcome(session.query("SELECT 1")) for _ in range(20)))

    assert run(door, burst) == [SnowflakeLoginFailed] * 20
    assert len(door.logins) == 1


def test_failed_login_is_repeated_after_the_pause(door: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "LOGIN_PAUSE_SECONDS", 0.0)
    refusals = iter([failure(390100), failure(390100)])
    door.answer = lambda asked: next(refusals, None) if asked.path == LOGIN else None

    async def ask_twice(session: SnowflakeSession) -> object:
        return [await outcome(session.query("SELECT 1")) for _ in range(2)]

    assert run(door, ask_twice) == [SnowflakeLoginFailed, [("1",)]]
    assert len(door.logins) == 3


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
def test_refused_login_says_why(door: Front, answer: Answer, error: type[InputError]) -> None:
    door.answer = lambda asked: answer if asked.path == LOGIN else None
    seconds = 1 if error is SnowflakeUnavailable else 10  # so long, the connector repeats what may pass
    asked = run(door, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=seconds)
    assert asked is error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failure(2003), StageNotAuthorized),
        (failure(3001), StageNotAuthorized),
        (failure(90105), StageNotAuthorized),
        (failure(606), WarehouseUnavailable),
        (failure(90073), WarehouseUnavailable),
        (failure(1003), SnowflakeRefused),
        (failure(604), SnowflakeRefused),
        ((503, {}), SnowflakeUnavailable),
        ((500, {}), SnowflakeUnavailable),
        ((404, {}), SnowflakeUnavailable),
    ],
)
def test_refused_statement_says_why(door: Front, answer: Answer, error: type[InputError]) -> None:
    door.answer = lambda asked: answer if asked.path == QUERY else None
    seconds = 1 if error is SnowflakeUnavailable else 10  # so long, the connector repeats what may pass
    asked = run(door, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=seconds)
    assert asked is error
    assert len(door.logins) == 1


def test_host_that_nobody_listens_at_is_unavailable() -> None:
    with front() as gone:
        pass
    asked = run(gone, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=1)
    assert asked is SnowflakeUnavailable


def test_login_that_hangs_is_given_up(door: Front) -> None:
    door.answer = lambda asked: door.hang() if asked.path == LOGIN else None
    asked = run(door, lambda session: outcome(session.query("SELECT 1")), snowflake_timeout_seconds=1)
    assert asked is SnowflakeUnavailable


def test_statement_that_hangs_is_given_up_with_all_that_wait_for_it(door: Front) -> None:
    door.answer = lambda asked: door.hang() if asked.path == QUERY else None

    async def burst(session: SnowflakeSession) -> object:
        return await asyncio.gather(*(outcome(session.query("SELECT 1")) for _ in range(30)))

    limits = {"snowflake_max_connections": 1, "snowflake_timeout_seconds": 1}
    assert run(door, burst, **limits) == [SnowflakeUnavailable] * 30
    assert len(door.statements) == 1


def test_answers_that_drip_are_given_up(door: Front) -> None:
    """Each wait is short, so no timeout of a socket ends it."""

    async def ask(session: SnowflakeSession) -> object:
        door.drip_seconds = 0.3
        answer = await outcome(session.query("SELECT 1"))
        door.drip_seconds = 0.0
        return answer

    assert run(door, ask, snowflake_timeout_seconds=1) is SnowflakeUnavailable


def test_session_recovers_when_snowflake_does(door: Front) -> None:
    door.answer = lambda asked: door.hang() if asked.path == QUERY else None

    async def ask_twice(session: SnowflakeSession) -> object:
        first = await outcome(session.query("SELECT 1"))
        door.answer = lambda _: None
        return [first, await outcome(session.query("SELECT 1"))]

    assert run(door, ask_twice, snowflake_timeout_seconds=2) == [SnowflakeUnavailable, [("1",)]]


def test_event_loop_turns_while_a_statement_waits(door: Front) -> None:
    release = threading.Event()

    def wait(asked: Asked) -> Answer:
        if asked.path == QUERY:
            release.wait()
        return None

    door.answer = wait

    async def ask(session: SnowflakeSession) -> object:
        asked = asyncio.ensure_future(session.query("SELECT 1"))
        while not door.statements:  # noqa: ASYNC110 - the door is not of this loop
            await asyncio.sleep(0.01)
        assert not asked.done()
        release.set()
        return await asked

    assert run(door, ask) == [("1",)]


def test_logout_that_hangs_does_not_hold_up_the_end(door: Front) -> None:
    door.answer = lambda asked: door.hang() if asked.path == "/session" else None
    asked = run(door, lambda session: session.query("SELECT 1"), snowflake_timeout_seconds=1)
    assert asked == [("1",)]
    assert door.asked[-1].path == "/session"


def test_sessions_are_ended(door: Front) -> None:
    run(door, lambda session: session.query("SELECT 1"))
    assert (door.asked[-1].path, door.asked[-1].query["delete"]) == ("/session", ["true"])


def test_session_without_an_account_asks_nothing(door: Front) -> None:
    async def run_idle() -> None:
        async with SnowflakeSession(Settings(snowflake_host="127.0.0.1", snowflake_port=door.port)):
            pass

    asyncio.run(run_idle())
    assert door.asked == []


def download(door: Front, *listed: tuple[str, int], path: str = "july/a.png") -> object:
    """Of a file with at most 100 bytes, while the stage lists these names and sizes."""
    rows = [[name, str(size), "md5", "date"] for name, size in listed]

    def answer(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        return (table(*rows) if rows else table(width=4)) if asked.sql.startswith("LIST") else failure(1003)

    door.answer = answer
    return run(door, lambda session: outcome(session.download(STAGE, path, 100)))


LOCATION = """'@"DB"."S"."IMAGES"/july/a.png'"""


@pytest.mark.parametrize("name", ["images/july/a.png", "s3://bucket/steel/july/a.png"])
@pytest.mark.parametrize("size", [0, 100, 116])
def test_listed_file_is_got(door: Front, name: str, size: int) -> None:
    assert download(door, (name, size)) is SnowflakeRefused
    listing, getting = door.statements
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
def test_file_that_is_not_listed_is_missing(door: Front, names: tuple[str, ...]) -> None:
    assert download(door, *((name, 10) for name in names)) is FileMissing
    assert len(door.statements) == 1


def test_file_that_is_listed_as_too_large_is_not_got(door: Front) -> None:
    assert download(door, ("images/july/a.png", 117)) is ImageTooLarge
    assert len(door.statements) == 1


def test_files_that_begin_alike_are_not_got(door: Front) -> None:
    assert download(door, ("images/july/a.png", 10), ("images/july/a.png.gz", 10**9)) is SnowflakeRefused
    assert door.statements[1].endswith(r" PATTERN = '.*a\\.png'")


def test_file_that_a_folder_of_its_name_hides_is_not_taken_for_another(door: Front) -> None:
    assert download(door, ("images/july/a.png", 10), ("images/july/a.png/a.png", 10)) is SnowflakeRefused
    assert len(door.statements) == 1
