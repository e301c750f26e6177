"""Image files for the tests, generated in memory: the repository contains no pictures for them."""

import io
import struct
import zlib
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def encode_array(array: NDArray[Any], file_format: str, **options: Any) -> bytes:
    return encode(Image.fromarray(array), file_format, **options)


def noise(height: int, width: int, channels: int | None = 3, seed: int = 0) -> Pixels:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tiff(tags: list[tuple[int, int]], strip: bytes, tile: bool = False) -> bytes:
    """A little-endian 8-bit grey TIFF with one strip or tile; `tags` take precedence over the usual ones."""
    offset_tag, bytes_tag = (324, 325) if tile else (273, 279)
    given = {tag for tag, _ in tags}
    usual = [(tag, value) for tag, value in ((258, 8), (262, 1), (277, 1)) if tag not in given]
    entries = [*tags, *usual, (offset_tag, -1), (bytes_tag, len(strip))]
    strip_at = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(
        struct.pack("<HHII", tag, 4, 1, strip_at if value < 0 else value)
        for tag, value in sorted(entries, key=itemgetter(0))
    )
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return header + directory + struct.pack("<I", 0) + strip


def tiled_tiff(side: int, tile_width: int, tile_length: int, content: bytes = b"") -> bytes:
    """A deflate-compressed TIFF of side x side pixels in one tile."""
    tags = [(256, side), (257, side), (259, 8), (322, tile_width), (323, tile_length)]
    return tiff(tags, zlib.compress(content), tile=True)


def rle_bmp(width: int, height: int, value: int = 7) -> bytes:
    """A run-length encoded 8-bit BMP with a grey palette, whose pixels all have the index `value`."""
    full, rest = divmod(width, 255)
    row = bytes((255, value)) * full + (bytes((rest, value)) if rest else b"") + b"\0\0"
    content = row * height + b"\0\1"
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    pixels_at = 14 + 40 + len(palette)
    header = struct.pack("<2sIHHI", b"BM", pixels_at + len(content), 0, 0, pixels_at)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(content), 2835, 2835, 256, 0)
    return header + info + palette + content


def png_header(width: int, height: int) -> bytes:
    """A grey PNG that claims a size and contains almost no pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def jpeg_of_scans(scans: int, side: int = 64, before_repeats: bytes = b"") -> bytes:
    """A progressive JPEG whose first scan is complete and followed by empty copies of it."""
    whole = encode(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    start = whole.index(b"\xff\xda")
    header_end = start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")
    first_end = whole.index(b"\xff", header_end)
    repeated = whole[start:header_end] * (scans - 1)
    return whole[:first_end] + before_repeats + repeated + b"\xff\xd9"


def decoded_by_pillow(data: bytes) -> Pixels:
    """Pixels of the unmodified file as RGB, with its metadata applied."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


CLASSES = ("checked", "grainy", "striped")


def draw_class(class_name: str, random: np.random.Generator, side: int = 60) -> np.ndarray:
    """A texture; classes differ in structure, not in brightness."""
    y, x = np.mgrid[0:side, 0:side] + random.integers(0, 8, 2)[:, None, None]
    field = {
        "striped": np.sign(np.sin(2 * np.pi * y / 8)),
        "checked": np.sign(np.sin(2 * np.pi * y / 10) * np.sin(2 * np.pi * x / 10)),
        "grainy": random.normal(size=(side, side)),
    }[class_name]
    grey = random.uniform(90, 160) + 40 * field + random.normal(0, 5, field.shape)
    return np.clip(grey, 0, 255).astype(np.uint8)
