"""Image sources of `classify PATH…`: local files and staged files."""

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.client import ClientError
from app.errors import UsageError
from app.images.files import find_images, is_named_as_image
from app.names import directory_of, parse_full_location, quote_identifier
from app.provisioning.user_session import UserSession

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class ImageSource:
    """An image to classify. `name` identifies it in the results; staged files have no `path`."""

    name: str
    path: Path | None = None
    etag: str | None = None

    def read(self) -> bytes | str:
        """Return the bytes of a local file, or the staged path that the service reads. Raises OSError."""
        return self.name if self.path is None else self.path.read_bytes()

    def content(self) -> str | None:
        """Return the SHA-256 of a local file, or the etag of a staged file. Raises OSError."""
        return self.etag if self.path is None else content_of(self.path.read_bytes())


def content_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def find_sources(names: Sequence[str], connect: Callable[[], UserSession]) -> list[ImageSource]:
    """Return local images first, then staged ones (`@stage/path`), in the order of the names.

    Opens a session only to look up stage folders and patterns. Raises ClientError.
    """
    if not all(names):  # Path("") is the current folder; an unset shell variable must not select it
        raise UsageError("A PATH must not be empty.")
    local = [Path(name) for name in names if not name.startswith("@")]
    found = [ImageSource(_printable(path), path) for path in find_images(local)] if local else []
    for name in names:
        if name.startswith("@"):
            found += _find_staged(name, connect)
    return list({source.name: source for source in found}.values())


def _printable(path: Path) -> str:
    """Return the path as text, with undecodable bytes escaped."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _find_staged(name: str, connect: Callable[[], UserSession]) -> list[ImageSource]:
    try:
        stage, path = parse_full_location(name)
    except ValueError as error:
        raise ClientError(str(error)) from None
    if is_named_as_image(path) and not _PATTERN & set(path):
        return [ImageSource(name)]
    with connect() as user_session:
        found = list(_list_stage(user_session, quote_identifier(*stage), path))
    if not found:
        raise ClientError(f"No images in {name}. Run ALTER STAGE … REFRESH to list new files.")
    return found


def _list_stage(user_session: UserSession, stage: str, path: str) -> Iterator[ImageSource]:
    rows = user_session.rows(
        f"SELECT relative_path, etag FROM {directory_of(stage)} ORDER BY relative_path"  # noqa: S608 - quoted
    )
    for row in rows:
        relative_path: str = row["relative_path"]
        if is_named_as_image(relative_path) and _matches(relative_path, path):
            yield ImageSource(f"@{stage}/{relative_path}", etag=row["etag"])


def _matches(relative_path: str, path: str) -> bool:
    if _PATTERN & set(path):
        return fnmatch.fnmatchcase(relative_path, path)
    folder = path.rstrip("/")
    return not folder or relative_path.startswith(f"{folder}/")
