"""The emulated objects that DuckDB does not hold: stages, API integrations, functions and grants."""

import hashlib
import mimetypes
import os
import re
import secrets
import tempfile
import threading
import uuid
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from app.emulator.errors import invalid, no_such_file, not_found
from app.names import parse_location, quote_identifier

# Random, so that a service that reads from another emulator refuses the file URLs of this one instead of
# classifying its own files of the same names.
ACCOUNT = f"local-{secrets.token_hex(4)}"
ACCOUNT_HOST = f"{ACCOUNT}.snowflakecomputing.com"
# They exist from the start.
DATABASE = "LOCAL"
SCHEMA = "PUBLIC"

# As HTTP has it.
TIME_OF_FILES = "%a, %d %b %Y %H:%M:%S GMT"

# Database, schema, object.
Name: TypeAlias = tuple[str, str, str]
# Snowflake distinguishes overloads by the types of their arguments, without sizes.
FunctionKey: TypeAlias = tuple[Name, tuple[str, ...]]


@dataclass(frozen=True)
class StagedFile:
    """A row of a directory table."""

    relative_path: str
    size: int
    last_modified: datetime
    md5: str | None

    @property
    def etag(self) -> str:
        """A value that changes with the file: its MD5, or else its modification time and size."""
        return self.md5 or f"{self.last_modified.timestamp():.6f}-{self.size}"


@dataclass
class Stage:
    """`folder` holds the files; `metadata` maps a path to the headers that an encrypting client stored.

    A stage may show the files of a `mounted` folder too, and never changes them.
    """

    name: Name
    folder: Path
    mounted: Path | None = None
    has_directory: bool = False
    is_server_side_encrypted: bool = False
    comment: str = ""
    created_on: datetime = field(default_factory=lambda: datetime.now(UTC))
    directory: list[StagedFile] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    # Clients encrypt and decrypt files with it; Snowflake sends it to clients that may use the stage.
    master_key: str = field(default_factory=lambda: b64encode(os.urandom(16)).decode())
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> list[StagedFile]:
        """Update the directory table and return it, as ALTER STAGE … REFRESH does."""
        self.directory = list(self.list_files())
        return self.directory

    def list_files(self, prefix: str = "") -> Iterator[StagedFile]:
        """The files that exist now under `prefix`; the directory table may be older."""
        paths = {
            found.relative_to(folder).as_posix() for folder in self._folders for found in folder.rglob("*")
        }
        for relative_path in sorted(paths):
            if relative_path.startswith(prefix) and (path := self.path_of(relative_path)):
                yield self._describe(path, relative_path)

    def path_of(self, relative_path: str) -> Path | None:
        """The path of a file that the stage shows, or None if there is no such file."""
        for folder in self._folders:
            try:
                path = _resolve(folder, relative_path)
                if path.is_file() and (folder == self.folder or _is_shown(relative_path)):
                    return path
            except (ValueError, OSError):  # not a valid file name
                return None
        return None

    def resolve(self, relative_path: str) -> Path:
        """The path at which the stage stores a file. Raises ValueError if a folder cannot hold the name."""
        return _resolve(self.folder, relative_path)

    @property
    def _folders(self) -> list[Path]:
        return [self.folder] if self.mounted is None else [self.folder, self.mounted]

    def file_url(self, relative_path: str) -> str:
        """The file URL of a directory table, in which dots and slashes are percent-encoded too."""
        return (
            f"https://{ACCOUNT_HOST}/api/files/{'/'.join(map(_encode, self.name))}/{_encode(relative_path)}"
        )

    def scoped_url(self, query_id: str, relative_path: str) -> str:
        token = urlsafe_b64encode(f"{self}/{relative_path}".encode()).decode().rstrip("=")
        return f"https://{ACCOUNT_HOST}/api/files/{query_id}/{token}"

    def describe_file(self, relative_path: str) -> dict[str, Any] | None:
        """The metadata of a FILE value, None if there is no such file."""
        path = self.path_of(relative_path)
        if path is None:
            return None
        file = self._describe(path, relative_path)
        kind, _ = mimetypes.guess_type(relative_path, strict=False)
        return {
            "CONTENT_TYPE": kind or "application/octet-stream",
            "ETAG": file.etag,
            "LAST_MODIFIED": file.last_modified.strftime(TIME_OF_FILES),
            "RELATIVE_PATH": relative_path,
            "SIZE": file.size,
            "STAGE": "@" + ".".join(map(_plain_name, self.name)),
        }

    def _describe(self, path: Path, relative_path: str) -> StagedFile:
        status = path.stat()
        # A mounted folder may be too large to hash; a stage that clients PUT to is small.
        is_own = path.is_relative_to(self.folder.resolve())
        md5 = hashlib.md5(path.read_bytes()).hexdigest() if is_own else None  # noqa: S324 - Snowflake's
        return StagedFile(relative_path, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC), md5)

    def __str__(self) -> str:
        return quote_identifier(*self.name)


def _resolve(folder: Path, relative_path: str) -> Path:
    """In an object store `a//b` and `a/../b` are ordinary names; in a folder they are not."""
    parts = relative_path.split("/")
    path = (folder / relative_path).resolve()
    if {"", ".", ".."} & set(parts) or not path.is_relative_to(folder.resolve()):
        raise ValueError(
            f"A path in a stage must be names separated by single slashes. Received: {relative_path!r}."
        )
    return path


def _is_shown(relative_path: str) -> bool:
    """Whether a stage shows this file of a mounted folder: all but hidden ones, such as those of .git."""
    return not any(part.startswith(".") for part in PurePosixPath(relative_path).parts)


def _plain_name(part: str) -> str:
    """The part of a name, in quotes only if it needs them."""
    return part if re.fullmatch(r"[A-Z_][A-Z0-9_$]*", part) else quote_identifier(part)


def _encode(text: str) -> str:
    encoded = quote(text, safe="").replace(".", "%2e")
    return re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)


@dataclass
class ApiIntegration:
    name: str
    options: dict[str, Any]
    # Constant, as in Snowflake: a new id would break the trust policy that contains it.
    external_id: str = field(default_factory=lambda: f"LOCAL_SFCRole={b64encode(os.urandom(18)).decode()}=")

    @property
    def is_enabled(self) -> bool:
        return str(self.options.get("ENABLED", "TRUE")).upper() == "TRUE"

    def check_url(self, url: str) -> None:
        """Raises ProgrammingError for a URL outside the allowed prefixes, or under a blocked one."""
        if not self.is_enabled:
            raise invalid(f"API integration {self.name} is not enabled.")
        allowed = self.options.get("API_ALLOWED_PREFIXES", ())
        blocked = self.options.get("API_BLOCKED_PREFIXES", ())
        if not url.startswith(tuple(allowed)) or url.startswith(tuple(blocked)):
            raise invalid(
                f"URL '{url}' is not within the allowed prefixes of API integration '{self.name}', "
                f"{', '.join(allowed)}."
            )


@dataclass(frozen=True)
class ExternalFunction:
    """An external function, a service function of Snowpark Container Services, or a function in SQL.

    `arguments` are (name, type) pairs, with types as declared: NUMBER(10,2), not NUMBER. `body` is the URL of
    an external function, the path of a service function, and the expression of a function in SQL.
    """

    name: Name
    arguments: tuple[tuple[str, str], ...]
    returns: str
    body: str
    options: dict[str, Any]
    is_strict: bool = False
    is_secure: bool = False
    is_immutable: bool = False
    created_on: datetime = field(default_factory=lambda: datetime.now(UTC), compare=False)

    @property
    def argument_types(self) -> tuple[str, ...]:
        """The types without sizes."""
        return tuple(kind.partition("(")[0] for _, kind in self.arguments)

    @property
    def key(self) -> FunctionKey:
        return self.name, self.argument_types

    @property
    def signature(self) -> str:
        names = (name for name, _ in self.arguments)
        return f"({', '.join(map(' '.join, zip(names, self.argument_types, strict=True)))})"

    @property
    def service(self) -> Name | None:
        """The service of a service function."""
        service: Name | None = self.options.get("SERVICE")
        return service

    @property
    def is_sql(self) -> bool:
        return "LANGUAGE" in self.options

    @property
    def max_batch_retries(self) -> int:
        return int(self.options.get("MAX_BATCH_RETRIES", 3))

    @property
    def batch_timeout_seconds(self) -> int:
        return int(self.options.get("BATCH_TIMEOUT_SECS", 3600))

    @property
    def returns_null_on_failure(self) -> bool:
        return str(self.options.get("ON_BATCH_FAILURE", "ABORT")).upper() == "RETURN_NULL"

    @property
    def max_batch_rows(self) -> int | None:
        rows = self.options.get("MAX_BATCH_ROWS")
        return None if rows is None else int(rows)


@dataclass
class Stream:
    """A stream on the directory table of a stage; `offset` is what the table held at the last consumption."""

    name: Name
    stage: Stage
    comment: str
    offset: tuple[StagedFile, ...]
    created_on: datetime = field(default_factory=lambda: datetime.now(UTC))

    def changes(self) -> list[tuple[StagedFile, str, bool]]:
        """Each file added or removed since the offset, the action, and whether it is half of an update."""
        before = {file.relative_path: file for file in self.offset}
        after = {file.relative_path: file for file in self.stage.directory}
        changes = [
            (file, "DELETE", path in after) for path, file in before.items() if after.get(path) != file
        ]
        return changes + [
            (file, "INSERT", path in before) for path, file in after.items() if before.get(path) != file
        ]


@dataclass
class Task:
    """A task runs `definition` after the tasks `after`, if `condition` is true."""

    name: Name
    options: dict[str, Any]
    after: tuple[Name, ...]
    condition: str | None
    definition: str
    is_started: bool = False
    created_on: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def quote_function(key: FunctionKey) -> str:
    """The full name of a function with its argument types, as grants name it."""
    name, types = key
    return f"{quote_identifier(*name)}({', '.join(types)})"


class Grant(NamedTuple):
    """A privilege of a role on an object, identified by the object's kind and full name."""

    privilege: str
    kind: str
    name: str
    role: str


_FILE_URL = re.compile(rf"https://{re.escape(ACCOUNT_HOST)}/api/files/(.*)", re.DOTALL)
# The number of parts of a scoped URL: a query id, and a token.
_PARTS_OF_SCOPED = 2


def _parse_file(location: str, path: str) -> tuple[tuple[str, ...], str, dict[str, str]]:
    """The parts of the stage's name, the file's path, and the URL that the FILE value keeps."""
    try:
        if location.startswith("@"):
            return *parse_location(f"{location}/{path}" if path else location), {}
        if found := _FILE_URL.fullmatch(location):
            parts = found[1].split("/")
            if len(parts) > _PARTS_OF_SCOPED:
                *names, path = map(unquote, (*parts[:3], "/".join(parts[3:])))
                return tuple(names), path, {"STAGE_FILE_URL": location}
            text = urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)).decode()
            return *parse_location(f"@{text}"), {"SCOPED_FILE_URL": location}
    except (ValueError, IndexError):
        raise no_such_file(location) from None
    raise invalid(f"Invalid file URL: {location}")


class Catalog:
    """The emulated objects, shared by all sessions. `close` deletes the files of the stages."""

    def __init__(self) -> None:
        self.stages: dict[Name, Stage] = {}
        self.integrations: dict[str, ApiIntegration] = {}
        self.services: dict[Name, dict[str, str]] = {}
        """URLs of the endpoints of each service, by the endpoint's name in lower case."""
        self.functions: dict[FunctionKey, ExternalFunction] = {}
        self.views: dict[Name, tuple[str, str, str]] = {}
        """Query of each view over stages or functions, and the current schema when it was created."""
        self.streams: dict[Name, Stream] = {}
        self.tasks: dict[Name, Task] = {}
        self.grants: dict[Grant, None] = {}
        self.suspended_warehouses: set[str] = set()
        self.lock = threading.RLock()
        self._folders = tempfile.TemporaryDirectory(prefix="ext-classify-stages-")

    def close(self) -> None:
        self._folders.cleanup()

    def new_stage(self, name: Name, **properties: Any) -> Stage:
        return Stage(name, Path(tempfile.mkdtemp(dir=self._folders.name)), **properties)

    def stage(self, name: Name) -> Stage:
        """Raises ProgrammingError if there is no such stage."""
        if name not in self.stages:
            raise not_found("Stage", quote_identifier(*name))
        return self.stages[name]

    def file(self, location: str, path: str, namespace: tuple[str, str]) -> dict[str, Any]:
        """The metadata of a FILE value: of a stage location, with a path to append, or of a file URL.

        Raises ProgrammingError if there is no such file.
        """
        names, relative_path, url = _parse_file(location, path)
        stage = self.stage((*namespace[: 3 - len(names)], *names))  # type: ignore[arg-type]
        found = stage.describe_file(relative_path)
        if found is None:
            raise no_such_file(f"{location}/{path}" if path else location)
        if "SCOPED_FILE_URL" in url:
            del found["STAGE"], found["RELATIVE_PATH"]
        return dict(sorted((found | url).items()))

    def integration(self, name: str) -> ApiIntegration:
        """Raises ProgrammingError if there is no such integration."""
        if name not in self.integrations:
            raise not_found("Integration", name)
        return self.integrations[name]

    def url(self, function: ExternalFunction) -> str:
        """The URL that the function calls. Raises ProgrammingError if it must not call it, or cannot."""
        service = function.service
        if service is None:
            self.integration(str(function.options.get("API_INTEGRATION", ""))).check_url(function.body)
            return function.body
        if service not in self.services:
            raise not_found("Service", quote_identifier(*service))
        endpoint = str(function.options.get("ENDPOINT", ""))
        if endpoint.lower() not in self.services[service]:
            raise not_found("Endpoint", endpoint)
        return self.services[service][endpoint.lower()] + function.body

    def function(self, key: FunctionKey) -> ExternalFunction:
        """Raises ProgrammingError if there is no such overload."""
        if key not in self.functions:
            raise not_found("Function", key[0][-1])
        return self.functions[key]

    def overloads(self, name: Name) -> list[ExternalFunction]:
        with self.lock:
            return [function for (known, _), function in self.functions.items() if known == name]

    def drop_grants(self, kind: str, name: str) -> None:
        """Drop all grants on an object that a statement drops or replaces."""
        for grant in [grant for grant in self.grants if (grant.kind, grant.name) == (kind, name)]:
            del self.grants[grant]

    def drop_schema_objects(self, database: str, schema: str) -> None:
        """Drop the stages, streams, tasks, functions, views and grants of a schema."""
        with self.lock:
            kinds: list[dict[Name, Any]] = [self.views, self.stages, self.streams, self.tasks]
            for known in kinds:
                for name in [name for name in known if name[:2] == (database, schema)]:
                    del known[name]
            for key in [key for key in self.functions if key[0][:2] == (database, schema)]:
                del self.functions[key]
            inside = quote_identifier(database, schema) + "."
            for grant in [grant for grant in self.grants if grant.name.startswith(inside)]:
                del self.grants[grant]
