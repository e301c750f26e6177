"""The chunks of a PNG (W3C, third edition): those that pixels depend on."""

import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from model.errors import CorruptImage, ImageTooLarge
from model.formats import Metadata

# Walking this many chunk headers takes 0.3 seconds.
MAX_CHUNKS = 1_000_000
# Deflate writes at most a thousandth more than it reads. Empty blocks cost time and add no pixel.
MAX_TIMES_UNCOMPRESSED = 1.25
SPARE_COMPRESSED_BYTES = 1024 * 1024
# Inflated at once, to count rows.
_PIECE_BYTES = 64 * 1024
# Limits for a text that may state an orientation. Crafted deflate takes 0.1 microseconds a byte.
MAX_COMPRESSED_TEXT_BYTES = 256 * 1024
MAX_TEXT_BYTES = 1024 * 1024

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_CRC_BYTES = 4
_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER_KINDS = (b"IHDR", b"PLTE", b"tRNS")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_COLOUR_TYPE_AT, _GREY, _PALETTE = _CHUNK.size + 9, 0, 3
# Of tRNS, for the colour types that state one transparent colour.
_TRANSPARENT_BYTES = {0: 2, 2: 6}
# Adam7: first column and row, and the steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ONE_PASS = ((0, 0, 1, 1),)
# Bit depth and colour type.
_PLAIN_MODES: dict[tuple[int, int], Literal["mono", "rgb", "rgba"]] = {
    (8, 0): "mono",
    (8, 2): "rgb",
    (8, 6): "rgba",
    (16, 0): "mono",
}
_EXIF, _TEXT_KINDS = b"eXIf", frozenset({b"tEXt", b"zTXt", b"iTXt"})
_EXIF_TEXT, _PROFILE, _XMP = b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"
_KEYWORDS = tuple(keyword + b"\0" for keyword in (_EXIF_TEXT, _PROFILE, _XMP))


class _Chunks:
    """The chunks to keep, and the first bytes of a broken chunk, if there is one."""

    def __init__(self) -> None:
        self.header: dict[bytes, bytes] = {}
        self.pixels = bytearray()
        self.run = slice(0)
        """Position of the chunks of `pixels` in the file."""
        self.texts: dict[bytes, bytes] = {}
        self.broken = b""

    def takes(self, kind: bytes, data: bytes, position: int, end: int) -> bool:
        """Whether decoders use a chunk of the header: of ancillary ones, those that are valid, and the first.

        PLTE is ancillary in an image without a palette, and tRNS in every image, as libpng treats it.
        """
        colour = self.header.get(b"IHDR", b"")[_COLOUR_TYPE_AT : _COLOUR_TYPE_AT + 1]
        if kind == b"IHDR" or not colour:
            return True
        if kind == b"PLTE":
            return colour[0] == _PALETTE
        bytes_, checksum = end - position - _CHUNK.size, data[end : end + _CRC_BYTES]
        most = (len(self.header.get(b"PLTE", b"")) - _CHUNK.size - _CRC_BYTES) // 3
        fits = 0 < bytes_ <= most if colour[0] == _PALETTE else bytes_ == _TRANSPARENT_BYTES.get(colour[0])
        is_intact = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big") == checksum
        return fits and is_intact and kind not in self.header


class PlainPng(NamedTuple):
    """A PNG of 8-bit grey, RGB or RGBA pixels, or of 16-bit grey ones, without a transparent colour."""

    file: bytes
    """With only IHDR, IDAT and IEND."""
    size: tuple[int, int]
    mode: Literal["mono", "rgb", "rgba"]
    is_16_bit: bool
    metadata: Metadata


def find_plain(data: bytes) -> PlainPng | None:
    """Returns None for any other file. Raises ImageTooLarge."""
    if not data.startswith(SIGNATURE):
        return None
    chunks = _read_chunks(data)
    header = chunks.header.get(b"IHDR", b"")
    if not chunks.pixels or b"tRNS" in chunks.header or len(header) < _CHUNK.size + 13:
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", header, _CHUNK.size)
    if (mode := _PLAIN_MODES.get((depth, colour))) is None:
        return None
    _refuse_padding(header, len(chunks.pixels))
    file = b"".join([SIGNATURE, header, data[chunks.run], _END])
    metadata = _metadata(chunks.texts) if chunks.texts else Metadata()
    return PlainPng(file, (width, height), mode, depth == 16, metadata)


def strip(data: bytes) -> tuple[bytes, Metadata]:
    """The file with only IHDR, PLTE, tRNS and one IDAT, which is the default image of an animation.

    Its transparent colour is that of the pixels as Pillow decodes them.

    A file that is broken before its IDAT stays broken. Raises ImageTooLarge.
    """
    chunks = _read_chunks(data)
    if b"tRNS" in chunks.header:
        chunks.header[b"tRNS"] = _scaled_key(chunks.header[b"tRNS"], *chunks.header[b"IHDR"][16:18])
    header = [chunks.header[kind] for kind in _HEADER_KINDS if kind in chunks.header]
    pixels: list[bytes | bytearray] = []
    if chunks.pixels:
        _refuse_padding(chunks.header.get(b"IHDR", b""), len(chunks.pixels))
        pixels = [_CHUNK.pack(len(chunks.pixels), b"IDAT"), chunks.pixels, bytes(_CRC_BYTES)]
    stripped = b"".join([SIGNATURE, *header, *pixels, chunks.broken or _END])
    return stripped, _metadata(chunks.texts) if chunks.texts else Metadata()


def refuse_missing_rows(stripped: bytes) -> None:
    """Raises CorruptImage if the pixels of a file that `strip` returned end early.

    Pillow would leave the rest black. The size in the header must be within the limits.
    """
    chunks = _read_chunks(stripped)
    pixels = memoryview(chunks.pixels)
    width, height, depth, colour, _, _, interlace = struct.unpack_from(
        ">II5B", chunks.header[b"IHDR"], _CHUNK.size
    )
    row_bytes = sum(
        -(-max(0, height - y) // down) * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
        for x, y, across, down in (_PASSES if interlace else _ONE_PASS)
        if (columns := -(-(width - x) // across)) > 0
    )
    inflated, decompressor = 0, zlib.decompressobj()
    for start in range(0, len(pixels), _PIECE_BYTES):
        piece: bytes | memoryview = pixels[start : start + _PIECE_BYTES]
        while piece:
            try:
                inflated += len(decompressor.decompress(piece, _PIECE_BYTES))
            except zlib.error:
                return  # which Pillow raises as well
            if inflated >= row_bytes:
                return
            piece = decompressor.unconsumed_tail
    inflated += len(decompressor.flush())
    if decompressor.eof and inflated < row_bytes:  # Pillow raises for a stream without its end
        raise CorruptImage(
            f"A PNG of {width} x {height} pixels must have {row_bytes} bytes of rows. Received: {inflated}."
        )


def _scaled_key(chunk: bytes, depth: int, colour: int) -> bytes:
    """A tRNS chunk with one colour, of 8 bits a sample, unless Pillow keeps the pixels' 16 bits.

    Of samples with fewer bits than 16, higher bits are unused (section 11.3.1.1).
    """
    if colour == _PALETTE or (colour == _GREY and depth == 16):
        return chunk
    samples = struct.unpack(f">{_CHANNELS[colour]}H", chunk[_CHUNK.size : -_CRC_BYTES])
    white = 2**depth - 1
    key = [sample >> 8 if depth == 16 else (sample & white) * 255 // white for sample in samples]
    content = b"tRNS" + struct.pack(f">{len(key)}H", *key)
    return chunk[:4] + content + zlib.crc32(content).to_bytes(_CRC_BYTES, "big")


def _read_chunks(data: bytes) -> _Chunks:
    chunks = _Chunks()
    pixels, view, previous, position = chunks.pixels, memoryview(data), b"", len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + _CHUNK.size > len(data):
            return chunks
        length, kind = _CHUNK.unpack_from(data, position)
        start = position + _CHUNK.size
        end = start + length
        if kind == b"IDAT":
            if previous == kind or not pixels:  # the chunks of one image follow each other
                first = chunks.run.start if pixels else position
                pixels += view[start:end]
                chunks.run = slice(first, end + _CRC_BYTES)
        elif kind == b"IEND":
            return chunks
        elif not pixels and not kind.isalnum():
            chunks.broken = data[position:start]
            return chunks
        elif kind in _HEADER_KINDS and not pixels and chunks.takes(kind, data, position, end):
            chunks.header[kind] = data[position : end + _CRC_BYTES]
        elif kind in _TEXT_KINDS and data.startswith(_KEYWORDS, start):
            chunks.texts[data[start : data.index(b"\0", start)]] = data[position + 4 : end]
        elif kind == _EXIF:
            chunks.texts[kind] = data[start:end]
        previous, position = kind, end + _CRC_BYTES
    raise ImageTooLarge(f"A PNG must have at most {MAX_CHUNKS} chunks. Received: more.")


def _refuse_padding(header: bytes, compressed_bytes: int) -> None:
    """`header` is the IHDR chunk, its length and kind included."""
    if compressed_bytes <= SPARE_COMPRESSED_BYTES or len(header) < _CHUNK.size + 13:
        return
    width, height, depth, colour = struct.unpack_from(">IIBB", header, _CHUNK.size)
    row_bytes = 1 + (width * depth * _CHANNELS.get(colour, 4) + 7) // 8
    max_bytes = int(MAX_TIMES_UNCOMPRESSED * row_bytes * height) + SPARE_COMPRESSED_BYTES
    if compressed_bytes > max_bytes:
        raise ImageTooLarge(
            f"A PNG of {width} x {height} pixels must have at most {max_bytes} bytes of compressed pixels. "
            f"Received: {compressed_bytes}."
        )


def _metadata(texts: Mapping[bytes, bytes]) -> Metadata:
    exif = texts.get(_EXIF) or _text(texts.get(_EXIF_TEXT, b"")) or _exif_of_profile(texts.get(_PROFILE, b""))
    return Metadata(exif, _text(texts.get(_XMP, b"")))


def _exif_of_profile(chunk: bytes) -> bytes:
    """ImageMagick writes an empty line, a name, a length, and lines of hexadecimal digits."""
    lines = _text(chunk).split(b"\n", 3)
    with suppress(ValueError, IndexError):
        return bytes.fromhex(lines[3].decode("latin-1"))
    return b""


def _text(chunk: bytes) -> bytes:
    """The text of a chunk that begins with its kind; cut where it is too long, empty where it is broken."""
    kind, (_, _, text) = chunk[:4], chunk[4:].partition(b"\0")
    compressed, text = {
        b"zTXt": (True, text[1:]),
        b"iTXt": (text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]),
    }.get(kind, (False, text))
    if not compressed:
        return text
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(text[:MAX_COMPRESSED_TEXT_BYTES], MAX_TEXT_BYTES)
    return b""
