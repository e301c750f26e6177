"""What local SQL knows beside DuckDB's tables: stages, API integrations, external functions."""

import hashlib
import os
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias

from app.image_files import IMAGE_SUFFIXES
from app.snowflake.identifier import quote_identifier
from app.snowflake.local.refusals import invalid

# What is there from the start.
DATABASE = "LOCAL"
SCHEMA = "PUBLIC"

# Database, schema, object.
Name: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True)
class StagedFile:
    """A line of a directory table."""

    relative_path: str
    size: int
    last_modified: datetime
    md5: str | None

    @property
    def etag(self) -> str:
        """Another one when the file has changed."""
        return self.md5 or f"{self.last_modified.timestamp():.6f}-{self.size}"


@dataclass
class Stage:
    """`folder` holds the files; `metadata` the headers that encrypting clients stored with them, by path."""

    name: Name
    folder: Path
    is_users_folder: bool = False
    has_directory: bool = False
    is_server_side_encrypted: bool = False
    comment: str = ""
    directory: list[StagedFile] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    # What Snowflake's clients encrypt with: its server hands it to those who may read the stage.
    master_key: str = field(default_factory=lambda: b64encode(os.urandom(16)).decode())
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> list[StagedFile]:
        """Bring the directory table up to date, as ALTER STAGE … REFRESH does."""
        self.directory = list(self.list_files())
        return self.directory

    def list_files(self, prefix: str = "") -> Iterator[StagedFile]:
        """What is there now, whatever the directory table says."""
        for found in sorted(self.folder.rglob("*")):
            relative_path = found.relative_to(self.folder).as_posix()
            if relative_path.startswith(prefix) and (path := self.path_of(relative_path)):
                yield self._describe(path, relative_path)

    def path_of(self, relative_path: str) -> Path | None:
        """The file, or None where there is none inside the folder."""
        try:
            path = self.place_of(relative_path)
            return path if path.is_file() and self._holds(relative_path) else None
        except (ValueError, OSError):  # no file system has such a name
            return None

    def place_of(self, relative_path: str) -> Path:
        """Where a file of this path belongs. Raises ValueError for a path that has another spelling here.

        To a store of objects `a//b` and `a/../b` are names like any others; to a folder they are not.
        """
        parts = relative_path.split("/")
        path = (self.folder / relative_path).resolve()
        if {"", ".", ".."} & set(parts) or not path.is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"A path in a stage must be names joined by single slashes. Received: {relative_path!r}."
            )
        return path

    def _holds(self, relative_path: str) -> bool:
        """Of a folder of the user's, the stage shows the images, as `upload` would have put them."""
        path = PurePosixPath(relative_path)
        return not self.is_users_folder or (
            path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )

    def _describe(self, path: Path, relative_path: str) -> StagedFile:
        status = path.stat()
        # Hashing a folder of any size would take its time; a stage of our own is small.
        md5 = None if self.is_users_folder else hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324 - Snowflake's
        return StagedFile(relative_path, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC), md5)

    def __str__(self) -> str:
        return quote_identifier(*self.name)


@dataclass
class ApiIntegration:
    name: str
    options: dict[str, Any]
    # Made once, as in Snowflake: another one would break the trust that was set up with it.
    external_id: str = field(default_factory=lambda: f"LOCAL_SFCRole={b64encode(os.urandom(18)).decode()}=")

    @property
    def is_enabled(self) -> bool:
        return str(self.options.get("ENABLED", "TRUE")).upper() == "TRUE"

    def check_url(self, url: str) -> None:
        """Raises ProgrammingError for a URL outside of the allowed prefixes, or within the blocked ones."""
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
    """`arguments` are pairs of name and type; types are as declared, NUMBER(10,2) and not NUMBER."""

    name: Name
    arguments: tuple[tuple[str, str], ...]
    returns: str
    integration: str
    url: str
    options: dict[str, Any]
    is_strict: bool = False
    is_secure: bool = False
    is_immutable: bool = False

    @property
    def argument_types(self) -> tuple[str, ...]:
        """As Snowflake tells overloads apart."""
        return tuple(kind.partition("(")[0] for _, kind in self.arguments)

    @property
    def signature(self) -> str:
        names = (name for name, _ in self.arguments)
        return f"({', '.join(map(' '.join, zip(names, self.argument_types, strict=True)))})"

    @property
    def max_batch_rows(self) -> int | None:
        rows = self.options.get("MAX_BATCH_ROWS")
        return None if rows is None else int(rows)


class Grant(NamedTuple):
    """A privilege of a role on a thing, by its kind and full name."""

    privilege: str
    kind: str
    name: str
    role: str


class Catalog:
    """Shared by all sessions."""

    def __init__(self) -> None:
        self.stages: dict[Name, Stage] = {}
        self.integrations: dict[str, ApiIntegration] = {}
        self.functions: dict[tuple[Name, tuple[str, ...]], ExternalFunction] = {}
        self.grants: dict[Grant, None] = {}
        self.suspended_warehouses: set[str] = set()
        self.lock = threading.RLock()

    def drop_function(self, key: tuple[Name, tuple[str, ...]]) -> None:
        """With what was granted on it."""
        name, types = key
        self.functions.pop(key, None)
        granted_on = f"{quote_identifier(*name)}({', '.join(types)})"
        for grant in [grant for grant in self.grants if grant.name == granted_on]:
            del self.grants[grant]

    def overloads(self, name: Name) -> list[ExternalFunction]:
        with self.lock:
            return [function for (known, _), function in self.functions.items() if known == name]

    def forget_grants(self, kind: str, name: str) -> None:
        """Whoever drops or replaces a thing drops what was granted on it."""
        for grant in [grant for grant in self.grants if (grant.kind, grant.name) == (kind, name)]:
            del self.grants[grant]

    def forget_schema(self, database: str, schema: str) -> None:
        """Its stages and functions go with it."""
        with self.lock:
            for stage in [name for name in self.stages if name[:2] == (database, schema)]:
                del self.stages[stage]
            for key in [key for key in self.functions if key[0][:2] == (database, schema)]:
                del self.functions[key]
            inside = quote_identifier(database, schema) + "."
            for grant in [grant for grant in self.grants if grant.name.startswith(inside)]:
                del self.grants[grant]
