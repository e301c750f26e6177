"""The directory of a TIFF's image (TIFF 6.0, section 2; BigTIFF): the tags that pixels depend on."""

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from model.errors import CorruptImage, ImageTooLarge, UnsupportedFormat
from model.formats.jpeg import refuse_scans

# More tags of a BigTIFF are ignored; ordinary files have up to a hundred.
MAX_TAGS = 65_535
# A file may have thousands of pages; a camera's has a thumbnail and two or three images.
MAX_DIRECTORIES = 8
# A strip or tile of any size costs microseconds. 16 million pixels are 62,500 tiles of 16 x 16.
MAX_PIECES = 65_536
# Strips and tiles may share bytes of the file, as blank tiles do; each of them is decompressed.
SPARE_SHARED_BYTES = 4 * 1024 * 1024
# No codec writes much more than it reads. Blocks without content cost time and add no pixel.
MAX_TIMES_UNCOMPRESSED = 2
SPARE_COMPRESSED_BYTES = 1024 * 1024

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_DIRECTORIES = 254, 255, 330
_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _STRIP_BYTE_COUNTS = 273, 277, 278, 279
_PLANAR_CONFIGURATION, _COLOUR_MAP = 284, 320
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 322, 323, 324, 325
_SAMPLE_FORMAT, _JPEG_TABLES, _XMP = 339, 347, 700
_UNCOMPRESSED, _JPEG, _SEPARATE_PLANES = 1, 7, 2
# Bits of NewSubfileType, and a value of SubfileType.
_REDUCED_OR_MASK, _OLD_REDUCED = 0b101, 2

_KINDS_OF_COLOUR = {
    **dict.fromkeys((8, 9, 10), "Lab"),
    **dict.fromkeys((32844, 32845), "LogLuv"),
} | {
    0: "grey (white is zero)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    32803: "colour filter array",
    34892: "linear raw",
}
_KINDS_OF_SAMPLE = {1: "integer", 2: "signed", 3: "float", 5: "complex", 6: "complex"}
# Other codecs, which are rare, by their names.
_OTHER_CODECS = {
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
} | {34661: "JBIG", 32909: "PixarLog", 34887: "LERC", 34892: "lossy JPEG", 34933: "PNG", 50001: "WebP"}

# They say which directory holds the image, and are not kept.
_KIND_TAGS = (_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_DIRECTORIES)
_INTEGER_TAGS = frozenset(
    {
        *(_WIDTH, _LENGTH, _BITS_PER_SAMPLE, _COMPRESSION, _STRIP_OFFSETS, _SAMPLES_PER_PIXEL),
        *(_ROWS_PER_STRIP, _STRIP_BYTE_COUNTS, _PLANAR_CONFIGURATION, _COLOUR_MAP),
        *(_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS),
        *_KIND_TAGS,
        *(_PHOTOMETRIC, 266, 274),  # fill order, orientation
        *(292, 293, 317, 326, 327, 328),  # options of the fax codecs, predictor
        *(332, 334, 336, 338, _SAMPLE_FORMAT),  # inks, extra samples
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
_VALUE_BYTES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 18), 8),
}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 18: "Q"}
_BYTE_ORDERS = {"<": "little-endian", ">": "big-endian"}


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

    @property
    def is_whole_image(self) -> bool:
        is_part = self.integer(_NEW_SUBFILE_TYPE) & _REDUCED_OR_MASK
        return not is_part and self.integer(_SUBFILE_TYPE) != _OLD_REDUCED

    def next_at(self, place: int) -> int:
        """The place of the directory after this one, which is at `place`; 0 after the last."""
        (count,) = self.layout.entry_count.unpack_from(self.data, place)
        end = place + self.layout.entry_count.size + count * self.layout.entry.size
        if end + self.layout.offset.size > len(self.data):
            return 0
        (following,) = self.layout.offset.unpack_from(self.data, end)
        return int(following)


def strip(data: bytes) -> bytes:
    """The file with only the directory of its image, which keeps the tags that pixels depend on.

    That is the first directory that is no thumbnail and no mask. All other bytes keep their offsets. A file
    without a directory is returned unchanged. Raises ImageTooLarge or UnsupportedFormat.
    """
    if data.startswith(b"MM\0+"):  # which Pillow takes for another TIFF
        raise UnsupportedFormat("A BigTIFF must be little-endian. Received: a big-endian one.")
    layout = _LAYOUTS[">" if data.startswith(b"MM") else "<", data[2:3] == b"+"]
    if len(data) < layout.offset_at + layout.offset.size:
        return data
    (first_at,) = layout.offset.unpack_from(data, layout.offset_at)
    if first_at + layout.entry_count.size > len(data):
        return data
    directory_at, kept = _find_image(data, first_at, layout)
    _refuse_codec(_Directory(data, layout, kept))
    for unused in (*_KIND_TAGS, *(_ARRAYS[:2] if _TILE_OFFSETS in kept else _ARRAYS[2:])):
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
    if directory_at != first_at:
        after = layout.offset_at + layout.offset.size
        stripped = stripped[: layout.offset_at] + layout.offset.pack(directory_at) + stripped[after:]
    # Values may overlap the directory, so the limits are checked against the new file.
    _refuse_pieces(_Directory(stripped, layout, kept))
    return stripped


def describe(stripped: bytes) -> str | None:
    """What kind of TIFF this is, for a file that `strip` has returned; None if it has no image."""
    layout = _LAYOUTS[">" if stripped.startswith(b"MM") else "<", stripped[2:3] == b"+"]
    with suppress(struct.error):
        (directory_at,) = layout.offset.unpack_from(stripped, layout.offset_at)
        directory = _Directory(stripped, layout, _kept_entries(stripped, directory_at, layout))
        has_size = directory.integer(_WIDTH) and directory.integer(_LENGTH)
        if not has_size or directory.entries.keys().isdisjoint(_ARRAYS):
            return None
        colour, sample = directory.integer(_PHOTOMETRIC), directory.integer(_SAMPLE_FORMAT, 1)
        return (
            f"{_KINDS_OF_COLOUR.get(colour, f'photometric interpretation {colour}')}, "
            f"{directory.integer(_SAMPLES_PER_PIXEL, 1)} x {directory.integer(_BITS_PER_SAMPLE, 1)} bits, "
            f"{_KINDS_OF_SAMPLE.get(sample, f'sample format {sample}')}, {_BYTE_ORDERS[layout.byte_order]}"
        )
    return None


def _find_image(data: bytes, first_at: int, layout: _Layout) -> tuple[int, dict[int, _Entry]]:
    """The place and the entries of the first directory that is no thumbnail and no mask, or of the first."""
    first = _kept_entries(data, first_at, layout)
    directory, place, seen = _Directory(data, layout, first), first_at, {first_at}
    waiting = list(directory.integers(_SUB_DIRECTORIES)[:MAX_DIRECTORIES])
    while not directory.is_whole_image:
        waiting = [directory.next_at(place), *waiting]
        place = next((at for at in waiting if at not in seen and _holds_directory(data, at, layout)), 0)
        if not place or len(seen) == MAX_DIRECTORIES:
            return first_at, first
        seen.add(place)
        directory = _Directory(data, layout, _kept_entries(data, place, layout))
    return place, dict(directory.entries)


def _holds_directory(data: bytes, place: int, layout: _Layout) -> bool:
    return 0 < place <= len(data) - layout.entry_count.size


def _refuse_codec(directory: _Directory) -> None:
    codec = directory.integer(_COMPRESSION, _UNCOMPRESSED)
    if codec in _OTHER_CODECS:
        raise UnsupportedFormat(
            "A TIFF must be uncompressed or compressed with LZW, Deflate, PackBits, JPEG, CCITT, LZMA or "
            f"Zstandard. Received: {_OTHER_CODECS[codec]} ({codec})."
        )


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
    if value_bytes > max_bytes and tag not in (_XMP, _SUB_DIRECTORIES):
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
    pieces = _pieces_of(directory)
    if compression == _UNCOMPRESSED:
        # Pillow reads one piece for each offset, and only as many bytes as its pixels take. It would leave
        # the pixels of missing pieces black, and read surplus ones over the first.
        if pieces.number and pieces.offsets and len(pieces.offsets) != pieces.number:
            raise CorruptImage(
                f"A TIFF of this size must have {pieces.number} strips or tiles. "
                f"Received: {len(pieces.offsets)}."
            )
        return
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
