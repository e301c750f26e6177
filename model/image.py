"""One road from bytes to pixels, the same for training, evaluation and serving."""

import io
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.deep_pixels import scale_integers, scale_to_fit
from model.errors import CorruptImage, InputError, UnsupportedFormat
from model.image_limits import ImageLimits, out_of_memory, refuse_costly_content, strip_metadata
from model.orientation import UPRIGHT, Metadata

FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")

# What Pillow warns of is a file's own text, and says nothing that the outcome does not.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# ImageLimits decides, before any pixel is decoded; Pillow's own check only warns up to twice its limit.
Image.MAX_IMAGE_PIXELS = None

# How a file of each format begins; WebP is told apart where it is looked for.
_TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_SIGNATURES = (b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_TIFF_SIGNATURES)
# TIFF 6.0, sections 8, 19 and 22.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED, _SIGNED = 0, 2, 1, 2
_ORIENTATION_TAG = 0x0112
_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


Side = Annotated[int, Field(ge=1, le=4096)]


class ImageSpec(BaseModel):
    """What the network wants: every image is stretched to this size and reduced to these channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    width: Side
    channels: Literal[1, 3]
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class Decoded(NamedTuple):
    """Pixels (h, w, c), uint8, as the network wants them, and the upright source's (width, height)."""

    pixels: NDArray[np.uint8]
    source_size: tuple[int, int]


def decode(data: bytes, spec: ImageSpec, limits: ImageLimits) -> NDArray[np.uint8]:
    """The pixels of `decode_sized`. Raises what it raises."""
    return decode_sized(data, spec, limits).pixels


def decode_sized(data: bytes, spec: ImageSpec, limits: ImageLimits) -> Decoded:
    """Decode the first frame of an image file to pixels (h, w, c), uint8, as `spec` says.

    EXIF rotation is applied, transparency is laid on white, 16-bit and float pixels are scaled to
    8 bits. Raises UnsupportedFormat, CorruptImage or ImageTooLarge.
    """
    limits.refuse_bytes(len(data))
    try:
        stripped, metadata = strip_metadata(data)
        with Image.open(io.BytesIO(stripped), formats=FORMATS) as image:
            refuse_costly_content(image, stripped, limits)
            _refuse_misread(image)
            return _to_pixels(image, metadata, spec)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data) from None
    except MemoryError:
        raise out_of_memory() from None
    # Pillow raises OSError, ValueError, SyntaxError, TypeError, struct.error and more for broken files.
    except Exception as error:
        raise CorruptImage(
            f"An image must decode completely. Received: {len(data)} bytes "
            f"that fail with {type(error).__name__}."
        ) from error


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Write pixels (h, w), (h, w, 1) or (h, w, 3), uint8, as a PNG file."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def stretch(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A field (h, w), float32, at another `size` (width, height), bilinear."""
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR))


def _to_pixels(image: Image.Image, metadata: Metadata, spec: ImageSpec) -> Decoded:
    image.load()
    _turn_upright(image, metadata)
    source_size = image.size
    image = _opaque(_eight_bit(image))
    if image.mode != "L":
        image = image.convert("L" if spec.channels == 1 else "RGB")
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), _RESAMPLE[spec.resample])
    pixels = np.asarray(image, dtype=np.uint8)
    if pixels.ndim == 2:  # grey: all channels are one, and need not be copies of it
        pixels = np.broadcast_to(pixels[:, :, np.newaxis], spec.shape)
    return Decoded(pixels, source_size)


def _turn_upright(image: Image.Image, metadata: Metadata) -> None:
    if image.format == "TIFF":
        return  # Pillow has turned it
    if image.format == "WEBP":
        metadata = Metadata(image.info.pop("exif", b""), image.info.pop("xmp", b""))
    if (orientation := metadata.orientation()) != UPRIGHT:
        image.getexif()[_ORIENTATION_TAG] = orientation
        ImageOps.exif_transpose(image, in_place=True)


def _refuse_misread(image: Image.Image) -> None:
    """Raise UnsupportedFormat for TIFFs that Pillow decodes without complaint and wrongly."""
    tags = _tiff_tags(image)
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE_PLANES and bits > 8:
        raise UnsupportedFormat(f"A TIFF of separate planes must have 8 bits a sample. Received: {bits}.")
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and bits == 8:
        raise UnsupportedFormat("A TIFF of 8 bits a sample must be unsigned. Received: signed samples.")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale deeper pixels to 0..255; Pillow's own conversion would clip them."""
    if not image.mode.startswith(("I", "F")):
        return image
    tags, values = _tiff_tags(image), np.asarray(image)
    if image.mode.startswith("I;16"):
        pixels = scale_integers(values, bits=tags.get(_BITS_PER_SAMPLE, (16,))[0])
    elif image.mode == "I" and tags.get(_SAMPLE_FORMAT) == (_UNSIGNED,):
        pixels = scale_to_fit(values.view(np.uint32))  # Pillow knows 32 bits only as signed
    else:
        pixels = scale_to_fit(values)
    if tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    pixels[values == image.info.get("transparency")] = 255  # a PNG's key colour, in its own depth
    return Image.fromarray(pixels)


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _opaque(image: Image.Image) -> Image.Image:
    """Lay transparent pixels on white, as viewers show them; dropping alpha would bare hidden colours."""
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "LAB" else image
    image = image.convert("RGBA")
    backdrop = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(backdrop, image)


def _unidentified(data: bytes) -> InputError:
    if not data:
        return CorruptImage("An image must have content. Received: 0 bytes.")
    if data.startswith(_SIGNATURES) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return CorruptImage(
            f"An image must be whole, and of pixels that this service reads. Received: {_describe(data)}."
        )
    return UnsupportedFormat(f"An image must be BMP, PNG, JPEG, TIFF or WebP. Received: {_describe(data)}.")


def _describe(data: bytes) -> str:
    return f"{len(data)} bytes beginning {data[:8].hex(' ')}"
