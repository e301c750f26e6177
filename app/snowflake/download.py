"""Downloads one staged file with the connector, which decrypts client-side encryption."""

import re
import tempfile
from pathlib import Path
from typing import Any

from app.errors import FileMissing, SnowflakeRefused
from app.snowflake.identifier import quote_identifier, quote_string
from model.errors import ImageTooLarge

# AES in CBC mode pads each file by 1 to 16 bytes.
_BLOCK_BYTES = 16


def download_file(connection: Any, stage: tuple[str, ...], path: str, max_bytes: int) -> bytes:
    """The decrypted content. Raises FileMissing, ImageTooLarge, or the connector's errors.

    GET treats its path as a prefix, so the matching files are listed first.
    """
    location = quote_string(f"@{quote_identifier(*stage)}/{path}")
    name = path.rpartition("/")[2]
    with connection.cursor() as cursor, tempfile.TemporaryDirectory(prefix="ext-classify-") as folder:
        listed = cursor.execute(f"LIST {location}").fetchall()
        _refuse_bytes(_listed_bytes(listed, path) - _BLOCK_BYTES, max_bytes)
        pattern = f" PATTERN = {quote_string(f'.*{re.escape(name)}')}" if len(listed) > 1 else ""
        cursor.execute(f"GET {location} {quote_string(f'file://{folder}/')}{pattern}")
        content = _read(Path(folder) / name)
        _refuse_bytes(len(content), max_bytes)
        return content


def _read(path: Path) -> bytes:
    """The connector lengthens file names while it decrypts, and fails silently if they get too long."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SnowflakeRefused(
            "A staged file that is not fetched by a presigned URL must have a name of at most 200 bytes. "
            f"Received: {len(path.name.encode())} bytes."
        ) from None


def _listed_bytes(listed: list[tuple[Any, ...]], path: str) -> int:
    """The size of the file at exactly `path`. Names in LIST begin with the stage's name or URL."""
    behind = f"/{path}"
    sizes = [int(size) for name, size, *_ in listed if name.partition(behind)[1:] == (behind, "")]
    if len(sizes) != 1:
        raise FileMissing(
            "A staged file must exist. Received: none at this path; check the path, and run "
            "ALTER STAGE … REFRESH if a directory table still lists it."
        )
    if sum(name.rpartition("/")[2] == path.rpartition("/")[2] for name, *_ in listed) > 1:
        raise SnowflakeRefused(
            "A staged file must not share its path with a folder that contains a file of the same name: GET "
            "would confuse them."
        )
    return sizes[0]


def _refuse_bytes(image_bytes: int, max_bytes: int) -> None:
    if image_bytes > max_bytes:
        raise ImageTooLarge(f"An image must have at most {max_bytes} bytes. Received: more than that.")
