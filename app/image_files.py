"""The image files that a command line names."""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath

from app.client import ClientError

IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files named, by patterns too, and image files in folders named, but for hidden ones; in sorted order.

    Raises ClientError.
    """
    found: list[Path] = []
    for path in paths:
        for match in _matches(path):
            found += sorted(filter(_is_image, match.rglob("*"))) if match.is_dir() else [match]
    if not found:
        raise ClientError(f"There are no images in {', '.join(map(str, paths))}.")
    return found


def _matches(path: Path) -> list[Path]:
    """Itself, or what it is a pattern of, where the shell has not looked. Raises ClientError."""
    if path.exists():
        return [path]
    matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - of any root
    if not matches:
        raise ClientError(f"There is no {path}.")
    return matches


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")  # such as those that macOS leaves beside images
    return not is_hidden and is_named_as_image(path.name) and path.is_file()


def is_named_as_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES
