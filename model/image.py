"""Decode image files to pixels, measure pixels, and encode them.

Training, evaluation and serving decode with the same code.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, ImagePalette, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.errors import CorruptImage, InputError, UnsupportedFormat
from model.formats import TIFF_SIGNATURES, UPRIGHT, Metadata, fast, jpeg, png, tiff
from model.image_limits import ImageLimits, out_of_memory, refuse_costly_content, strip_metadata

FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")

# Pillow's warnings quote text from the file, and the outcome states the same fault.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# ImageLimits rejects large images before they are decoded; Pillow only warns up to twice its limit.
Image.MAX_IMAGE_PIXELS = None

# First bytes of a file of each format, except WebP, whose signature is in two parts.
_JPEG_SIGNATURE = b"\xff\xd8"
_SIGNATURES = (b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF_SIGNATURES)
# TIFF 6.0, sections 8, 19 and 22.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED, _SIGNED = 0, 2, 1, 2
_COLOUR_MAP, _EXTRA_SAMPLES, _YCBCR_SUBSAMPLING, _REFERENCE_BLACK_WHITE = 320, 338, 530, 532
_YCBCR, _STRAIGHT_ALPHA, _FULL_RANGE = 6, (2,), (0, 255, 128, 255, 128, 255)
_NATIVE_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
# The smallest headers of a BMP, and with a mask of alpha; Pillow's names of indices, by their bits.
_CORE_HEADER_BYTES, _HEADER_BYTES_WITH_ALPHA, _TOP_BIT = 12, 56, 0x8000
_INDICES = {1: "P;1", 4: "P;4", 8: "P"}
# Pillow's names of grey pixels, with their bits and levels.
_GREYS: dict[str, tuple[int, Sequence[int]]] = {"1": (1, (0, 255)), "L": (8, range(256))}
_ORIENTATION_TAG = 0x0112
# Orientations (Exif 3.0) of files whose rows are columns, and whose last column or row is the first one.
_TRANSPOSED, _LAST_IS_LEFT, _LAST_IS_TOP = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
# Other formats, by their first bytes; those of ISO/IEC 23008-12 (HEIF) by their brand.
_OTHER_FORMATS = {
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "GIF": rb"GIF8",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "JPEG XR": rb"II\xbc",
    "DICOM": rb".{128}DICM",
    "PDF": rb"%PDF",
    "XML or HTML": rb"(\xef\xbb\xbf)?\s*<",
}
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Filters that average all pixels of the file. The others read single ones, as other libraries do.
_AVERAGING = ("bilinear", "bicubic", "lanczos")
REDUCE_TIMES = 3
"""An image is first reduced to 1/n of its size (a JPEG, by libjpeg, to 1/2, 1/4 or 1/8), in less time
than the filter takes, if this many times the network's size remains."""
_MOST_REDUCED = 64
"""Pillow's sums of more pixels lose a level: it would reduce white to 254."""

# White levels assumed for formats that do not state one: 0..1, 8-bit and 16-bit images.
USUAL_WHITES = (1.0, 255.0, 65535.0)
# Rows are scaled in small blocks to bound memory, and floats in float64, which no float32 range overflows.
_ROWS_AT_A_TIME = 64
ROWS_APART = 4
"""Only every n-th row is measured: all rows give nearly the same values and take several times as long."""
# The weights that Pillow converts to grey with (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WHITE = 255.0

Side = Annotated[int, Field(ge=1, le=4096)]
Fit: TypeAlias = Literal["stretch", "crop", "pad"]
Alpha: TypeAlias = Literal["white", "drop"]
_Number = TypeVar("_Number", int, float)
_Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "bilinear-no-antialias"]


class ImageSpec(BaseModel):
    """Input of the network: every image is resized to this size and converted to these channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    width: Side
    channels: Literal[1, 3]
    resample: Resample = "bilinear"
    """`bilinear-no-antialias` reads four pixels at any size, as cv2.resize and tf.image.resize do."""
    fit: Fit = "stretch"
    """For another aspect ratio: stretch the image, crop its centre, or pad it with black."""
    alpha: Alpha = "white"
    """Blend transparent pixels with white, or drop transparency, as most authors' own code does."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def frame_size(self, source_size: tuple[float, float]) -> tuple[float, float]:
        """(width, height), in pixels of the upright source, of the centred part that the network sees.

        Smaller than the source if that is cropped, larger if it is padded.
        """
        if self.fit == "stretch":
            return source_size
        choose = min if self.fit == "crop" else max
        width, height = source_size
        ratio = self.width / self.height
        return choose(width, height * ratio), choose(height, width / ratio)


class _Source(NamedTuple):
    """(width, height) of the upright source, and the box of the decoded image that shows it."""

    size: tuple[int, int]
    box: _Box


class Decoded(NamedTuple):
    """Pixels (h, w, c), uint8, as the network takes them, and the (width, height) of the upright source."""

    pixels: NDArray[np.uint8]
    source_size: tuple[int, int]


def decode(data: bytes, spec: ImageSpec, limits: ImageLimits) -> NDArray[np.uint8]:
    """Return the pixels of `decode_sized`, with the same errors."""
    return decode_sized(data, spec, limits).pixels


def decode_sized(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Decoded:
    """Decode the first frame of an image file to pixels (h, w, c), uint8, as specified by `spec`.

    Applies EXIF rotation, handles transparency, and scales 16-bit and float pixels to 8 bits.
    Raises UnsupportedFormat, CorruptImage or ImageTooLarge.
    """
    limits.refuse_bytes(len(data))
    stripped = data
    try:
        if (decoded := _decode_fast(data, spec, limits)) is not None:
            return decoded
        stripped, metadata = strip_metadata(data)
        with Image.open(io.BytesIO(stripped), formats=FORMATS) as image:
            refuse_costly_content(image, stripped, limits)
            if image.format == "JPEG":
                return _convert(*_load_jpeg(image, stripped, metadata, spec), metadata, spec)
            return _convert(_load(image, stripped), None, metadata, spec)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data, stripped) from None
    except MemoryError:
        raise out_of_memory() from None
    # Pillow raises OSError, ValueError, SyntaxError, TypeError, struct.error and more for broken files.
    except Exception as error:
        if (rule := _unsupported_kind(stripped, error)) is not None:
            raise UnsupportedFormat(rule) from None
        raise CorruptImage(
            f"An image must decode completely. Received: {len(data)} bytes "
            f"that fail with {type(error).__name__}."
        ) from error


def brightness_and_sharpness(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and variance of the Laplacian of the grey values, 0 to 1, of pixels (h, w, c).

    Sharpness is the variance of the Laplacian (J. L. Pech-Pacheco et al., Diatom autofocusing in
    brightfield microscopy, ICPR 2000): an image that is out of focus has few edges. Both are computed
    from every fourth inner row. An image narrower or lower than 3 pixels has sharpness 0.
    """
    height, width, _ = pixels.shape
    if min(height, width) < 3:
        return float(_grey(pixels).mean()) / _WHITE, 0.0
    above, inside, below = (_grey(pixels[row : height - 2 + row : ROWS_APART]) for row in range(3))
    grey = inside.astype(np.float32)
    laplacian = grey[:, 1:-1] * -4
    for neighbours in (above[:, 1:-1], below[:, 1:-1], grey[:, :-2], grey[:, 2:]):
        laplacian += neighbours
    return _mean(grey.ravel()) / _WHITE, _variance(laplacian.ravel()) / _WHITE**2


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Write pixels (h, w), (h, w, 1) or (h, w, 3), uint8, as a PNG file."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def to_pixels(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round values to pixels 0..255; values outside are clipped."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return pixels


def stretch(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a field (h, w), float32, to `size` (width, height), bilinear."""
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))


def _decode_fast(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Decoded | None:
    """None for a file that Pillow must decode."""
    if data.startswith(_JPEG_SIGNATURE):
        stripped, metadata = strip_metadata(data)
        pixels = _decode_unscaled_jpeg(stripped, metadata, spec, limits)
    elif (plain := png.find_plain(data)) is not None:
        limits.refuse_size(*plain.size)
        pixels = fast.decode_png(plain.file, plain.size, plain.mode, is_16_bit=plain.is_16_bit)
        metadata = plain.metadata
    else:
        return None
    if pixels is None:
        return None
    is_upright = metadata.orientation() == UPRIGHT
    if is_upright and pixels.dtype == np.uint8 and pixels.shape in (spec.shape, spec.shape[:2]):
        return Decoded(_with_channels(pixels, spec), (spec.width, spec.height))
    return _convert(Image.fromarray(pixels), None, metadata, spec)


def _decode_unscaled_jpeg(
    stripped: bytes, metadata: Metadata, spec: ImageSpec, limits: ImageLimits
) -> fast.Pixels | None:
    """None for other files, and where libjpeg should decode to less than the full size."""
    frame = jpeg.frame_of(stripped)
    if frame is None or not jpeg.is_usual_colour(frame):
        return None
    size = frame.width, frame.height
    limits.refuse_size(*size)
    jpeg.refuse_stripped_scans(stripped, frame.width * frame.height)
    needed = _draft_size(size, metadata.orientation(), spec)
    if needed is not None and min(size[0] // needed[0], size[1] // needed[1]) > 1:
        return None
    return fast.decode_jpeg(stripped, size, "mono" if 1 in (spec.channels, frame.components) else "rgb")


def _load(image: ImageFile.ImageFile, stripped: bytes) -> Image.Image:
    if image.format == "TIFF":
        _mend_tiff(image)
    if image.format == "BMP" and (mended := _mend_bmp(image, stripped)) is not None:
        return mended
    image.load()
    if image.format == "PNG" and _may_lack_rows(image):
        png.refuse_missing_rows(stripped)
    return image


def _load_jpeg(
    image: Image.Image, stripped: bytes, metadata: Metadata, spec: ImageSpec
) -> tuple[Image.Image, _Source]:
    source = _draft(image, metadata, spec)
    try:
        image.load()
    except OSError:
        if (whole := _with_its_end(stripped)) is None:
            raise
        image = Image.open(io.BytesIO(whole), formats=("JPEG",))
        _draft(image, metadata, spec)
        image.load()
    return image, source


def _draft(image: Image.Image, metadata: Metadata, spec: ImageSpec) -> _Source:
    """Let libjpeg skip the colours that a grey network drops, and the details that resizing averages.

    The mean difference to resizing all pixels is below 0.4 of 255, and below 1.1 for colour noise.
    """
    orientation = metadata.orientation()
    size = _turned(image.size, orientation)
    needed = _draft_size(image.size, orientation, spec)
    drafted = image.draft("L" if spec.channels == 1 else None, needed)
    # Where the file's size is no multiple of 8, the last column and row are in part padding.
    width, height = _turned(drafted[1][2:] if drafted else image.size, orientation)
    full_width, full_height = _turned(image.size, orientation)
    left = full_width - width if orientation in _LAST_IS_LEFT else 0
    top = full_height - height if orientation in _LAST_IS_TOP else 0
    return _Source(size, (left, top, left + width, top + height))


def _draft_size(stored: tuple[int, int], orientation: int, spec: ImageSpec) -> tuple[int, int] | None:
    """The least size to decode a file of the size `stored` to; None if single pixels matter."""
    if spec.resample not in _AVERAGING or not all(stored):
        return None
    width, height = _turned(stored, orientation)
    frame_width, frame_height = spec.frame_size((width, height))
    needed = (
        math.ceil(REDUCE_TIMES * spec.width * width / frame_width),
        math.ceil(REDUCE_TIMES * spec.height * height / frame_height),
    )
    return _turned(needed, orientation)


def _turned(size: tuple[_Number, _Number], orientation: int) -> tuple[_Number, _Number]:
    return size[::-1] if orientation in _TRANSPOSED else size


def _with_its_end(stripped: bytes) -> bytes | None:
    """The file with an end-of-image marker, which interrupted cameras omit; None if it lacks more.

    libjpeg fills rows that are missing, without an error. It decodes them from what follows the data, so that
    they differ between two fillers; complete rows depend on neither.
    """
    if not jpeg.has_all_scans(stripped):
        return None
    files = jpeg.with_an_end(stripped)
    images = [Image.open(io.BytesIO(file), formats=("JPEG",)) for file in files]
    first, second = (image.tobytes() for image in images)
    return files[0] if first == second else None


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows is zero, as Pillow leaves missing ones. Counting all takes longer.

    The last pass of an interlaced file sends every other row, except where there is only one.
    """
    width, height = image.size
    last = [image.crop((0, row, width, row + 1)).tobytes() for row in range(height)[-2:]]
    return height == 1 or not all(row.strip(b"\0") for row in last)


def _convert(image: Image.Image, source: _Source | None, metadata: Metadata, spec: ImageSpec) -> Decoded:
    """`source` is that of a JPEG."""
    _turn_upright(image, metadata)
    source = source or _Source(image.size, (0, 0, *image.size))
    image = _eight_bit(image, spec.alpha)
    image = _opaque(image, spec.alpha)
    if image.mode != "L":
        image = image.convert("L" if spec.channels == 1 else "RGB")
    if image.size != (spec.width, spec.height):
        image = _resize(image, source, spec)
    return Decoded(_with_channels(np.asarray(image), spec), source.size)


def _with_channels(pixels: NDArray[Any], spec: ImageSpec) -> NDArray[np.uint8]:
    """Pixels (h, w, c) from pixels (h, w), whose channels then share one buffer, or (h, w, c)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return pixels if pixels.shape[2] == spec.channels else np.broadcast_to(pixels, spec.shape)


def _resize(image: Image.Image, source: _Source, spec: ImageSpec) -> Image.Image:
    if spec.resample == "bilinear-no-antialias":
        return _resize_without_antialias(image, spec)
    size, box = (spec.width, spec.height), _centre(source.box, spec)
    if spec.fit == "pad":
        size, box = _contained(source.size, size), source.box
    gap = max(REDUCE_TIMES, max(image.size) / min(size) / _MOST_REDUCED)
    resized = image.resize(size, _RESAMPLE[spec.resample], box, reducing_gap=gap)
    return ImageOps.pad(resized, (spec.width, spec.height)) if spec.fit == "pad" else resized


def _centre(box: _Box, spec: ImageSpec) -> _Box:
    """The part of a box that the network sees, unless it is padded."""
    left, top, right, bottom = box
    width, height = spec.frame_size((right - left, bottom - top))
    left += (right - left - width) / 2
    top += (bottom - top - height) / 2
    return left, top, min(left + width, right), min(top + height, bottom)


def _contained(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The largest size within `size` of the source's aspect ratio, at least a pixel."""
    (width, height), (most_width, most_height) = source, size
    if width / height > most_width / most_height:
        return most_width, max(1, round(height / width * most_width))
    return max(1, round(width / height * most_height)), most_height


def _resize_without_antialias(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = spec.width, spec.height
    if spec.fit == "pad":
        inner = _contained(image.size, size)
        small = _sample(image, inner, (0, 0, *image.size))
        padded = Image.new(image.mode, size)
        padded.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
        return padded
    width, height = spec.frame_size(image.size)
    x0, y0 = (image.width - width) / 2, (image.height - height) / 2
    return _sample(image, size, (x0, y0, x0 + width, y0 + height))


def _sample(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """Interpolate between the four pixels nearest to each new one's centre, whatever the scale."""
    pixels = np.asarray(image)
    rows, row_shares = _neighbours(box[1], box[3], size[1], image.height)
    columns, column_shares = _neighbours(box[0], box[2], size[0], image.width)
    channels = (1,) * (pixels.ndim - 2)
    down, across = row_shares.reshape(2, -1, 1, *channels), column_shares.reshape(2, 1, -1, *channels)
    lines = pixels[rows[0]] * down[0] + pixels[rows[1]] * down[1]
    values = lines[:, columns[0]] * across[0] + lines[:, columns[1]] * across[1]
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _neighbours(
    start: float, stop: float, size: int, source: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """For `size` positions between two places of a side, their two pixels (2, size) and their shares."""
    places = start + (np.arange(size) + 0.5) * (stop - start) / size - 0.5
    places = places.clip(0, source - 1)
    first = np.floor(places).astype(np.intp)
    shares = (places - first).astype(np.float32)
    return np.stack([first, np.minimum(first + 1, source - 1)]), np.stack([1 - shares, shares])


def _turn_upright(image: Image.Image, metadata: Metadata) -> None:
    if image.format == "TIFF":
        return  # Pillow has already rotated it
    if image.format == "WEBP":
        metadata = Metadata(image.info.pop("exif", b""), image.info.pop("xmp", b""))
    if (orientation := metadata.orientation()) != UPRIGHT:
        image.getexif()[_ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(image, in_place=True)


def _mend_tiff(image: ImageFile.ImageFile) -> None:
    """Decode correctly what Pillow misreads without an error, or raise UnsupportedFormat."""
    tags, colours = _tiff_tags(image), _tiff_tags(image).get(_COLOUR_MAP, ())
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        # Some programs write 8 bits a colour, which libtiff detects alike; Pillow would divide them by 256.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    if image.tile and image.tile[0].codec_name == "libtiff" and isinstance(image.tile[0].args, tuple):
        # libtiff returns samples in the machine's byte order; Pillow takes account of it for unsigned ones.
        mode, *others = image.tile[0].args
        image.tile = [image.tile[0]._replace(args=(_NATIVE_MODES.get(mode, mode), *others))]
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if image.mode in ("P", "PA") and len(colours) != 3 * 2**bits:
        raise CorruptImage(
            f"The colour map of a TIFF must have {3 * 2**bits} values. Received: {len(colours)}."
        )
    codec, is_ycbcr = image.info.get("compression"), tags.get(_PHOTOMETRIC_INTERPRETATION) == _YCBCR
    extra, mode = tags.get(_EXTRA_SAMPLES, _STRAIGHT_ALPHA), image.mode
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES and (
        bits > 8
        or mode in ("LA", "La", "PA")
        or (codec == "raw" and extra != _STRAIGHT_ALPHA)
        or (codec == "jpeg" and is_ycbcr)
    ):
        raise UnsupportedFormat(
            "A TIFF of separate planes must be RGB, CMYK or YCbCr with 8 bits per sample. "
            f"Received: {mode}, {bits} bits, {'extra samples' if _EXTRA_SAMPLES in tags else codec}."
        )
    subsampling, levels = tags.get(_YCBCR_SUBSAMPLING, (1, 1)), tags.get(_REFERENCE_BLACK_WHITE, _FULL_RANGE)
    if is_ycbcr and codec == "raw" and (subsampling != (1, 1) or levels != _FULL_RANGE):
        raise UnsupportedFormat(
            "A TIFF in YCbCr with subsampling or reference levels must be compressed. "
            f"Received: subsampling {subsampling}, levels {levels}, uncompressed."
        )
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and bits == 8:
        raise UnsupportedFormat("A TIFF with 8 bits per sample must be unsigned. Received: signed samples.")


def _mend_bmp(image: ImageFile.ImageFile, data: bytes) -> Image.Image | None:
    """Decode what Pillow misreads; None for other files.

    It takes indices of any depth for pixels of 1 bit if the palette is black and white, and for pixels of 8
    bits if the palette is the first greys. It ignores the alpha of 16 bits.
    """
    codec, _, offset, args = image.tile[0]
    if codec != "raw" or not isinstance(args, tuple):
        return None
    is_core = data[14] == _CORE_HEADER_BYTES
    bits = int.from_bytes(data[24:26] if is_core else data[28:30], "little")
    alpha = int.from_bytes(data[66:70], "little") if data[14] >= _HEADER_BYTES_WITH_ALPHA else 0
    raw_mode, *layout = args
    if raw_mode in _GREYS and bits != _GREYS[raw_mode][0]:
        mended = Image.frombytes("P", image.size, data[offset:], "raw", _INDICES[bits], *layout)
        mended.putpalette(bytes(level for level in _GREYS[raw_mode][1] for _ in "RGB"))
    elif raw_mode == "BGR;15" and alpha == _TOP_BIT:
        mended = Image.frombytes("RGBA", image.size, data[offset:], "raw", "BGRA;15", *layout)
    else:
        return None
    mended.format = image.format
    return mended


def _eight_bit(image: Image.Image, alpha: Alpha) -> Image.Image:
    """Scale deeper pixels to 0..255; Pillow's own conversion would clip them."""
    if not image.mode.startswith(("I", "F")):
        return image
    tags, values = _tiff_tags(image), np.asarray(image)
    if image.mode.startswith("I;16"):
        pixels = scale_integers(values, bits=tags.get(_BITS_PER_SAMPLE, (16,))[0])
    elif image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)) == (_UNSIGNED,):
        pixels = scale_to_fit(values.view(np.uint32))  # Pillow reads 32-bit samples as signed
    else:
        pixels = scale_to_fit(values)
    if tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    # A PNG's transparent colour, at the file's bit depth.
    if alpha == "white" and (transparent := image.info.get("transparency")) is not None:
        pixels[values == transparent] = 255
    return Image.fromarray(pixels)


def scale_integers(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Scale unsigned pixels (h, w) of `bits` bits, 9 to 16, so that full white becomes 255."""
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        rows = values[start : start + _ROWS_AT_A_TIME]
        scaled[start : start + _ROWS_AT_A_TIME] = _scale_16(rows) if bits == 16 else _scale(rows, bits)
    return scaled


def _scale_16(values: NDArray[np.uint16]) -> NDArray[np.integer]:
    """As _scale, in a quarter of the time, as no type is wider: from 65408 on, the sum begins at 0 again."""
    return ((values + np.uint16(128)) // np.uint16(257)).astype(np.uint8) - (values > 65407)


def _scale(values: NDArray[np.uint16], bits: int) -> NDArray[np.integer]:
    white = 2**bits - 1
    # 510 is even and white odd: nothing is halfway.
    scaled: NDArray[np.uint32] = (values * np.uint32(510) + white) // (2 * white)
    return np.minimum(scaled, 255)


def scale_to_fit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale pixels (h, w) of a format that does not state its white level.

    White is the first of USUAL_WHITES that no pixel exceeds. If a pixel exceeds all of them or is negative,
    the range from minimum to maximum is stretched to 0..255. Raises CorruptImage for NaN or infinity.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise CorruptImage("Float pixels must be finite. Received: NaN or infinity.")
    black, white = _black_and_white(low, high)
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        rows = values[start : start + _ROWS_AT_A_TIME].astype(np.float64)
        rows -= black
        rows /= white - black or 1.0
        rows *= 255.0
        scaled[start : start + _ROWS_AT_A_TIME] = np.rint(rows, out=rows)
    return scaled


def _black_and_white(low: float, high: float) -> tuple[float, float]:
    for white in USUAL_WHITES:
        if low >= 0.0 and high <= white:
            return 0.0, white
    return low, high


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _opaque(image: Image.Image, alpha: Alpha) -> Image.Image:
    """Blend transparent pixels with white, as viewers do, or drop alpha, which reveals hidden colours."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # the alpha of a BMP that is nowhere set is unused
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "LAB" else image
    if alpha == "drop":
        return image.convert("L" if image.mode in {"L", "LA"} else "RGB")
    image = image.convert("LA" if image.mode in {"L", "LA"} else "RGBA")
    backdrop = Image.new(image.mode.removesuffix("A"), image.size, "white")
    backdrop.paste(image, mask=image)
    return backdrop


def _unidentified(data: bytes, stripped: bytes) -> InputError:
    if not data:
        return CorruptImage("An image must have content. Received: 0 bytes.")
    for name, beginning in _OTHER_FORMATS.items():
        if re.match(beginning, data, re.DOTALL):
            return UnsupportedFormat(
                "An image must be BMP, PNG, JPEG, TIFF or WebP; convert other formats, for example with "
                f"ImageMagick (magick FILE a.png). Received: {name}."
            )
    if (rule := _unsupported_kind(stripped)) is not None:
        return UnsupportedFormat(rule)
    if data.startswith(_SIGNATURES) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return CorruptImage(
            f"An image must be complete and have a supported pixel format. Received: {_describe(data)}."
        )
    return UnsupportedFormat(f"An image must be BMP, PNG, JPEG, TIFF or WebP. Received: {_describe(data)}.")


def _unsupported_kind(stripped: bytes, error: Exception | None = None) -> str | None:
    """The message for a file of a kind that Pillow does not decode; None for other files that fail."""
    if stripped.startswith(TIFF_SIGNATURES) and error is None and (kind := tiff.describe(stripped)):
        return (
            "A TIFF must be bilevel, grey, palette, RGB, CMYK, YCbCr or CIELAB, 8 or 16 bits (grey: 12, 32). "
            f"Received: {kind}."
        )
    if stripped.startswith(_JPEG_SIGNATURE) and (kind := jpeg.unusual_kind(stripped)):
        return f"A JPEG must be sequential or progressive with 8 bits a sample. Received: {kind}."
    if str(error).startswith("Unsupported BMP"):
        return f"A BMP must be of a kind that most programs read. Received: {error}."
    return None


def _describe(data: bytes) -> str:
    return f"{len(data)} bytes beginning {data[:8].hex(' ')}"


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(h, w), 0 to 255."""
    if pixels.shape[2] == 1 or pixels.strides[2] == 0:  # all channels are equal
        return pixels[:, :, 0]
    grey: NDArray[np.float32] = pixels @ _LUMA
    return grey


# For arrays of this size, NumPy's mean and var take several times as long.
def _mean(values: NDArray[np.float32]) -> float:
    return float(np.add.reduce(values)) / values.size


def _variance(values: NDArray[np.float32]) -> float:
    return float(values.dot(values)) / values.size - _mean(values) ** 2
