"""The first directory of a TIFF (TIFF 6.0, section 2; BigTIFF): the tags that pixels depend on."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from model.errors import ImageTooLarge
from model.formats.jpeg import refuse_scans

# More tags of a BigTIFF are ignored; ordinary files have up to a hundred.
MAX_TAGS = 65_535
# A strip or tile of any size costs microseconds. 16 million pixels are 62,500 tiles of 16 x 16.
MAX_PIECES = 65_536
# Strips and tiles may share bytes of the file, as blank tiles do; each of them is decompressed.
SPARE_SHARED_BYTES = 4 * 1024 * 1024
# No codec writes much more than it reads. Blocks without content cost time and add no pixel.
MAX_TIMES_UNCOMPRESSED = 2
SPARE_COMPRESSED_BYTES = 1024 * 1024

_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _COMPRESSION = 256, 257, 258, 259
_STRIP_OFFSETS, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _STRIP_BYTE_COUNTS = 273, 277, 278, 279
_PLANAR_CONFIGURATION, _COLOUR_MAP = 284, 320
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 322, 323, 324, 325
_JPEG_TABLES, _XMP = 347, 700
_UNCOMPRESSED, _JPEG, _SEPARATE_PLANES = 1, 7, 2

_INTEGER_TAGS = frozenset(
    {
        *(_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _COMPRESSION, _STRIP_OFFSETS, _SAMPLES_PER_PIXEL),
        *(_ROWS_PER_STRIP, _STRIP_BYTE_COUNTS, _PLANAR_CONFIGURATION, _COLOUR_MAP),
        *(_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS),
        *(262, 266, 274),  # photometric interpretation, fill order, orientation
        *(292, 293, 317, 326, 327, 328),  # options of the fax codecs, predictor
        *(332, 334, 336, 338, 339),  # inks, extra samples, sample format
        *range(512, 522),  # JPEG as TIFF 6.0 defines it
        *(530, 531),  # YCbCr subsampling and positioning
        *range(32995, 32999),  # libtiff's first tags for extra samples, sample format and depth
    }
)
# White point, primaries, JPEG tables, YCbCr coefficients, reference black and white, XMP.
_OTHER_TAGS = frozenset({318, 319, _JPEG_TABLES, 529, 532, _XMP})
_ARRAYS = (_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _TILE_OFFSETS, _TILE_BYTE_COUNTS)
_MAX_VALUE_BYTES = {
    **dict.fromkeys(_ARRAYS, MAX_PIECES * 8),
    _COLOUR_MAP: 3 * 65_536 * 4,
    _JPEG_TABLES: 65_536,
    _XMP: 1024 * 1024,
}
_MAX_OTHER_VALUE_BYTES = 4096
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q"}


class _Layout:
    """Formats of a file's header and directory."""

    def __init__(self, byte_order: str, *, big: bool) -> None:
        self.byte_order = byte_order
        self.offset_at, forms = (8, ("Q", "Q", "HHQ8x")) if big else (4, ("I", "H", "HHI4x"))
        self.offset, self.entry_count, self.entry = (struct.Struct(byte_order + form) for form in forms)


_LAYOUTS = {(order, big): _Layout(order, big=big) for order in "<>" for big in (False, True)}


class _Entry(NamedTuple):
    content: bytes
    kind: int
    values: int

    @property
    def value_bytes(self) -> int:
        return self.values * _VALUE_BYTES[self.kind]

    def values_at(self, layout: _Layout) -> int:
        """An offset into the file; 0 if the entry itself contains the values."""
        if self.value_bytes <= layout.offset.size:
            return 0
        (offset,) = layout.offset.unpack_from(self.content, len(self.content) - layout.offset.size)
        return int(offset)


@dataclass(frozen=True)
class _Directory:
    data: bytes
    layout: _Layout
    entries: Mapping[int, _Entry]

    def integers(self, tag: int) -> tuple[int, ...]:
        """Values of a tag, with signed numbers read as unsigned ones; empty if the tag is missing."""
        if tag not in self.entries:
            return ()
        entry = self.entries[tag]
        form = f"{self.layout.byte_order}{entry.values}{_INTEGERS[entry.kind]}"
        if place := entry.values_at(self.layout):
            return struct.unpack_from(form, self.data, place)
        return struct.unpack_from(form, entry.content, len(entry.content) - self.layout.offset.size)

    def integer(self, tag: int, default: int = 0) -> int:
        values = self.integers(tag)
        return values[0] if values else default


def strip(data: bytes) -> bytes:
    """The file with only its first directory, which keeps the tags that pixels depend on.

    All other bytes keep their offsets. A file without a directory is returned unchanged. Raises
    ImageTooLarge.
    """
    # Pillow detects a BigTIFF by this byte in either byte order, so it does not read big-endian ones.
    layout = _LAYOUTS[">" if data.startswith(b"MM") else "<", data[2:3] == b"+"]
    if len(data) < layout.offset_at + layout.offset.size:
        return data
    (directory_at,) = layout.offset.unpack_from(data, layout.offset_at)
    if directory_at + layout.entry_count.size > len(data):
        return data
    kept = _kept_entries(data, directory_at, layout)
    for unused in _ARRAYS[:2] if _TILE_OFFSETS in kept else _ARRAYS[2:]:
        kept.pop(unused, None)  # libtiff reads either pair, whether the image has strips or tiles
    directory = b"".join(
        [
            layout.entry_count.pack(len(kept)),
            *(entry.content for entry in kept.values()),
            layout.offset.pack(0),
        ]
    )[: len(data) - directory_at]
    stripped, end = data, directory_at + len(directory)
    if data[directory_at:end] != directory:
        view = memoryview(data)
        stripped = b"".join([view[:directory_at], directory, view[end:]])
    # Values may overlap the directory, so the limits are checked against the new file.
    _refuse_pieces(_Directory(stripped, layout, kept))
    return stripped


def _kept_entries(data: bytes, directory_at: int, layout: _Layout) -> dict[int, _Entry]:
    """The entries to keep, by tag. The first of several entries for one tag counts."""
    first, entry_bytes = directory_at + layout.entry_count.size, layout.entry.size
    (count,) = layout.entry_count.unpack_from(data, directory_at)
    end = min(first + min(count, MAX_TAGS) * entry_bytes, len(data) - entry_bytes + 1)
    kept: dict[int, _Entry] = {}
    for place in range(first, end, entry_bytes):
        tag, kind, values = layout.entry.unpack_from(data, place)
        kinds = _INTEGERS if tag in _INTEGER_TAGS else _VALUE_BYTES if tag in _OTHER_TAGS else ()
        if kind not in kinds or tag in kept:
            continue
        entry = _Entry(data[place : place + entry_bytes], kind, values)
        if not 0 < entry.value_bytes <= len(data) - entry.values_at(layout):
            continue  # Pillow too skips tags without values, and values beyond the end of the file
        if tag in _ARRAYS:
            _refuse_number(values)
        if _is_worth_reading(tag, entry.value_bytes):
            kept[tag] = entry
    return kept


def _is_worth_reading(tag: int, value_bytes: int) -> bool:
    max_bytes = _MAX_VALUE_BYTES.get(tag, _MAX_OTHER_VALUE_BYTES)
    if value_bytes > max_bytes and tag != _XMP:
        raise ImageTooLarge(
            f"Tag {tag} of a TIFF must have at most {max_bytes} bytes. Received: {value_bytes}."
        )
    return value_bytes <= max_bytes


class _Pieces(NamedTuple):
    """The strips or tiles of an image, and the number of pixels in each."""

    number: int
    pixels: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]


def _refuse_pieces(directory: _Directory) -> None:
    compression = directory.integer(_COMPRESSION, _UNCOMPRESSED)
    if compression == _UNCOMPRESSED:
        return  # Pillow reads one piece for each offset, and only as many bytes as its pixels take
    pieces = _pieces_of(directory)
    _refuse_number(pieces.number)
    _refuse_padding(directory, pieces)
    if compression == _JPEG:
        for offset, byte_count in zip(pieces.offsets, pieces.byte_counts, strict=False):
            refuse_scans(directory.data[offset : offset + byte_count], pieces.number * pieces.pixels)


def _refuse_number(pieces: int) -> None:
    if pieces > MAX_PIECES:
        raise ImageTooLarge(f"A TIFF must have at most {MAX_PIECES} strips or tiles. Received: {pieces}.")


def _pieces_of(directory: _Directory) -> _Pieces:
    width, length = directory.integer(_WIDTH), directory.integer(_LENGTH)
    if _TILE_WIDTH in directory.entries:
        piece_width, piece_length = directory.integer(_TILE_WIDTH), directory.integer(_TILE_LENGTH)
    else:
        piece_width, piece_length = width, min(directory.integer(_ROWS_PER_STRIP, length), length)
    number = 0
    if piece_width and piece_length:
        number = -(-width // piece_width) * -(-length // piece_length)
        if directory.integer(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES:
            number *= directory.integer(_SAMPLES_PER_PIXEL, 1)
    offsets = directory.integers(_TILE_OFFSETS) or directory.integers(_STRIP_OFFSETS)
    byte_counts = directory.integers(_TILE_BYTE_COUNTS) or directory.integers(_STRIP_BYTE_COUNTS)
    return _Pieces(number, piece_width * piece_length, offsets, byte_counts)


def _refuse_padding(directory: _Directory, pieces: _Pieces) -> None:
    """Raise ImageTooLarge if the compressed data is larger than the file or its pixels justify."""
    file_bytes = len(directory.data)
    # Without byte counts, libtiff reads pieces up to the end of the file.
    byte_counts = pieces.byte_counts or (file_bytes,) * len(pieces.offsets)
    compressed_bytes = sum(
        min(byte_count, max(0, file_bytes - offset))
        for offset, byte_count in zip(pieces.offsets, byte_counts, strict=False)
    )
    sample_bytes = max(1, max(directory.integers(_BITS_PER_SAMPLE), default=1) // 8)
    sample_bytes *= directory.integer(_SAMPLES_PER_PIXEL, 3)
    uncompressed_bytes = pieces.number * pieces.pixels * sample_bytes
    max_bytes = min(
        file_bytes + SPARE_SHARED_BYTES, MAX_TIMES_UNCOMPRESSED * uncompressed_bytes + SPARE_COMPRESSED_BYTES
    )
    if compressed_bytes > max_bytes:
        raise ImageTooLarge(
            f"The strips or tiles of this TIFF must have at most {max_bytes} bytes. "
            f"Received: {compressed_bytes}."
        )
