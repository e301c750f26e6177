"""Find the image files that command-line paths name."""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath

from app.errors import CommandError

IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the named files, the matches of patterns, and the image files in named folders, sorted.

    Skips hidden files in folders. Raises CommandError if there are no images.
    """
    found: list[Path] = []
    for path in paths:
        for match in _matches(path):
            found += sorted(filter(_is_image, match.rglob("*"))) if match.is_dir() else [match]
    if not found:
        raise CommandError(f"No images in {', '.join(map(str, paths))}.")
    return found


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
