"""Limits on the cost of an image, checked before a file is opened and before its pixels are decoded.

A header can claim any size: a TIFF of 534 bytes can request an allocation of 1.5 GB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.errors import ImageTooLarge
from model.formats import TIFF_SIGNATURES, Metadata, jpeg, png, tiff

if TYPE_CHECKING:
    from PIL import Image  # the service's HTTP process imports this module, and no decoder

# Pillow decodes run-length BMPs byte by byte in Python and holds the GIL.
MAX_RLE_PIXELS = 1_000_000
# A run of one pixel is two bytes long, as is the end of a row; the rest is for headers and a colour profile.
RLE_BYTES_A_PIXEL = 2
SPARE_RLE_BYTES = 64 * 1024
# Decoders allocate a whole tile even if the image covers only a part of it.
MAX_TILE_PIXELS = 4_000_000
MAX_TILE_TIMES_IMAGE = 4

_BMP_RLE = (1, 2)
_TIFF_TILE_WIDTH = 322
_TIFF_TILE_LENGTH = 323
_JPEG_SIGNATURE = b"\xff\xd8\xff"


@dataclass(frozen=True)
class ImageLimits:
    """Limits that an operator can configure, by the settings that messages name; others are constants."""

    max_image_bytes: int = 20 * 1024 * 1024
    max_image_pixels: int = 16_000_000
    max_image_side_pixels: int = 10_000

    def refuse_bytes(self, image_bytes: int) -> None:
        if image_bytes > self.max_image_bytes:
            raise ImageTooLarge(
                f"An image must have at most {self.max_image_bytes} bytes (EXT_CLASSIFY_MAX_IMAGE_BYTES). "
                f"Received: {image_bytes}."
            )

    def refuse_size(self, width: int, height: int) -> None:
        if max(width, height) > self.max_image_side_pixels:
            raise ImageTooLarge(
                f"An image's sides must have at most {self.max_image_side_pixels} pixels "
                f"(EXT_CLASSIFY_MAX_IMAGE_SIDE_PIXELS). Received: {width} x {height}."
            )
        if width * height > self.max_image_pixels:
            raise ImageTooLarge(
                f"An image must have at most {self.max_image_pixels} pixels "
                f"(EXT_CLASSIFY_MAX_IMAGE_PIXELS). Received: {width} x {height}."
            )


def out_of_memory() -> ImageTooLarge:
    """Error for an allocation that failed during decoding."""
    return ImageTooLarge("An image must be decodable in the available memory.")


def strip_metadata(data: bytes) -> tuple[bytes, Metadata]:
    """Return the file without the parts that pixels do not depend on, and metadata with an orientation.

    Pillow parses metadata item by item in Python, which is slow. A broken file stays broken. A TIFF's
    orientation stays in the file, as does all metadata of a WebP, which Pillow reads in one piece. Raises
    ImageTooLarge.
    """
    if data.startswith(_JPEG_SIGNATURE):
        return jpeg.strip(data)
    if data.startswith(png.SIGNATURE):
        return png.strip(data)
    if data.startswith(TIFF_SIGNATURES):
        return tiff.strip(data), Metadata()
    return data, Metadata()


def refuse_costly_content(image: "Image.Image", data: bytes, limits: ImageLimits) -> None:
    """Raise ImageTooLarge when decoding the opened `image`, read from `data`, would cost too much."""
    limits.refuse_size(*image.size)
    if image.format == "BMP" and image.info.get("compression") in _BMP_RLE:
        _refuse_run_length(image.size, len(data))
    elif image.format == "TIFF":
        _refuse_tile(image.size, getattr(image, "tag_v2", {}))
    elif image.format == "JPEG":
        jpeg.refuse_stripped_scans(data, image.size[0] * image.size[1])


def _refuse_run_length(size: tuple[int, int], file_bytes: int) -> None:
    width, height = size
    if width * height > MAX_RLE_PIXELS:
        raise ImageTooLarge(
            f"A run-length encoded BMP must have at most {MAX_RLE_PIXELS} pixels. "
            f"Received: {width} x {height}."
        )
    max_bytes = RLE_BYTES_A_PIXEL * (width + 1) * height + SPARE_RLE_BYTES
    if file_bytes > max_bytes:
        raise ImageTooLarge(
            f"A run-length encoded BMP of {width} x {height} pixels must have at most {max_bytes} bytes. "
            f"Received: {file_bytes}."
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
