"""Uploads images (with their folders), or a model's files, to a stage."""

import hashlib
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from app.client import ClientError
from app.images.files import find_images
from app.names import parse_identifier, quote_identifier, quote_string
from app.provisioning.user_session import (
    StatementFailed,
    UserSession,
    describe_error,
    describe_stage,
    is_client_side_encrypted,
)
from model.artifact import SUFFIXES, next_to
from model.formats import IMAGE_SUFFIXES

CONCURRENT_UPLOADS = 4

File: TypeAlias = tuple[Path, PurePosixPath]
"""A file, and its path in the stage."""


class UploadIncomplete(ClientError):
    """Some files were not uploaded; `statuses` counts all files."""

    def __init__(self, failures: Mapping[str, str], statuses: Counter[str]) -> None:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:3])
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} of {statuses.total()} files were not uploaded. {first}{more}.")
        self.statuses = statuses


def find_files(paths: Sequence[Path], folder: str = "") -> list[File]:
    """Files and their paths in the stage below `folder`; files of a directory keep their relative paths.

    A network includes its card, compiled model and stamp. Raises ClientError.
    """
    found: list[File] = []
    for path in paths:
        root: Path | None
        if path.suffix in SUFFIXES or (path / "saved_model.pb").is_file():
            root, files = path.parent, _parts_of_artifact(path)
        else:
            root, files = path if path.is_dir() else None, find_images([path])
            if root is None:
                _require_image(path)
        found += [(file, PurePosixPath(file.relative_to(root or file.parent).as_posix())) for file in files]
    _require_distinct_paths(found)
    return [(path, PurePosixPath(folder.strip("/")) / place) for path, place in found]


def upload(
    user_session: UserSession,
    files: Sequence[File],
    stage: str,
    *,
    overwrite: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Counter[str]:
    """PUT the files and refresh the directory table. Returns the number of files per status.

    UNCHANGED: the stage already has the file, by size and MD5. SKIPPED: the stage has a different file of
    this name, or one that cannot be compared; `overwrite` replaces it. Calls `advance` after each. Raises
    ClientError, and UploadIncomplete after all other files are uploaded.
    """
    described = _describe(user_session, stage)
    name = _quoted(described)
    there = _list(user_session, described, files)
    failures: dict[str, str] = {}

    def put(file: File) -> str:
        path, place = file
        try:
            if (existing_file := there.get(str(place))) and _is_same(path, *existing_file):
                return "UNCHANGED"
            if existing_file and not overwrite:
                return "SKIPPED"
            with path.open("rb") as content:
                location = "/".join([f"@{name}", *place.parent.parts])
                return user_session.put(content, place.name, location, overwrite=overwrite)
        except (StatementFailed, OSError) as error:
            failures[str(place)] = describe_error(error)
            return "FAILED"

    statuses: Counter[str] = Counter()
    try:
        with ThreadPoolExecutor(CONCURRENT_UPLOADS) as threads:
            try:
                for status in threads.map(put, files):
                    statuses[status] += 1
                    advance(1)
            finally:  # after an interruption, only the uploads in progress finish
                threads.shutdown(cancel_futures=True)
    finally:
        if described["directory_enabled"] == "Y":
            user_session.rows(f"ALTER STAGE {name} REFRESH")
    if failures:
        raise UploadIncomplete(failures, statuses)
    return statuses


def is_encrypted_by_clients(user_session: UserSession, stage: str) -> bool:
    """Whether the stage is client-side encrypted (no SNOWFLAKE_SSE), so that URLs return ciphertext."""
    return is_client_side_encrypted(_describe(user_session, stage))


def _describe(user_session: UserSession, stage: str) -> dict[str, Any]:
    """The stage's row of SHOW STAGES. Raises ClientError if there is no such stage."""
    try:
        return describe_stage(user_session, parse_identifier(stage.removeprefix("@")))
    except ValueError as error:
        raise ClientError(str(error)) from None


def _quoted(described: Mapping[str, Any]) -> str:
    return quote_identifier(described["database_name"], described["schema_name"], described["name"])


def _list(
    user_session: UserSession, described: Mapping[str, Any], files: Sequence[File]
) -> dict[str, tuple[int, str | None]]:
    """Size and MD5 of existing files, by path; the MD5 of an encrypted file is that of its ciphertext."""
    folder = posixpath.commonpath([str(place.parent) for _, place in files])
    location = "/".join([f"@{_quoted(described)}", *PurePosixPath(folder).parts])
    name_size = len(described["name"].lower()) + 1
    return {
        str(row["name"])[name_size:]: (int(row["size"]), row["md5"])
        for row in user_session.rows(f"LIST {quote_string(location)}")
    }


def _is_same(path: Path, size: int, md5: str | None) -> bool:
    """Whether size and MD5 match; a store's own hash, as of multipart uploads, never matches."""
    if path.stat().st_size != size:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest() == md5


def _parts_of_artifact(network: Path) -> list[Path]:
    if not network.exists():
        raise ClientError(f"There is no {network}.")
    files = [file for file in sorted(network.rglob("*")) if file.is_file()] if network.is_dir() else [network]
    more = [next_to(network, suffix) for suffix in (".json", ".tflite", ".tflite.json")]
    return [*files, *(part for part in more if part.is_file() and part not in files)]


def _require_image(path: Path) -> None:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        networks = ", ".join(SUFFIXES)
        raise ClientError(
            f"An image's name must end in one of {known}, a network's in {networks}. Received: {path.name}."
        )


def _require_distinct_paths(files: Sequence[File]) -> None:
    places = Counter(place for _, place in files)
    if twice := [str(place) for place, count in places.items() if count > 1]:
        raise ClientError(f"Two files must not go to one place. Received twice: {', '.join(twice[:3])}.")
