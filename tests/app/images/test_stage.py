"""When staged files are signed and when they are downloaded, at a door that stands for Snowflake."""

import asyncio
from collections.abc import Iterator

import pytest

from app.errors import (
    FileMissing,
    SnowflakeUnavailable,
    StageNotAllowed,
    StageNotAuthorized,
    WrongAccount,
)
from app.images import stage as stage_module
from app.images.http import ImageFetcher
from app.images.stage import MAX_STAGES_IN_BATCH, StageReader
from app.images.stage_file import StageFile
from app.settings import Settings
from app.snowflake.session import SnowflakeSession
from model.errors import InputError
from tests.snowflake_front import QUERY, Answer, Asked, Front, failure, front, table

FILE = StageFile(("DB", "S", "IMAGES"), "a.png")


@pytest.fixture
def door() -> Iterator[Front]:
    with front() as opened:
        yield opened


def read(door: Front, *batches: list[StageFile]) -> list[list[type[InputError]]]:
    """The errors of batches that one reader reads one after the other; nothing is there to be found."""

    async def fetch(reader: StageReader, files: list[StageFile]) -> list[type[InputError]]:
        batch = reader.open_batch(files)
        outcomes = await asyncio.gather(*map(batch.fetch, files), return_exceptions=True)
        return [type(outcome) for outcome in outcomes if isinstance(outcome, InputError)]

    async def run() -> list[list[type[InputError]]]:
        settings = Settings(
            snowflake_account="local",
            snowflake_user="CLASSIFIER",
            snowflake_token="any",  # noqa: S106 - the door lets everyone in
            snowflake_host="127.0.0.1",
            snowflake_port=door.port,
            snowflake_protocol="http",
        )
        async with ImageFetcher(settings) as fetcher, SnowflakeSession(settings) as session:
            reader = StageReader(settings, session, fetcher)
            return [await fetch(reader, files) for files in batches]

    return asyncio.run(run())


def refuse_to_sign(asked: Asked) -> Answer:
    if asked.path != QUERY:
        return None
    return failure(1044) if "GET_PRESIGNED_URL" in asked.sql else table(width=4)


def test_stage_without_signed_urls_is_remembered(door: Front) -> None:
    door.answer = refuse_to_sign
    assert read(door, [FILE], [FILE], [FILE]) == [[FileMissing]] * 3
    assert [sql.split()[0] for sql in door.statements] == ["SELECT", "LIST", "LIST", "LIST"]


def test_signed_urls_are_tried_again_after_a_while(door: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "UNSIGNED_SECONDS", 0.0)
    door.answer = refuse_to_sign
    assert read(door, [FILE], [FILE]) == [[FileMissing]] * 2
    assert [sql.split()[0] for sql in door.statements] == ["SELECT", "LIST", "SELECT", "LIST"]


def test_one_stage_without_signed_urls_says_nothing_of_another(door: Front) -> None:
    def refuse_one(asked: Asked) -> Answer:
        if asked.path == QUERY and "OTHERS" in asked.sql:
            return failure(2003)
        return refuse_to_sign(asked)

    door.answer = refuse_one
    other = StageFile(("DB", "S", "OTHERS"), "a.png")
    read(door, [FILE], [other], [other])
    assert [sql.split()[0] for sql in door.statements] == ["SELECT", "LIST", "SELECT", "SELECT"]


def test_hosts_of_the_account_are_asked_for_once_by_all_that_wait(door: Front) -> None:
    door.answer = lambda asked: failure(250003) if asked.path == QUERY else None
    files = [StageFile(FILE.stage, "a.png", f"org{n}.snowflakecomputing.com") for n in range(10)]
    assert read(door, files, files) == [[SnowflakeUnavailable] * 10] * 2
    assert door.statements == ["SELECT SYSTEM$ALLOWLIST()"] * 2


def test_batch_of_many_stages_asks_for_few(door: Front) -> None:
    door.answer = refuse_all
    files = [StageFile(("DB", "S", f"MADE_UP_{n}"), "a.png") for n in range(100)]
    [errors] = read(door, files)
    assert errors == [StageNotAuthorized] * MAX_STAGES_IN_BATCH + [StageNotAllowed] * (
        100 - MAX_STAGES_IN_BATCH
    )
    assert len(door.statements) == MAX_STAGES_IN_BATCH


def test_one_stage_in_two_forms_is_one_statement(door: Front) -> None:
    door.answer = refuse_all
    in_a_url = StageFile(FILE.stage, "b.png", "local.snowflakecomputing.com")
    assert read(door, [FILE, in_a_url]) == [[StageNotAuthorized] * 2]
    assert len(door.statements) == 1


@pytest.mark.parametrize("answer", ["", "no JSON", "{}", "[1]", '[{"type": "SNOWFLAKE_DEPLOYMENT"}]', None])
def test_odd_list_of_hosts_is_no_harm(door: Front, answer: str | None) -> None:
    def answer_oddly(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        return table([answer]) if "ALLOWLIST" in asked.sql else failure(2003)

    door.answer = answer_oddly
    elsewhere = StageFile(FILE.stage, "b.png", "other.snowflakecomputing.com")
    assert read(door, [FILE, elsewhere]) == [[StageNotAuthorized, WrongAccount]]


def refuse_all(asked: Asked) -> Answer:
    return failure(2003) if asked.path == QUERY else None
