"""One staged file through the connector, which decrypts what Snowflake's clients have encrypted."""

import re
import tempfile
from pathlib import Path
from typing import Any

from app.errors import FileMissing, SnowflakeRefused
from app.snowflake.identifier import quote_identifier, quote_string
from model.errors import ImageTooLarge

# Clients encrypt with AES in CBC mode, which pads to whole blocks, by one at least.
_BLOCK_BYTES = 16


def download_file(connection: Any, stage: tuple[str, ...], path: str, max_bytes: int) -> bytes:
    """Raises FileMissing, ImageTooLarge, or what the connector raises.

    GET takes its path for a prefix, so what it would bring is listed first.
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
    """The connector lengthens names while it decrypts, and says nothing where they get too long."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SnowflakeRefused(
            "A staged file that is not fetched by a signed URL must have a name of at most 200 bytes. "
            f"Received: {len(path.name.encode())} bytes."
        ) from None


def _listed_bytes(listed: list[tuple[Any, ...]], path: str) -> int:
    """The size of the file at that very path. The names in a list begin with the stage's, or with its URL."""
    behind = f"/{path}"
    sizes = [int(size) for name, size, *_ in listed if name.partition(behind)[1:] == (behind, "")]
    if len(sizes) != 1:
        raise FileMissing(
            "A staged file must be there. Received: none at that path; check it, and run "
            "ALTER STAGE … REFRESH if a directory table still lists it."
        )
    if sum(name.rpartition("/")[2] == path.rpartition("/")[2] for name, *_ in listed) > 1:
        raise SnowflakeRefused(
            "A staged file must not share its path with a folder that holds another of its name: GET would "
            "mix them up."
        )
    return sizes[0]


def _refuse_bytes(image_bytes: int, max_bytes: int) -> None:
    if image_bytes > max_bytes:
        raise ImageTooLarge(f"An image must have at most {max_bytes} bytes. Received: more than that.")
