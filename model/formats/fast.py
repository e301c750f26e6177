"""Decoders for common PNG and JPEG files that return the same pixels as Pillow in less time: kornia_rs.

They return None for a file that they do not decode, and where kornia_rs is not installed: Pillow then decodes
the file or raises its error. Of a PNG's pixels, they verify the chunks' checksums and not the one of zlib,
which Pillow does the other way round.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray


def _import_kornia() -> Any:
    try:
        from kornia_rs import io  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        return None
    return io


# Imported before the service forks, so that its processes share the memory.
_KORNIA = _import_kornia()

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""(h, w), or (h, w, c)."""

# The decoders allocate less than this besides the pixels.
_RUST_BYTES = 4 * 1024 * 1024
_CHANNELS = {"mono": 1, "rgb": 3, "rgba": 4}


def decode_png(
    file: bytes, size: tuple[int, int], mode: Literal["mono", "rgb", "rgba"], *, is_16_bit: bool = False
) -> Pixels | None:
    """`size` (width, height) and mode must be those of the file. Raises MemoryError."""
    if _KORNIA is None:
        return None
    shape = (size[1], size[0], _CHANNELS[mode])
    if is_16_bit:
        return _decode(lambda: _KORNIA.decode_image_png_u16(file, shape[:2], mode), shape, np.uint16)
    return _decode(lambda: _KORNIA.decode_image_png_u8(file, shape[:2], mode), shape, np.uint8)


def decode_jpeg(file: bytes, size: tuple[int, int], mode: Literal["mono", "rgb"]) -> Pixels | None:
    """Pixels of a grey or YCbCr file, at its full size (width, height). Raises MemoryError."""
    if _KORNIA is None:
        return None
    shape = (size[1], size[0], _CHANNELS[mode])
    return _decode(lambda: _KORNIA.decode_image_jpegturbo(file, mode), shape, np.uint8)


def _decode(
    decode: Callable[[], Any], shape: tuple[int, int, int], sample: type[np.uint8] | type[np.uint16]
) -> Pixels | None:
    # Raises MemoryError where Rust would abort.
    np.empty(math.prod(shape) * np.dtype(sample).itemsize + _RUST_BYTES, np.uint8)
    try:
        pixels: Pixels = decode()
    except BaseException as error:
        # Its errors have no type of their own, and a panic in Rust is none of Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise
    if pixels.shape != shape:
        return None
    return pixels[:, :, 0] if shape[2] == 1 else pixels
