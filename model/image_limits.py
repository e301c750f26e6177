"""What an image may cost: limits checked between opening a file and decoding its pixels.

Sizes in a header are free to write and dear to honour: 534 bytes of TIFF can ask for 1.5 GB.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from model.errors import ImageTooLarge

# Pillow decodes run-length BMPs byte by byte in Python, holding the interpreter.
MAX_RLE_PIXELS = 1_000_000
# A scan costs a pass over the whole image, even when it is empty; real progressive files have about ten.
MAX_JPEG_SCANS = 100
# A tile is allocated whole, whatever part of it the image uses.
MAX_TILE_PIXELS = 4_000_000
MAX_TILE_TIMES_IMAGE = 4

_BMP_RLE = (1, 2)
_TIFF_TILE_WIDTH = 322
_TIFF_TILE_LENGTH = 323
_START_OF_SCAN = 0xDA
# The next marker that may have a length: FF, then no stuffed zero, fill byte, TEM or restart.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_IMAGE = 0xD8


class OpenedImage(Protocol):
    """What is known of an image once its header is read."""

    format: str | None
    info: dict[str | tuple[int, int], Any]

    @property
    def size(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class ImageLimits:
    """The limits an operator may set; the rest are constants of the decoders above."""

    max_image_bytes: int = 20 * 1024 * 1024
    max_image_pixels: int = 16_000_000
    max_image_side_pixels: int = 10_000

    def refuse_bytes(self, image_bytes: int) -> None:
        if image_bytes > self.max_image_bytes:
            raise ImageTooLarge(
                f"An image must have at most {self.max_image_bytes} bytes. Received: {image_bytes}."
            )


def out_of_memory() -> ImageTooLarge:
    """For an allocation that failed amid decoding."""
    return ImageTooLarge("An image must be decodable in the memory at hand.")


def refuse_costly_content(image: OpenedImage, data: bytes, limits: ImageLimits) -> None:
    """Raise ImageTooLarge when decoding the opened `image`, read from `data`, would cost too much."""
    _refuse_size(image.size, limits)
    if image.format == "BMP" and image.info.get("compression") in _BMP_RLE:
        _refuse_run_length(image.size)
    elif image.format == "TIFF":
        _refuse_tile(image.size, getattr(image, "tag_v2", {}))
    elif image.format in ("JPEG", "MPO"):
        _refuse_scans(data)


def _refuse_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if max(size) > limits.max_image_side_pixels:
        raise ImageTooLarge(
            f"An image's sides must have at most {limits.max_image_side_pixels} pixels. "
            f"Received: {width} x {height}."
        )
    if width * height > limits.max_image_pixels:
        raise ImageTooLarge(
            f"An image must have at most {limits.max_image_pixels} pixels. Received: {width} x {height}."
        )


def _refuse_run_length(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_RLE_PIXELS:
        raise ImageTooLarge(
            f"A run-length encoded BMP must have at most {MAX_RLE_PIXELS} pixels. "
            f"Received: {width} x {height}."
        )


def _refuse_tile(size: tuple[int, int], tags: Mapping[int, Any]) -> None:
    if _TIFF_TILE_WIDTH not in tags or _TIFF_TILE_LENGTH not in tags:
        return
    tile_width, tile_length = tags[_TIFF_TILE_WIDTH], tags[_TIFF_TILE_LENGTH]
    max_pixels = max(MAX_TILE_TIMES_IMAGE * size[0] * size[1], MAX_TILE_PIXELS)
    if tile_width * tile_length > max_pixels:
        raise ImageTooLarge(
            f"A tile of this TIFF must have at most {max_pixels} pixels. "
            f"Received: {tile_width} x {tile_length}."
        )


def _refuse_scans(data: bytes) -> None:
    # Counting the bytes is quick and never too low; only a suspicious file is walked.
    if data.count(bytes((0xFF, _START_OF_SCAN))) <= MAX_JPEG_SCANS:
        return
    scans = sum(marker == _START_OF_SCAN for marker in _jpeg_markers(data))
    if scans > MAX_JPEG_SCANS:
        raise ImageTooLarge(f"A JPEG must have at most {MAX_JPEG_SCANS} scans. Received: {scans}.")


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Walk the markers of a JPEG (ITU-T T.81, annex B), stepping over segments by their length."""
    position = 0
    while found := _MARKER.search(data, position):
        marker = found.group(1)[0]
        yield marker
        position = found.end()
        if marker != _START_OF_IMAGE:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
