"""When staged files are presigned and when they are downloaded, against a fake Snowflake server."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.errors import (
    FetchFailed,
    FileMissing,
    SnowflakeUnavailable,
    StageNotAllowed,
    StageNotAuthorized,
    UrlNotAllowed,
    WarehouseUnavailable,
    WrongAccount,
)
from app.images.http import ImageFetcher
from app.images.source import StageFile
from app.settings import Settings
from app.snowflake import stage as stage_module
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import MAX_STAGES_IN_BATCH, StageBatch, StageReader
from model.errors import InputError
from tests.app.images.https_server import FixedResolver, HttpsServer, answer
from tests.snowflake_front import QUERY, Answer, Asked, Front, failure, front, table

FILE = StageFile(("DB", "S", "IMAGES"), "a.png")


@pytest.fixture
def server() -> Iterator[Front]:
    with front() as opened:
        yield opened


def settings_for(server: Front, **given: Any) -> Settings:
    settings = {
        "snowflake_account": "local",
        "snowflake_user": "CLASSIFIER",
        "snowflake_token": "any",
        "snowflake_host": "127.0.0.1",
        "snowflake_port": server.port,
        "snowflake_protocol": "http",
    }
    return Settings(**settings | given)


def read(server: Front, *batches: list[StageFile], account: str = "local") -> list[list[type[InputError]]]:
    """The errors of batches that one reader reads in turn; the fake server has no files."""

    async def fetch(reader: StageReader, files: list[StageFile]) -> list[type[InputError]]:
        batch = reader.open_batch(files)
        outcomes = await asyncio.gather(*map(batch.fetch, files), return_exceptions=True)
        return [type(outcome) for outcome in outcomes if isinstance(outcome, InputError)]

    async def run() -> list[list[type[InputError]]]:
        settings = settings_for(server, snowflake_account=account)
        async with ImageFetcher(settings) as fetcher, SnowflakeSession(settings) as session:
            reader = StageReader(settings, session, fetcher)
            return [await fetch(reader, files) for files in batches]

    return asyncio.run(run())


def reject_presigning(asked: Asked) -> Answer:
    if asked.path != QUERY:
        return None
    return failure(1044) if "GET_PRESIGNED_URL" in asked.sql else table(width=4)


def test_failure_to_presign_is_cached_per_stage(server: Front) -> None:
    server.answer = reject_presigning
    assert read(server, [FILE], [FILE], [FILE]) == [[FileMissing]] * 3
    assert [sql.split()[0] for sql in server.statements] == ["SELECT", "LIST", "LIST", "LIST"]


def test_presigned_urls_are_retried_after_a_while(server: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "UNSIGNED_SECONDS", 0.0)
    server.answer = reject_presigning
    assert read(server, [FILE], [FILE]) == [[FileMissing]] * 2
    assert [sql.split()[0] for sql in server.statements] == ["SELECT", "LIST", "SELECT", "LIST"]


def test_failure_to_presign_does_not_affect_other_stages(server: Front) -> None:
    def reject_one(asked: Asked) -> Answer:
        if asked.path == QUERY and "OTHERS" in asked.sql:
            return failure(2003)
        return reject_presigning(asked)

    server.answer = reject_one
    other = StageFile(("DB", "S", "OTHERS"), "a.png")
    read(server, [FILE], [other], [other])
    assert [sql.split()[0] for sql in server.statements] == ["SELECT", "LIST", "SELECT", "SELECT"]


def test_concurrent_files_share_one_query_for_the_account_hosts(server: Front) -> None:
    server.answer = lambda asked: failure(250003) if asked.path == QUERY else None
    files = [StageFile(FILE.stage, "a.png", f"org{n}.snowflakecomputing.com") for n in range(10)]
    assert read(server, files, files) == [[SnowflakeUnavailable] * 10] * 2
    assert server.statements == ["SELECT SYSTEM$ALLOWLIST()"] * 2


# What SYSTEM$ALLOWLIST and SYSTEM$ALLOWLIST_PRIVATELINK list for an account.
LISTED = [
    {"type": "SNOWFLAKE_DEPLOYMENT", "host": "xy12345.eu-central-1.snowflakecomputing.com", "port": 443}
]
LISTED_PRIVATELY = [
    {"type": "SNOWFLAKE_DEPLOYMENT", "host": "zz9.privatelink.snowflakecomputing.com", "port": 443},
    {"type": "OCSP_CACHE", "host": "ocsp.zz9.privatelink.snowflakecomputing.com", "port": 80},
]


def list_hosts(asked: Asked) -> Answer:
    """Hosts by both lists; no stage is authorized."""
    if asked.path != QUERY:
        return None
    if "SYSTEM$" in asked.sql:
        return table([json.dumps(LISTED_PRIVATELY if "PRIVATELINK" in asked.sql else LISTED)])
    return failure(2003)


@pytest.mark.parametrize(
    ("account", "host"),
    [
        ("myorg-mill", "myorg-mill.snowflakecomputing.com"),
        ("myorg-mill", "myorg-mill.privatelink.snowflakecomputing.com"),
        ("myorg-mill", "myorg-mill.privatelink.snowflakecomputing.cn"),
        ("myorg-mill", "myorg-mill.snowflakecomputing.mil"),
        ("MYORG-STEEL_MILL", "myorg-steel-mill.privatelink.snowflakecomputing.com"),
        ("myorg-steel-mill", "myorg-steel_mill.privatelink.snowflakecomputing.com"),
        ("ab1.west-us-2.azure", "ab1.west-us-2.azure.privatelink.snowflakecomputing.com"),
        ("ab1.cn-northwest-1.aws", "ab1.cn-northwest-1.aws.privatelink.snowflakecomputing.cn"),
        ("ab1", "ab1.us-west-2.privatelink.snowflakecomputing.com"),
        ("ab1.us-west-2", "ab1.privatelink.snowflakecomputing.com"),
        ("myorg-mill.privatelink", "myorg-mill.privatelink.snowflakecomputing.com"),
        ("myorg-mill.privatelink", "myorg-mill.snowflakecomputing.com"),
        ("myorg-mill", "xy12345.eu-central-1.snowflakecomputing.com"),
        ("myorg-mill", "xy12345.eu-central-1.privatelink.snowflakecomputing.com"),
        ("myorg-mill", "zz9.privatelink.snowflakecomputing.com"),
        ("myorg-mill", "zz9.us-west-2.privatelink.snowflakecomputing.com"),
    ],
)
def test_each_form_of_the_account_s_host_is_accepted(server: Front, account: str, host: str) -> None:
    server.answer = list_hosts
    assert read(server, [StageFile(FILE.stage, "a.png", host)], account=account) == [[StageNotAuthorized]]


@pytest.mark.parametrize(
    "host",
    [
        "other.privatelink.snowflakecomputing.com",
        "privatelink.snowflakecomputing.com",
        "snowflakecomputing.com",
        "xmyorg-mill.privatelink.snowflakecomputing.com",
        "myorg-millx.privatelink.snowflakecomputing.com",
        "x.myorg-mill.privatelink.snowflakecomputing.com",
        "myorg-mill.x.privatelink.snowflakecomputing.com",
        "myorg-mill.privatelink.x.snowflakecomputing.com",
        "myorg-mill.privatelink.privatelink.snowflakecomputing.com",
        "myorg-mill.privatelink.us-west-2.snowflakecomputing.com",
        "myorg-mill.us-east-1.privatelink.snowflakecomputing.com",
        "myorg-millprivatelink.snowflakecomputing.com",
        "myorg-mill-privatelink.snowflakecomputing.com",
        "myorg-mill..privatelink.snowflakecomputing.com",
        "xy12345.privatelink.snowflakecomputing.com",
        "xy12345.eu-central-1.privatelink.snowflakecomputing.cn",
        "ocsp.zz9.privatelink.snowflakecomputing.com",
    ],
)
def test_host_of_another_account_is_refused(server: Front, host: str) -> None:
    server.answer = list_hosts
    files = [StageFile(FILE.stage, "a.png", host)]
    assert read(server, files, account="myorg-mill") == [[WrongAccount]]


def test_account_without_private_connectivity_has_its_public_hosts(server: Front) -> None:
    server.answer = lambda asked: (
        failure(3001) if asked.path == QUERY and "PRIVATELINK" in asked.sql else list_hosts(asked)
    )
    hosts = ("xy12345.eu-central-1.privatelink.snowflakecomputing.com", "zz9.snowflakecomputing.com")
    files = [StageFile(FILE.stage, "a.png", host) for host in hosts]
    assert read(server, files, account="myorg-mill") == [[StageNotAuthorized, WrongAccount]]


@pytest.mark.slow
def test_batch_of_many_stages_asks_for_few(server: Front) -> None:
    server.answer = reject_all
    files = [StageFile(("DB", "S", f"MADE_UP_{n}"), "a.png") for n in range(100)]
    [errors] = read(server, files)
    assert errors == [StageNotAuthorized] * MAX_STAGES_IN_BATCH + [StageNotAllowed] * (
        100 - MAX_STAGES_IN_BATCH
    )
    assert len(server.statements) == MAX_STAGES_IN_BATCH


def test_stage_path_and_file_url_share_one_statement(server: Front) -> None:
    server.answer = reject_all
    in_a_url = StageFile(FILE.stage, "b.png", "local.snowflakecomputing.com")
    assert read(server, [FILE, in_a_url]) == [[StageNotAuthorized] * 2]
    assert len(server.statements) == 1


@pytest.mark.parametrize("answer", ["", "no JSON", "{}", "[1]", '[{"type": "SNOWFLAKE_DEPLOYMENT"}]', None])
def test_malformed_allowlist_is_ignored(server: Front, answer: str | None) -> None:
    def answer_malformed(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        return table([answer]) if "ALLOWLIST" in asked.sql else failure(2003)

    server.answer = answer_malformed
    elsewhere = StageFile(FILE.stage, "b.png", "other.snowflakecomputing.com")
    assert read(server, [FILE, elsewhere]) == [[StageNotAuthorized, WrongAccount]]


STAGE_COLUMNS = ("created_on", "name", "url", "endpoint")


def sign(url: str, *stages: list[str], lists: bool = True) -> Callable[[Asked], Answer]:
    """Snowflake signs this URL, shows `stages`, and lists two hosts of storage, or fails to list them."""
    listed = [
        {"type": "STAGE", "host": "stage.mill.example", "port": 443},
        {"type": "STAGE", "host": "*.stages.mill.example", "port": 443},
        {"type": "STAGE", "host": "*", "port": 443},
        {"type": "OCSP_CACHE", "host": "ocsp.mill.example", "port": 80},
    ]

    def answer(asked: Asked) -> Answer:
        if asked.path != QUERY:
            return None
        if "GET_PRESIGNED_URL" in asked.sql:
            return table([url])
        if asked.sql.startswith("SHOW STAGES"):
            return table(*stages, names=STAGE_COLUMNS)
        is_refused = "PRIVATELINK" in asked.sql or not lists
        return failure(3001) if is_refused else table([json.dumps(listed)])

    return answer


def fetch_from(
    server: Front, url: str, *stages: list[str], batches: int = 1, lists: bool = True, **given: object
) -> list[bytes | InputError]:
    """The outcomes of reading one file in batches, from a store that has every host; {port} is its port."""

    async def run() -> list[bytes | InputError]:
        async with HttpsServer(answer(b"image"), "*.mill.example", "*.storage.mill.example") as store:
            server.answer = sign(
                url.format(port=store.port),
                *([text.format(port=store.port) for text in stage] for stage in stages),
                lists=lists,
            )
            settings = settings_for(server, **{"allow_private_addresses": True} | given)
            resolver = FixedResolver("127.0.0.1")
            fetcher = ImageFetcher(settings, resolver=resolver, ssl_context=store.client_context)
            async with fetcher, SnowflakeSession(settings) as session:
                reader = StageReader(settings, session, fetcher)
                return [await outcome_of(reader.open_batch([FILE])) for _ in range(batches)]

    return asyncio.run(run())


async def outcome_of(batch: StageBatch) -> bytes | InputError:
    try:
        return await batch.fetch(FILE)
    except InputError as error:
        return error


@pytest.mark.parametrize(
    "url",
    [
        "https://strips.storage.mill.example:{port}/a.png?sig=b",
        "https://storage.mill.example:{port}/strips/a.png?sig=b",
    ],
)
def test_storage_of_an_s3_compatible_stage_is_allowed(server: Front, url: str) -> None:
    other = ["2026", "images", "s3compat://others/", "others.mill.example"]
    stage = ["2026", "IMAGES", "s3compat://strips/2026/", "storage.mill.example:{port}"]
    assert fetch_from(server, url, other, stage, batches=2) == [b"image", b"image"]
    assert [sql.split("(")[0] for sql in server.statements] == [
        "SELECT GET_PRESIGNED_URL",
        "SELECT SYSTEM$ALLOWLIST",
        "SELECT SYSTEM$ALLOWLIST_PRIVATELINK",
        'SHOW STAGES LIKE \'IMAGES\' IN SCHEMA "DB"."S"',
        "SELECT GET_PRESIGNED_URL",
    ]


def test_storage_of_a_stage_is_allowed_where_the_account_lists_nothing(server: Front) -> None:
    url = "https://strips.storage.mill.example:{port}/a.png?sig=b"
    assert fetch_from(server, url, STAGE, lists=False) == [b"image"]


def test_storage_of_an_azure_stage_is_allowed(server: Front) -> None:
    stage = ["2026", "IMAGES", "azure://azure.mill.example:{port}/strips/2026/", ""]
    url = "https://azure.mill.example:{port}/strips/2026/a.png?sig=b"
    assert fetch_from(server, url, stage) == [b"image"]


@pytest.mark.parametrize(
    "host", ["stage.mill.example", "a.b.stages.mill.example", "onelake.dfs.fabric.microsoft.com"]
)
def test_storage_that_the_account_lists_is_allowed(server: Front, host: str) -> None:
    [outcome] = fetch_from(server, f"https://{host}/a.png?sig=b")
    assert isinstance(outcome, FetchFailed)  # no store of this test listens on port 443


STAGE = ["2026", "IMAGES", "s3compat://strips/2026/", "storage.mill.example:{port}"]


@pytest.mark.parametrize(
    ("url", "stage"),
    [
        ("https://evil.example/a.png", STAGE),
        ("https://evil.example:{port}/strips/a.png", STAGE),
        ("https://storage.mill.example/strips/a.png", STAGE),
        ("https://storage.mill.example:{port}/others/a.png", STAGE),
        ("https://storage.mill.example:{port}/strips/../others/a.png", STAGE),
        ("https://others.storage.mill.example:{port}/a.png", STAGE),
        ("https://strips.storage.mill.example.evil.example:{port}/a.png", STAGE),
        ("https://ocsp.mill.example/a.png", STAGE),
        ("https://stages.mill.example/a.png", STAGE),
        ("https://evilstages.mill.example/a.png", STAGE),
        ("https://evil.example/a.png", ["2026", "IMAGES", "s3compat://evil/", ".example"]),
        ("https://evil.example/a.png", ["2026", "IMAGES", "s3compat:///", "example"]),
        ("https://evil.example/a.png", ["2026", "IMAGES", "azure://.example/", ""]),
        ("https://evil.example/a.png", ["2026", "IMAGES", "azure://evil.example@x/", ""]),
        ("https://evil.example/a.png", ["2026", "IMAGES", "s3://evil.example/", ""]),
        ("https://evil.example/a.png", ["2026", "images", "azure://evil.example/strips/", ""]),
        ("https://10.0.0.5:{port}/a.png", ["2026", "IMAGES", "", ""]),
    ],
)
def test_other_storage_is_refused_with_the_setting_that_allows_it(
    server: Front, url: str, stage: list[str]
) -> None:
    [outcome] = fetch_from(server, url, stage)
    assert isinstance(outcome, UrlNotAllowed)
    assert "EXT_CLASSIFY_ALLOWED_URL_HOSTS" in outcome.message


def test_private_address_of_a_stage_is_refused_with_the_setting_that_allows_it(server: Front) -> None:
    url = "https://strips.storage.mill.example:{port}/a.png"
    [outcome] = fetch_from(server, url, STAGE, allow_private_addresses=False)
    assert isinstance(outcome, UrlNotAllowed)
    assert "EXT_CLASSIFY_ALLOW_PRIVATE_ADDRESSES" in outcome.message


def test_unavailable_snowflake_while_storage_is_learned_is_retried(server: Front) -> None:
    def interrupt(asked: Asked) -> Answer:
        return failure(606) if "SYSTEM$" in asked.sql else answer_signed(asked)

    answer_signed = sign("https://elsewhere.example/a.png")
    server.answer = lambda asked: interrupt(asked) if asked.path == QUERY else None
    assert read(server, [FILE], [FILE]) == [[WarehouseUnavailable]] * 2
    assert server.statements.count("SELECT SYSTEM$ALLOWLIST()") == 2


def reject_all(asked: Asked) -> Answer:
    return failure(2003) if asked.path == QUERY else None
