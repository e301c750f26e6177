"""What `classify PATH…` is to classify: files of this machine, and files of stages."""

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.client import ClientError
from app.image_files import find_images, is_named_as_image
from app.snowflake.console import Console
from app.snowflake.identifier import quote_identifier
from app.snowflake.stage_location import parse_location

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class ImageSource:
    """`name` is what it is called in the results; what `content` returns changes with the image's bytes."""

    name: str
    path: Path | None = None
    etag: str | None = None

    def read(self) -> bytes | str:
        """Its bytes, or what the service is to read. Raises OSError."""
        return self.name if self.path is None else self.path.read_bytes()

    def content(self) -> str | None:
        """SHA-256 of a file, etag of a staged one. Raises OSError."""
        return self.etag if self.path is None else content_of(self.path.read_bytes())


def content_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def find_sources(names: Sequence[str], connect: Callable[[], Console]) -> list[ImageSource]:
    """In the order of the names; `@stage/path` is a stage's.

    A session is opened where a folder of a stage, or a pattern, is to be looked up. Raises ClientError.
    """
    if not all(names):  # it would be this folder, as a variable that is not set would have it
        raise ClientError("A PATH must not be empty.")
    local = [Path(name) for name in names if not name.startswith("@")]
    found = [ImageSource(_printable(path), path) for path in find_images(local)] if local else []
    for name in names:
        if name.startswith("@"):
            found += _staged(name, connect)
    return found


def _printable(path: Path) -> str:
    """Some names are no text, and results are."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _staged(name: str, connect: Callable[[], Console]) -> list[ImageSource]:
    try:
        stage, path = parse_location(name)
    except ValueError as error:
        raise ClientError(str(error)) from None
    if is_named_as_image(path) and not _PATTERN & set(path):
        return [ImageSource(name)]
    with connect() as console:
        found = list(_listed(console, quote_identifier(*stage), path))
    if not found:
        raise ClientError(f"There are no images in {name}; ALTER STAGE … REFRESH lists what came since.")
    return found


def _listed(console: Console, stage: str, path: str) -> Iterator[ImageSource]:
    """Of the stage's directory table."""
    rows = console.rows(
        f"SELECT relative_path, etag FROM DIRECTORY(@{stage}) ORDER BY relative_path"  # noqa: S608 - quoted
    )
    for row in rows:
        relative_path: str = row["relative_path"]
        if is_named_as_image(relative_path) and _is_meant(relative_path, path):
            yield ImageSource(f"@{stage}/{relative_path}", etag=row["etag"])


def _is_meant(relative_path: str, path: str) -> bool:
    if _PATTERN & set(path):
        return fnmatch.fnmatchcase(relative_path, path)
    folder = path.rstrip("/")
    return not folder or relative_path.startswith(f"{folder}/")
