"""Find the image files that command-line paths name."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from app.errors import CommandError
from model.formats import IMAGE_SUFFIXES


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the named files, the matches of patterns, and the image files in named folders, sorted.

    A file that is named twice counts once. Skips hidden files in folders. Raises CommandError if there are
    no images.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for match in _matches(path):
            for image in sorted(filter(_is_image, match.rglob("*"))) if match.is_dir() else [match]:
                found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 - Path.absolute() keeps `..`
    if not found:
        skipped = describe_skipped(paths)
        raise CommandError(f"No images in {', '.join(map(str, paths))}{skipped and f'; {skipped}'}.")
    return list(found.values())


def describe_skipped(paths: Sequence[Path]) -> str:
    """How many files and folders of each kind find_images skips: `4 skipped: 2 HEIC, 1 PDF, 1 unreadable`.

    Returns nothing if it skips none.
    """
    folders = [match for path in paths for match in _matches(path) if match.is_dir()]
    found = {os.path.abspath(path) for folder in folders for path in (folder, *folder.rglob("*"))}  # noqa: PTH100
    kinds = Counter(kind for path in map(Path, found) if (kind := _kind_skipped(path)))
    counts = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return f"{kinds.total()} skipped: {', '.join(f'{n} {kind}' for kind, n in counts)}" if kinds else ""


def _kind_skipped(path: Path) -> str | None:
    if path.is_dir():
        return None if os.access(path, os.R_OK | os.X_OK) else "unreadable"
    if path.name.startswith(".") or _is_image(path):
        return None
    if not path.is_file():  # such as a link to nothing
        return "unreadable"
    return path.suffix[1:].upper() or "without a suffix"


def _matches(path: Path) -> list[Path]:
    """Return the path, or the matches of a pattern that the shell did not expand. Raises CommandError."""
    if path.exists():
        return [path]
    matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute patterns
    if not matches:
        raise CommandError(f"No such file, folder or pattern: {path}")
    return matches


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")  # such as the ._ files of macOS
    return not is_hidden and is_named_as_image(path.name) and path.is_file()


def is_named_as_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES
