"""Reads the headers of JPEG, PNG and TIFF files, to limit what a decoder does before it starts.

`FORMATS` of model.image lists the formats that are accepted, and IMAGE_SUFFIXES their file names. This module
also reads the orientation that metadata states.
"""

import re
from typing import Literal, NamedTuple

IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})
UPRIGHT = 1

# Exif 3.0, section 4.6.5.
_ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12
# TIFF 6.0, section 2: BYTE, SHORT, LONG, SSHORT and SLONG, of which one value fits into an entry.
_INTEGER_BYTES = {1: 1, 3: 2, 4: 4, 8: 2, 9: 4}
_MAX_INLINE_BYTES = 4
# The last two are invalid, but some files use them.
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {
    b"II*\0": "little",
    b"MM\0*": "big",
    b"II\0*": "little",
    b"MM*\0": "big",
}
# All that Pillow accepts, BigTIFF included.
TIFF_SIGNATURES = (*_BYTE_ORDERS, b"II+\0", b"MM\0+")
_EXIF_PREFIX = re.compile(rb"(?:Exif\0\0){0,2}")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Metadata(NamedTuple):
    """The two blocks of an image file that may state an orientation; empty where the file has none."""

    exif: bytes = b""
    xmp: bytes = b""

    def orientation(self) -> int:
        """Usually 1 to 8, as defined by Exif; other values have no meaning. Exif has precedence over XMP."""
        stated = _orientation_in_exif(self.exif)
        if stated is None and (match := _XMP_ORIENTATION.search(self.xmp)):
            stated = int(match[1])
        return UPRIGHT if stated is None else stated


def _orientation_in_exif(exif: bytes) -> int | None:
    """The value in the first directory of a TIFF structure, whose other entries are not decoded."""
    prefix = _EXIF_PREFIX.match(exif)
    start = prefix.end() if prefix else 0
    order = _BYTE_ORDERS.get(exif[start : start + 4])
    if order is None:
        return None
    directory = start + int.from_bytes(exif[start + 4 : start + 8], order)
    count = int.from_bytes(exif[directory : directory + 2], order)
    entries = exif[directory + 2 : directory + 2 + count * _ENTRY_BYTES]
    tag = _ORIENTATION_TAG.to_bytes(2, order)
    for place in range(0, len(entries) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        if entries[place : place + 2] == tag:
            kind = int.from_bytes(entries[place + 2 : place + 4], order)
            values = int.from_bytes(entries[place + 4 : place + 8], order)
            value_bytes = _INTEGER_BYTES.get(kind, 0)
            if 0 < values * value_bytes <= _MAX_INLINE_BYTES:  # libraries take the first of several
                return int.from_bytes(entries[place + 8 : place + 8 + value_bytes], order)
    return None
