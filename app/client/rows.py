"""Converts images to the rows of a request."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

BATCH_BYTES = 16 * 1024 * 1024

Image: TypeAlias = bytes | Path | str
"""An image's bytes, the path of its file, or a row's source: a URL, a stage path, base64."""

Rows: TypeAlias = list[list[Any]]


def rows_of(images: Sequence[Image], *, evidence: bool) -> Rows:
    """Rows as Snowflake sends them. Raises OSError for a file that cannot be read."""
    options: list[Any] = [{"evidence": True}] if evidence else []
    return [[number, source_of(image), *options] for number, image in enumerate(images)]


def source_of(image: Image) -> str:
    """The image as a row's source: a string unchanged, bytes and files as base64. Raises OSError."""
    if isinstance(image, str):
        return image
    return base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()


def in_batches(images: Iterable[Image], batch_rows: int) -> Iterator[list[Image]]:
    """Split into batches of at most `batch_rows` images and, if they hold more than one, BATCH_BYTES."""
    batch: list[Image] = []
    batch_bytes = 0
    for image in images:
        image_bytes = image.stat().st_size if isinstance(image, Path) else len(image)
        if batch and (len(batch) == batch_rows or batch_bytes + image_bytes > BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(image)
        batch_bytes += image_bytes
    if batch:
        yield batch
