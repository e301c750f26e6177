"""Images as the rows of a request."""

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

BATCH_BYTES = 16 * 1024 * 1024

Image: TypeAlias = bytes | Path | str
"""An image's bytes, a file that holds them, or what a row may name: a URL, a stage path, base64."""

Rows: TypeAlias = list[list[Any]]


def rows_of(images: Sequence[Image], *, evidence: bool) -> Rows:
    """As Snowflake would send them. Raises OSError for a file that cannot be read."""
    options: list[Any] = [{"evidence": True}] if evidence else []
    return [[number, source_of(image), *options] for number, image in enumerate(images)]


def source_of(image: Image) -> str:
    """What a row holds for it. Raises OSError."""
    if isinstance(image, str):
        return image
    return base64.b64encode(image if isinstance(image, bytes) else image.read_bytes()).decode()


def in_batches(images: Iterable[Image], batch_rows: int) -> Iterator[list[Image]]:
    """As many at a time as rows and bytes allow."""
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
