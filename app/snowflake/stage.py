"""Reads staged files: one statement per batch and stage presigns all URLs, then the service fetches them.

If the stage is client-side encrypted, or the account forbids presigned URLs, the connector downloads the
files instead.
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from pydantic_core import from_json, to_json

from app.errors import (
    ClientSideEncrypted,
    SnowflakeNotConfigured,
    SnowflakeRefused,
    StageNotAllowed,
    UrlNotAllowed,
    WrongAccount,
)
from app.images.allowlist import SNOWFLAKE_STORAGE, Allowlist, Fetcher
from app.images.source import ACCOUNT_DOMAINS, StageFile, Url
from app.names import parse_identifier, quote_identifier, quote_string
from app.settings import Settings
from app.snowflake.session import SnowflakeSession, account_and_host
from model.errors import InputError

# The maximum for every kind of stage. Source: Snowflake documentation, GET_PRESIGNED_URL.
SIGNED_SECONDS = 3600
# After presigned URLs fail for a stage, the connector downloads its files for this long before a new attempt.
UNSIGNED_SECONDS = 300.0

# What one account's hosts may differ in: file URLs of Business Critical accounts have .privatelink, with or
# without private connectivity, and us-west-2 is the region of locators that name none. Sources: Snowflake
# documentation, BUILD_STAGE_FILE_URL and "Account identifiers".
_OPTIONAL_LABELS = re.compile(r"(?:\.us-west-2)?(?:\.privatelink)?(?=\.snowflakecomputing\.(?:com|cn|mil)\Z)")

_HOST = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+"
_LISTED_HOST = re.compile(rf"(?:\*\.)?{_HOST}")
_STAGE_HOST = re.compile(rf"{_HOST}(?::[0-9]{{1,5}})?(?:/[^/]+)?")

# Each stage costs a statement; the limit keeps a batch of invented names from flooding Snowflake.
MAX_STAGES_IN_BATCH = 16

Stage: TypeAlias = tuple[str, ...]
# Signed URLs by path; None if the connector downloads the files of this stage.
Signed: TypeAlias = dict[str, str] | None
# None for a stage path, which names no host.
Host: TypeAlias = str | None
_Row = TypeVar("_Row")


class StageReader:
    """Reads staged files as the service's own Snowflake user, regardless of the caller."""

    def __init__(self, settings: Settings, session: SnowflakeSession, fetcher: Fetcher) -> None:
        self._settings = settings
        self._session = session
        self._fetcher = fetcher
        self._storage = Allowlist((*SNOWFLAKE_STORAGE, *settings.allowed_url_hosts))
        self._storage_of_stages: dict[Stage, Allowlist] = {}
        self._allowed_stages = frozenset(map(parse_identifier, settings.snowflake_stages))
        self._account_hosts = _hosts_of_account(settings)
        self._hosts_query: asyncio.Task[InputError | None] | None = None
        self._unsigned_until: dict[Stage, float] = {}

    def open_batch(self, files: Iterable[StageFile]) -> "StageBatch":
        """Start presigning the URLs of a batch's files. Must be called on the event loop."""
        stages: dict[Stage, dict[Host, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        for file in files:
            if file.stage in stages or len(stages) < MAX_STAGES_IN_BATCH:
                stages[file.stage][file.host][file.path] = None
        return StageBatch(
            self, {stage: asyncio.ensure_future(self._sign(stage, paths)) for stage, paths in stages.items()}
        )

    async def fetch(self, file: StageFile, signed: Signed) -> bytes:
        """The bytes of one file. Raises InputError."""
        if signed is None:
            return await self._download(file)
        try:
            return await self._fetcher.fetch(Url(signed[file.path]), self._storage_of(file.stage))
        except ClientSideEncrypted:
            self._leave_unsigned(file.stage)
            return await self._download(file)

    async def _sign(self, stage: Stage, paths: Mapping[Host, Iterable[str]]) -> "SignedStage":
        errors = await asyncio.gather(*(self._error_for(host, stage) for host in paths))
        refused = {host: error for host, error in zip(paths, errors, strict=True) if error is not None}
        wanted = dict.fromkeys(path for host in paths.keys() - refused.keys() for path in paths[host])
        try:
            signed = await self._sign_paths(stage, list(wanted)) if wanted and self.is_signed(stage) else None
        except InputError as error:
            return SignedStage(None, dict.fromkeys(paths, error) | refused)
        return SignedStage(signed, refused)

    async def _error_for(self, host: Host, stage: Stage) -> InputError | None:
        try:
            await self._check(host, stage)
        except InputError as error:
            return error
        return None

    async def _sign_paths(self, stage: Stage, paths: list[str]) -> Signed:
        location = quote_string(f"@{quote_identifier(*stage)}")
        statement = (
            f"SELECT GET_PRESIGNED_URL({location}, f.value::string, {SIGNED_SECONDS}) "  # noqa: S608 - quoted
            "FROM TABLE(FLATTEN(input => PARSE_JSON(?))) f ORDER BY f.index"
        )
        try:
            rows = await self._session.query(statement, [to_json(paths).decode()])
        except SnowflakeRefused:
            self._leave_unsigned(stage)
            return None
        signed = {path: url for path, (url,) in zip(paths, rows, strict=True)}
        await self._learn_storage(stage, signed[paths[0]])
        return signed

    async def _learn_storage(self, stage: Stage, url: str) -> None:
        """Allow the stage's storage if it is one that only the account or the stage itself names."""
        if self._allows(stage, url):
            return
        failure = await self._learn_hosts()
        if failure is not None and failure.retryable:
            raise failure.without_traceback()
        if not self._allows(stage, url):
            own = await self._query_stage(stage)
            self._storage_of_stages[stage] = Allowlist((*self._storage.patterns, *own))

    def _storage_of(self, stage: Stage) -> Allowlist:
        return self._storage_of_stages.get(stage, self._storage)

    def _allows(self, stage: Stage, url: str) -> bool:
        try:
            self._storage_of(stage).check_url(url)
        except UrlNotAllowed:
            return False
        return True

    async def _query_stage(self, stage: Stage) -> tuple[str, ...]:
        """Hosts and buckets in the stage's definition. Source: Snowflake documentation, SHOW STAGES."""
        *schema, name = stage
        pattern = quote_string(name.replace("\\", "_"))
        statement = f"SHOW STAGES LIKE {pattern} IN SCHEMA {quote_identifier(*schema)}"
        for row in await _or_none(self._session.query_dicts(statement)):
            if row["name"] == name:
                return _hosts_of_stage(row.get("url") or "", row.get("endpoint") or "")
        return ()

    async def _download(self, file: StageFile) -> bytes:
        return await self._session.download(file.stage, file.path, self._settings.max_image_bytes)

    def is_signed(self, stage: Stage) -> bool:
        """Whether URLs of the stage's files are signed, rather than that the connector downloads them."""
        return self._settings.snowflake_presigned_urls and (
            self._unsigned_until.get(stage, 0.0) <= time.monotonic()
        )

    def _leave_unsigned(self, stage: Stage) -> None:
        now = time.monotonic()
        kept = {stage: until for stage, until in self._unsigned_until.items() if until > now}
        self._unsigned_until = kept | {stage: now + UNSIGNED_SECONDS}

    async def _check(self, host: Host, stage: Stage) -> None:
        """Raises InputError if the service must not query Snowflake for this stage."""
        if not self._settings.reads_stages:
            raise SnowflakeNotConfigured(
                "The service needs an account to read stages: set EXT_CLASSIFY_SNOWFLAKE_ACCOUNT, or "
                "pass GET_PRESIGNED_URL(@stage, relative_path)."
            )
        if self._allowed_stages and stage not in self._allowed_stages:
            raise StageNotAllowed(
                "A stage must be on the service's list, EXT_CLASSIFY_SNOWFLAKE_STAGES. "
                f"Received: {quote_identifier(*stage)}."
            )
        if host is not None and _canonical(host) not in self._account_hosts:
            failure = await self._learn_hosts()
            if failure is not None:
                raise failure.without_traceback()
            if _canonical(host) not in self._account_hosts:
                raise WrongAccount(
                    f"A file URL must belong to the service's Snowflake account. Received: {host[:100]}."
                )

    async def _learn_hosts(self) -> InputError | None:
        """Query the hosts of the account and its storage once; concurrent callers share the query."""
        if self._hosts_query is None:
            self._hosts_query = asyncio.ensure_future(self._query_hosts())
        return await asyncio.shield(self._hosts_query)

    async def _query_hosts(self) -> InputError | None:
        """Add the hosts that SYSTEM$ALLOWLIST lists; its privatelink form needs private connectivity."""
        try:
            rows = await self._session.query("SELECT SYSTEM$ALLOWLIST()")
            rows += await _or_none(self._session.query("SELECT SYSTEM$ALLOWLIST_PRIVATELINK()"))
        except InputError as error:
            self._hosts_query = None  # the next caller retries
            return error
        listed = [host for [text] in rows for host in _listed_hosts(text, "STAGE")]
        self._storage = Allowlist((*self._storage.patterns, *listed))
        for [text] in rows:
            self._account_hosts |= frozenset(map(_canonical, _listed_hosts(text, "SNOWFLAKE_DEPLOYMENT")))
        return None


@dataclass(frozen=True)
class SignedStage:
    """The result of presigning one stage's files: URLs, and an error for each rejected host."""

    urls: Signed
    refused: Mapping[Host, InputError]


class StageBatch:
    """The staged files of one batch, whose URLs are presigned or being presigned."""

    def __init__(self, reader: StageReader, signing: Mapping[Stage, "asyncio.Future[SignedStage]"]) -> None:
        self._reader = reader
        self._signing = signing

    async def settle(self, files: Iterable[StageFile]) -> None:
        """Wait until presigning has succeeded or failed for the stages of these files."""
        for stage in {file.stage for file in files} & self._signing.keys():
            await self._signed(stage)

    async def fetch(self, file: StageFile) -> bytes:
        """Raises InputError."""
        if file.stage not in self._signing:
            raise StageNotAllowed(f"A batch must name at most {MAX_STAGES_IN_BATCH} stages. Received: more.")
        signed = await self._signed(file.stage)
        if file.host in signed.refused:
            raise signed.refused[file.host].without_traceback()
        return await self._reader.fetch(file, signed.urls)

    async def _signed(self, stage: Stage) -> SignedStage:
        # Shielded: cancelling one caller would not free the statement's thread, and others wait for it.
        return await asyncio.shield(self._signing[stage])


async def _or_none(rows: Awaitable[list[_Row]]) -> list[_Row]:
    """No rows if the statement fails, unless it may succeed later. Raises InputError."""
    try:
        return await rows
    except InputError as error:
        if error.retryable:
            raise
        return []


def _listed_hosts(text: str, kind: str) -> list[str]:
    """The hosts of one kind in the result of SYSTEM$ALLOWLIST, `.domain` for `*.domain`."""
    try:
        hosts = [entry["host"] for entry in from_json(text) if entry["type"].startswith(kind)]
        return [host.removeprefix("*") for host in hosts if _LISTED_HOST.fullmatch(host)]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def _hosts_of_stage(url: str, endpoint: str) -> tuple[str, ...]:
    """Allowed hosts of an external stage that names its host: one on Azure, or S3-compatible.

    >>> _hosts_of_stage("s3compat://strips/2026/", "storage.mill.example")
    ('strips.storage.mill.example', 'storage.mill.example/strips')
    """
    scheme, _, location = url.partition("://")
    place, _, path = location.partition("/")
    if endpoint:
        hosts: tuple[str, ...] = (f"{place}.{endpoint}", f"{endpoint}/{place}")
    else:
        hosts = (f"{place}/{path.partition('/')[0]}",) if scheme == "azure" else ()
    return tuple(host for host in hosts if _STAGE_HOST.fullmatch(host))


def _hosts_of_account(settings: Settings) -> frozenset[str]:
    """The account's hosts by the settings, in canonical form."""
    account, host = account_and_host(settings)
    hosts = [account + domain for domain in ACCOUNT_DOMAINS] if account else []
    return frozenset(map(_canonical, [*hosts, host] if host else hosts))


def _canonical(host: str) -> str:
    """The same text for all hosts of an account's name; certificates require dashes for underscores."""
    return _OPTIONAL_LABELS.sub("", host.lower().replace("_", "-"), count=1)
