"""Reads staged files: one statement per batch and stage presigns all URLs, then the service fetches them.

If the stage is client-side encrypted, or the account forbids presigned URLs, the connector downloads the
files instead.
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic_core import from_json, to_json

from app.errors import (
    ClientSideEncrypted,
    SnowflakeNotConfigured,
    SnowflakeRefused,
    StageNotAllowed,
    WrongAccount,
)
from app.images.allowlist import SNOWFLAKE_STORAGE, Allowlist
from app.images.fetcher import Fetcher
from app.images.source import ACCOUNT_DOMAINS, StageFile, Url
from app.names import parse_identifier, quote_identifier, quote_string
from app.settings import Settings
from app.snowflake.credentials import account_and_host
from app.snowflake.session import SnowflakeSession
from model.errors import InputError

# The maximum for every kind of stage. Source: Snowflake documentation, GET_PRESIGNED_URL.
SIGNED_SECONDS = 3600
# After presigned URLs fail for a stage, the connector downloads its files for this long before a new attempt.
UNSIGNED_SECONDS = 300.0

# What one account's hosts may differ in: file URLs of Business Critical accounts have .privatelink, with or
# without private connectivity, and us-west-2 is the region of locators that name none. Sources: Snowflake
# documentation, BUILD_STAGE_FILE_URL and "Account identifiers".
_OPTIONAL_LABELS = re.compile(r"(?:\.us-west-2)?(?:\.privatelink)?(?=\.snowflakecomputing\.(?:com|cn|mil)\Z)")

# Each stage costs a statement; the limit keeps a batch of invented names from flooding Snowflake.
MAX_STAGES_IN_BATCH = 16

Stage: TypeAlias = tuple[str, ...]
# Signed URLs by path; None if the connector downloads the files of this stage.
Signed: TypeAlias = dict[str, str] | None
# None for a stage path, which names no host.
Host: TypeAlias = str | None


class StageReader:
    """Reads staged files as the service's own Snowflake user, regardless of the caller."""

    def __init__(self, settings: Settings, session: SnowflakeSession, fetcher: Fetcher) -> None:
        self._settings = settings
        self._session = session
        self._fetcher = fetcher
        self._storage = Allowlist((*SNOWFLAKE_STORAGE, *settings.allowed_url_hosts))
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
            return await self._fetcher.fetch(Url(signed[file.path]), self._storage)
        except ClientSideEncrypted:
            self._leave_unsigned(file.stage)
            return await self._download(file)

    async def _sign(self, stage: Stage, paths: Mapping[Host, Iterable[str]]) -> "SignedStage":
        errors = await asyncio.gather(*(self._error_for(host, stage) for host in paths))
        refused = {host: error for host, error in zip(paths, errors, strict=True) if error is not None}
        wanted = dict.fromkeys(path for host in paths.keys() - refused.keys() for path in paths[host])
        try:
            signed = (
                await self._sign_paths(stage, list(wanted)) if wanted and self._is_signed(stage) else None
            )
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
        return {path: url for path, (url,) in zip(paths, rows, strict=True)}

    async def _download(self, file: StageFile) -> bytes:
        return await self._session.download(file.stage, file.path, self._settings.max_image_bytes)

    def _is_signed(self, stage: Stage) -> bool:
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
            await self._learn_account_hosts()
            if _canonical(host) not in self._account_hosts:
                raise WrongAccount(
                    f"A file URL must belong to the service's Snowflake account. Received: {host[:100]}."
                )

    async def _learn_account_hosts(self) -> None:
        """Query the account's hosts once; concurrent callers wait for the same query."""
        if self._hosts_query is None:
            self._hosts_query = asyncio.ensure_future(self._query_hosts())
        failure = await asyncio.shield(self._hosts_query)
        if failure is not None:
            raise failure.without_traceback()

    async def _query_hosts(self) -> InputError | None:
        """Add the hosts of the account's other names, which SYSTEM$ALLOWLIST lists."""
        try:
            public = await self._session.query("SELECT SYSTEM$ALLOWLIST()")
            private = await self._query_private_hosts()
        except InputError as error:
            self._hosts_query = None  # the next caller retries
            return error
        for [text] in (*public, *private):
            self._account_hosts |= _hosts_of_deployment(text)
        return None

    async def _query_private_hosts(self) -> list[tuple[Any, ...]]:
        """None for accounts that have no private connectivity."""
        try:
            return await self._session.query("SELECT SYSTEM$ALLOWLIST_PRIVATELINK()")
        except InputError as error:
            if error.retryable:
                raise
            return []


@dataclass(frozen=True)
class SignedStage:
    """The result of presigning one stage's files: URLs, and an error for each rejected host."""

    urls: Signed
    refused: Mapping[Host, InputError]


class StageBatch:
    """The staged files of one batch, whose URLs are presigned or being presigned."""

    def __init__(
        self,
        reader: StageReader,
        signing: Mapping[Stage, "asyncio.Future[SignedStage]"],
    ) -> None:
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


def _hosts_of_deployment(text: str) -> frozenset[str]:
    """The account's own hosts in the result of SYSTEM$ALLOWLIST, in canonical form."""
    try:
        return frozenset(
            _canonical(entry["host"])
            for entry in from_json(text)
            if entry["type"].startswith("SNOWFLAKE_DEPLOYMENT")
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return frozenset()


def _hosts_of_account(settings: Settings) -> frozenset[str]:
    """The account's hosts by the settings, in canonical form."""
    account, host = account_and_host(settings)
    hosts = [account + domain for domain in ACCOUNT_DOMAINS] if account else []
    return frozenset(map(_canonical, [*hosts, host] if host else hosts))


def _canonical(host: str) -> str:
    """The same text for all hosts of an account's name; certificates require dashes for underscores."""
    return _OPTIONAL_LABELS.sub("", host.lower().replace("_", "-"), count=1)
