"""Every supported format, mode and special case must decode to the pixels that viewers show."""

import io
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError

from model.errors import ImageTooLarge, InputError
from model.image import ImageSpec, decode, decode_sized, encode_png
from model.image_limits import ImageLimits
from tests.model.pictures import Pixels, encode, encode_array, noise, tiff

# Pillow only warns of broken metadata. As an error, the warning would hide the real result of decoding.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

HEIGHT, WIDTH = 6, 8
LIMITS = ImageLimits()
RGB = noise(HEIGHT, WIDTH)
GREY = noise(HEIGHT, WIDTH, channels=None, seed=1)
BILEVEL = GREY > 127
RAMP_16 = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
RAMP_8 = np.rint(RAMP_16 / 257).astype(np.uint8)
ALPHA = np.tile(np.array([0, 85, 170, 255], dtype=np.uint8), (HEIGHT, WIDTH // 4))

LOSSLESS = {
    "bmp": ("BMP", {}),
    "png": ("PNG", {}),
    "tiff-raw": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "tiff-packbits": ("TIFF", {"compression": "packbits"}),
    "webp-lossless": ("WEBP", {"lossless": True, "exact": True}),
}
LOSSY = {
    "jpeg": ("JPEG", {"quality": 95}),
    "jpeg-progressive": ("JPEG", {"quality": 95, "progressive": True}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg", "quality": 95}),
    "webp": ("WEBP", {"quality": 95}),
}
every_lossless = pytest.mark.parametrize(
    ("file_format", "options"), list(LOSSLESS.values()), ids=list(LOSSLESS)
)


def spec_of(pixels: NDArray[np.generic], channels: int = 3, resample: str = "bilinear") -> ImageSpec:
    height, width = pixels.shape[:2]
    return ImageSpec(height=height, width=width, channels=channels, resample=resample)


def decode_rgb(data: bytes, spec: ImageSpec | None = None) -> Pixels:
    return decode(data, spec or spec_of(RGB), LIMITS)


def as_rgb(grey: Pixels) -> Pixels:
    return np.stack([grey] * 3, axis=2)


def on_white(colour: Pixels, alpha: Pixels) -> NDArray[np.float64]:
    opacity = (alpha / 255.0)[..., np.newaxis]
    return colour * opacity + 255 * (1 - opacity)


def assert_close(actual: Pixels, expected: NDArray[np.generic], tolerance: int) -> None:
    assert np.abs(actual.astype(float) - expected.astype(float)).max() <= tolerance


def code_of(data: bytes, spec: ImageSpec | None = None) -> str:
    """Error code of bytes that must be refused, with a message that reveals no internals."""
    with pytest.raises(InputError) as caught:
        decode_rgb(data, spec)
    message = str(caught.value)
    assert re.fullmatch(r"[A-Z][^\n]{10,200}\.", message)
    assert not re.search(r"[/\\]|\.py|0x|object at|BytesIO", message)
    assert not caught.value.retryable
    return caught.value.code


class TestFormatsAndModes:
    @every_lossless
    def test_colour_survives_lossless_formats(self, file_format: str, options: dict[str, str]) -> None:
        assert np.array_equal(decode_rgb(encode_array(RGB, file_format, **options)), RGB)

    @every_lossless
    def test_grey_survives_lossless_formats(self, file_format: str, options: dict[str, str]) -> None:
        data = encode_array(GREY, file_format, **options)
        assert np.array_equal(decode_rgb(data), as_rgb(GREY))
        assert np.array_equal(decode_rgb(data, spec_of(GREY, channels=1)), GREY[..., np.newaxis])

    @pytest.mark.parametrize(("file_format", "options"), list(LOSSY.values()), ids=list(LOSSY))
    def test_smooth_picture_survives_lossy_formats(self, file_format: str, options: dict[str, str]) -> None:
        y, x = np.mgrid[0:64, 0:96]
        smooth = np.stack([2 * x, 3 * y, x + y], axis=2).astype(np.uint8)
        decoded = decode_rgb(encode_array(smooth, file_format, **options), spec_of(smooth))
        assert_close(decoded, smooth, tolerance=12)

    @pytest.mark.parametrize(
        ("file_format", "options"),
        [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})],
        ids=["png", "bmp", "tiff", "tiff-group4"],
    )
    def test_bilevel_is_black_and_white(self, file_format: str, options: dict[str, str]) -> None:
        decoded = decode_rgb(encode_array(BILEVEL, file_format, **options))
        assert np.array_equal(decoded, as_rgb(BILEVEL.astype(np.uint8) * 255))

    @pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
    def test_palette_becomes_its_colours(self, file_format: str) -> None:
        palette = noise(256, 1, seed=2).reshape(256, 3)
        image = Image.fromarray(GREY)
        image.putpalette(palette.tobytes())
        assert np.array_equal(decode_rgb(encode(image, file_format)), palette[GREY])

    @pytest.mark.parametrize(
        ("ink", "colour"),
        [
            ((0, 0, 0, 0), (255, 255, 255)),
            ((0, 255, 255, 0), (255, 0, 0)),
            ((0, 0, 0, 255), (0, 0, 0)),
            ((255, 0, 0, 128), (0, 127, 127)),
        ],
        ids=["paper", "red", "black", "half-cyan"],
    )
    @pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
    def test_cmyk_becomes_rgb(
        self, file_format: str, ink: tuple[int, int, int, int], colour: tuple[int, int, int]
    ) -> None:
        data = encode(Image.new("CMYK", (WIDTH, HEIGHT), ink), file_format)
        assert_close(decode_rgb(data), np.full((HEIGHT, WIDTH, 3), colour), tolerance=3)

    def test_ycbcr_tiff_becomes_rgb(self) -> None:
        data = encode(Image.fromarray(RGB).convert("YCbCr"), "TIFF")
        assert_close(decode_rgb(data), RGB, tolerance=3)

    def test_lab_tiff_becomes_rgb(self) -> None:
        flat = [Image.new("L", (WIDTH, HEIGHT), value) for value in (255, 128, 128)]
        data = encode(Image.merge("LAB", flat), "TIFF")
        assert_close(decode_rgb(data), np.full_like(RGB, 255), tolerance=2)

    def test_colour_becomes_luminance_for_a_grey_network(self) -> None:
        decoded = decode_rgb(encode_array(RGB, "PNG"), spec_of(RGB, channels=1))
        luminance = RGB @ np.array([0.299, 0.587, 0.114])
        assert decoded.shape == (HEIGHT, WIDTH, 1)
        assert_close(decoded[..., 0], luminance, tolerance=1)

    def test_multi_picture_jpeg_is_its_first_picture(self) -> None:
        dark, light = (Image.new("RGB", (WIDTH, HEIGHT), (value,) * 3) for value in (40, 200))
        data = encode(dark, "MPO", save_all=True, append_images=[light])
        assert_close(decode_rgb(data), np.full_like(RGB, 40), tolerance=1)

    @pytest.mark.parametrize("file_format", ["TIFF", "PNG", "WEBP"])
    def test_first_of_several_frames_is_used(self, file_format: str) -> None:
        frames = [Image.fromarray(noise(HEIGHT, WIDTH, seed=seed)) for seed in (3, 4, 5)]
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 3
        assert np.array_equal(decode_rgb(data), np.asarray(frames[0]))


class TestTransparency:
    @pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_transparent_pixels_are_blended_with_white(self, file_format: str, channels: int) -> None:
        colour = RGB if channels == 3 else as_rgb(GREY)
        stored = np.dstack([RGB if channels == 3 else GREY, ALPHA])
        options = LOSSLESS["webp-lossless"][1] if file_format == "WEBP" else {}
        decoded = decode_rgb(encode_array(stored, file_format, **options))
        assert_close(decoded, on_white(colour, ALPHA), tolerance=1)
        assert (decoded[ALPHA == 0] == 255).all()
        assert np.array_equal(decoded[ALPHA == 255], colour[ALPHA == 255])

    def test_transparent_is_white_for_a_grey_network(self) -> None:
        data = encode_array(np.dstack([GREY, ALPHA]), "PNG")
        decoded = decode_rgb(data, spec_of(GREY, channels=1))
        assert (decoded[ALPHA == 0] == 255).all()
        assert np.array_equal(decoded[ALPHA == 255][..., 0], GREY[ALPHA == 255])

    @pytest.mark.parametrize("picture", [RGB, GREY], ids=["rgb", "grey"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_dropped_transparency_shows_the_hidden_colours(self, picture: Pixels, channels: int) -> None:
        """As `Image.open(file).convert("RGB")` does in most authors' code."""
        data = encode_array(np.dstack([picture, ALPHA]), "PNG")
        spec = spec_of(picture, channels=channels).model_copy(update={"alpha": "drop"})
        expected = decode_rgb(encode_array(picture, "PNG"), spec)
        assert np.array_equal(decode_rgb(data, spec), expected)

    def test_transparent_palette_entry_is_white(self) -> None:
        image = Image.fromarray(GREY)
        image.putpalette(bytes(range(256)) * 3)
        shown = np.asarray(image.convert("RGB"))
        decoded = decode_rgb(encode(image, "PNG", transparency=int(GREY[0, 0])))
        assert (decoded[GREY == GREY[0, 0]] == 255).all()
        assert np.array_equal(decoded[GREY != GREY[0, 0]], shown[GREY != GREY[0, 0]])

    def test_half_transparent_palette_entries_are_blended(self) -> None:
        image = Image.fromarray(GREY)
        image.putpalette(bytes(range(256)) * 3)
        shown = np.asarray(image.convert("RGB"))
        decoded = decode_rgb(encode(image, "PNG", transparency=bytes(range(256))))
        assert_close(decoded, on_white(shown, GREY), tolerance=1)

    @pytest.mark.parametrize("picture", [RGB, GREY, RAMP_16], ids=["rgb", "grey", "grey-16-bit"])
    def test_transparent_key_colour_is_white(self, picture: NDArray[np.generic]) -> None:
        key = tuple(map(int, picture[0, 0])) if picture.ndim == 3 else int(picture[0, 0])
        opaque = decode_rgb(encode_array(picture, "PNG"))
        decoded = decode_rgb(encode_array(picture, "PNG", transparency=key))
        assert (decoded[0, 0] == 255).all()
        assert np.array_equal(decoded[1:], opaque[1:])
        dropped = spec_of(RGB).model_copy(update={"alpha": "drop"})
        assert np.array_equal(decode_rgb(encode_array(picture, "PNG", transparency=key), dropped), opaque)


def bmp_of_masks(pixels: bytes, bits: int, masks: tuple[int, int, int, int], width: int = 8) -> bytes:
    """With the header of version 5, top-down."""
    height = len(pixels) // (width * bits // 8)
    header = struct.pack("<IiiHHIIiiII4I", 124, width, -height, 1, bits, 3, len(pixels), 0, 0, 0, 0, *masks)
    header += bytes(124 - len(header))
    return struct.pack("<2sIHHI", b"BM", 138 + len(pixels), 0, 0, 138) + header + pixels


class TestBmpAlpha:
    MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

    def bmp(self, alpha: Pixels, masks: tuple[int, int, int, int] = MASKS) -> bytes:
        return bmp_of_masks(np.dstack([RGB[..., ::-1], alpha]).tobytes(), 32, masks)

    @pytest.mark.parametrize("masks", [MASKS, (0xFF0000, 0xFF00, 0xFF, 0)])
    def test_alpha_that_is_nowhere_set_is_unused(self, masks: tuple[int, int, int, int]) -> None:
        """As browsers and Windows show it."""
        assert np.array_equal(decode_rgb(self.bmp(np.zeros_like(ALPHA), masks)), RGB)

    def test_other_alpha_is_blended_with_white(self) -> None:
        assert_close(decode_rgb(self.bmp(ALPHA)), on_white(RGB, ALPHA), tolerance=1)
        one = np.zeros_like(ALPHA)
        one[0, 0] = 255
        decoded = decode_rgb(self.bmp(one))
        assert np.array_equal(decoded[0, 0], RGB[0, 0])
        assert (decoded[1:] == 255).all()

    @pytest.mark.parametrize(("clear", "shown"), [(0xFC00, [255, 0, 0]), (0x7C00, [255, 255, 255])])
    def test_alpha_of_sixteen_bits(self, clear: int, shown: list[int]) -> None:
        """Of the second row; the first is opaque."""
        pixels = np.array([0xFC00] * 8 + [clear] * 8, "<u2").tobytes()
        data = bmp_of_masks(pixels, 16, (0x7C00, 0x3E0, 0x1F, 0x8000))
        decoded = decode_rgb(data, ImageSpec(height=2, width=8, channels=3))
        assert (decoded[0] == [255, 0, 0]).all()
        assert (decoded[1] == shown).all()

    def test_transparent_png_stays_white(self) -> None:
        data = encode_array(np.dstack([RGB, np.zeros_like(ALPHA)]), "PNG")
        assert (decode_rgb(data) == 255).all()


def bmp_of_indices(bits: int, levels: Sequence[int], indices: Pixels, header_bytes: int) -> bytes:
    """With a palette of greys, top-down."""
    height, width = indices.shape
    digits = np.unpackbits(indices[..., np.newaxis], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = np.packbits(np.pad(digits, ((0, 0), (0, -width * bits % 32))), axis=1).tobytes()
    palette = b"".join(bytes([level] * 3 + [0]) for level in levels)
    start = 14 + header_bytes + len(palette)
    header = struct.pack(
        "<IiiHH6I", header_bytes, width, -height, 1, bits, 0, len(rows), 0, 0, len(levels), 0
    )
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    return head + header.ljust(header_bytes, b"\0") + palette + rows


@pytest.mark.parametrize("header_bytes", [40, 124])
@pytest.mark.parametrize(
    "levels", [(0, 255), (255, 0), (0, 1), (0, 1, 2), range(16), range(0, 256, 17)], ids=str
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_grey_palette_of_a_bmp(bits: int, levels: Sequence[int], header_bytes: int) -> None:
    """A palette may be shorter than the bits allow, as that of a mask in 8 bits is."""
    levels = levels[: 2**bits]
    indices = np.random.default_rng(0).integers(0, len(levels), (9, 37), np.uint8)
    data = bmp_of_indices(bits, levels, indices, header_bytes)
    decoded = decode_rgb(data, ImageSpec(height=9, width=37, channels=3))
    assert (decoded == np.array(levels)[indices][..., np.newaxis]).all()


class TestJpegWithoutEnd:
    """Viewers show a file that lacks only its end marker."""

    PICTURE = noise(40, 56)
    KINDS = (
        {},
        {"progressive": True},
        {"subsampling": 2},
        {"restart_marker_rows": 1},
        {"quality": 100, "subsampling": 0},
        {"quality": 30, "progressive": True, "subsampling": 2},
    )

    # The second is decoded at 1/4 of the size, without colours.
    SPECS = (spec_of(PICTURE), ImageSpec(height=5, width=5, channels=1))

    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("options", KINDS)
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("cut", [1, 2])
    def test_picture_is_that_of_the_whole_file(
        self, mode: str, options: dict[str, Any], cut: int, spec: ImageSpec
    ) -> None:
        options = {"quality": 90} | options
        whole = encode(Image.fromarray(self.PICTURE).convert(mode), "JPEG", **options)
        assert np.array_equal(decode_rgb(whole[:-cut], spec), decode_rgb(whole, spec))

    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("options", KINDS)
    @pytest.mark.parametrize("lost_bytes", [6, 20, 300])
    @pytest.mark.parametrize("end", [b"", b"\xff"])
    def test_missing_rows_are_corrupt(
        self, options: dict[str, Any], lost_bytes: int, end: bytes, spec: ImageSpec
    ) -> None:
        whole = encode_array(self.PICTURE, "JPEG", **({"quality": 90} | options))
        assert code_of(whole[:-lost_bytes] + end, spec) == "corrupt_image"


class TestReduced:
    """A large image is first reduced, a JPEG by libjpeg; the picture stays where it was."""

    WIDTH, HEIGHT = 8 * 8 + 1, 8 * 9 + 1  # a part of the last column and row is seven eighths padding
    X, Y = np.meshgrid(np.linspace(0, 255, WIDTH), np.linspace(0, 255, HEIGHT))
    SLOPES = np.stack([X, Y, (X + Y) / 2], axis=2).astype(np.uint8)
    DETAILS = noise(96, 128)
    KINDS = (
        ("L", {}),
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("CMYK", {}),
    )

    def differences(self, data: bytes, spec: ImageSpec) -> NDArray[np.int_]:
        """From Pillow's decoding of all pixels."""
        with Image.open(io.BytesIO(data)) as image:
            whole = ImageOps.exif_transpose(image).convert("L" if spec.channels == 1 else "RGB")
        resize = {"stretch": Image.Image.resize, "crop": ImageOps.fit, "pad": ImageOps.pad}[spec.fit]
        resized = resize(whole, (spec.width, spec.height), Image.Resampling[spec.resample.upper()])
        return np.abs(np.asarray(resized).astype(int).reshape(spec.shape) - decode_rgb(data, spec))

    @pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
    @pytest.mark.parametrize("side", [4, 8, 16], ids=["eighth", "quarter", "half"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_picture_stays_in_place(self, orientation: int, side: int, fit: str) -> None:
        data = encode_array(self.SLOPES, "JPEG", quality=98, subsampling=0, exif=exif_of(orientation))
        spec = ImageSpec(height=side, width=side, channels=3, fit=fit)
        assert self.differences(data, spec).max() <= 6

    @pytest.mark.parametrize(("mode", "options"), KINDS)
    @pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_kind_and_filter(
        self, channels: int, resample: str, mode: str, options: dict[str, Any]
    ) -> None:
        data = encode(Image.fromarray(self.SLOPES).convert(mode), "JPEG", quality=98, **options)
        spec = ImageSpec(height=9, width=8, channels=channels, resample=resample)
        assert self.differences(data, spec).max() <= 4

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
    @pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
    def test_averaging_filters_see_fewer_pixels_and_nearly_the_same(self, fit: str, file_format: str) -> None:
        spec = ImageSpec(height=8, width=8, channels=3, fit=fit)
        differences = self.differences(encode_array(self.DETAILS, file_format), spec)
        assert 0 < differences.mean() < 3

    def test_nearest_reads_the_pixels_of_the_file(self) -> None:
        spec = ImageSpec(height=8, width=8, channels=3, resample="nearest")
        assert not self.differences(encode_array(self.DETAILS, "JPEG"), spec).any()

    def test_no_antialias_reads_the_pixels_of_the_file(self) -> None:
        data = encode_array(self.DETAILS, "JPEG")
        spec = ImageSpec(height=8, width=8, channels=3, resample="bilinear-no-antialias")
        with Image.open(io.BytesIO(data)) as image:
            whole = encode(image, "PNG")
        assert np.array_equal(decode_rgb(data, spec), decode_rgb(whole, spec))

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
    def test_less_than_three_times_the_size_is_not_scaled(self, file_format: str) -> None:
        spec = ImageSpec(height=49, width=33, channels=3)
        assert not self.differences(encode_array(self.DETAILS, file_format), spec).any()

    def test_grey_network_sees_the_luminance_of_the_file(self) -> None:
        """As OpenCV and TensorFlow decode to grey: it differs from Pillow's where colours are clipped."""
        data = encode_array(self.DETAILS, "JPEG", quality=98, subsampling=0)
        with Image.open(io.BytesIO(data)) as image:
            image.draft("YCbCr", None)
            luminance = np.asarray(image)[..., :1]
        assert np.array_equal(decode_rgb(data, spec_of(self.DETAILS, channels=1)), luminance)

    @pytest.mark.parametrize(("orientation", "size"), [(1, (65, 73)), (3, (65, 73)), (6, (73, 65))])
    def test_source_size_is_that_of_the_upright_file(self, orientation: int, size: tuple[int, int]) -> None:
        data = encode_array(self.SLOPES, "JPEG", exif=exif_of(orientation))
        assert decode_sized(data, ImageSpec(height=4, width=4, channels=1), LIMITS).source_size == size

    def test_limits_apply_to_the_size_of_the_file(self) -> None:
        data = encode_array(self.SLOPES, "JPEG")
        with pytest.raises(ImageTooLarge):
            decode(data, ImageSpec(height=4, width=4, channels=1), ImageLimits(max_image_pixels=65 * 73 - 1))


class TestDeepPixels:
    @pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled_and_not_clipped(self, file_format: str) -> None:
        decoded = decode_rgb(encode_array(RAMP_16, file_format))
        assert len(np.unique(decoded)) == RAMP_16.size
        assert np.array_equal(decoded, as_rgb(RAMP_8))

    def test_big_endian_sixteen_bit_tiff_is_scaled(self) -> None:
        image = Image.frombytes("I;16B", (WIDTH, HEIGHT), RAMP_16.astype(">u2").tobytes())
        data = encode(image, "TIFF")
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.mode == "I;16B"
        assert np.array_equal(decode_rgb(data), as_rgb(RAMP_8))

    def test_sixteen_bits_reach_a_grey_network(self) -> None:
        decoded = decode_rgb(encode_array(RAMP_16, "PNG"), spec_of(RAMP_16, channels=1))
        assert np.array_equal(decoded[..., 0], RAMP_8)

    def test_dim_sixteen_bit_picture_stays_dim(self) -> None:
        """The format states its white level, so a dark photograph must not be brightened."""
        decoded = decode_rgb(encode_array(RAMP_16 // 16, "PNG"))
        assert np.array_equal(decoded, as_rgb(np.rint(RAMP_16 // 16 / 257).astype(np.uint8)))

    @pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
    def test_float_range_is_found(self, white: float) -> None:
        values = (RAMP_16 / 65535 * white).astype(np.float32)
        assert_close(decode_rgb(encode_array(values, "TIFF")), as_rgb(RAMP_8), tolerance=1)

    @pytest.mark.parametrize("white", [255, 65535])
    def test_integer_range_is_found(self, white: int) -> None:
        values = np.rint(RAMP_16 / 65535 * white).astype(np.int32)
        assert_close(decode_rgb(encode_array(values, "TIFF")), as_rgb(RAMP_8), tolerance=1)

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    @pytest.mark.parametrize(("black", "times"), [(5000, 3), (65535, 1)], ids=["above", "below-zero"])
    def test_unusual_range_is_stretched(self, dtype: type, black: int, times: int) -> None:
        values = (RAMP_16.astype(dtype) - black) * times
        assert_close(decode_rgb(encode_array(values, "TIFF")), as_rgb(RAMP_8), tolerance=1)

    @pytest.mark.parametrize(("low", "high"), [(-0.2, 0.3), (-1e-6, 0.0), (-3e38, 3e38)])
    def test_any_float_range_below_zero_is_stretched(self, low: float, high: float) -> None:
        values = (low + RAMP_16 / 65535 * (high - low)).astype(np.float32)
        assert_close(decode_rgb(encode_array(values, "TIFF")), as_rgb(RAMP_8), tolerance=1)

    @pytest.mark.parametrize("value", [-5.0, 70000.0, -1e30])
    def test_blank_picture_of_unusual_range_decodes_flat(self, value: float) -> None:
        decoded = decode_rgb(encode_array(np.full((HEIGHT, WIDTH), value, np.float32), "TIFF"))
        assert len(np.unique(decoded)) == 1

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_float_that_is_not_finite_is_refused(self, value: float) -> None:
        values = np.zeros((HEIGHT, WIDTH), np.float32)
        values[2, 3] = value
        data = encode_array(values, "TIFF")
        assert code_of(data) == "corrupt_image"
        with pytest.raises(InputError, match="must be finite"):
            decode_rgb(data)


def stored_for(orientation: int, upright: Pixels) -> Pixels:
    """The pixels that a camera stores under an EXIF orientation, so that viewers show `upright`."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class TestExif:
    QUADRANTS = np.kron(
        np.array([[[10, 20, 30], [90, 60, 70]], [[130, 200, 120], [240, 170, 210]]]),
        np.ones((16, 32, 1)),
    ).astype(np.uint8)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_rotated_jpeg_is_turned_upright(self, orientation: int) -> None:
        stored = stored_for(orientation, self.QUADRANTS)
        data = encode_array(stored, "JPEG", quality=95, subsampling=0, exif=exif_of(orientation))
        assert_close(decode_rgb(data, spec_of(self.QUADRANTS)), self.QUADRANTS, tolerance=2)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
    def test_rotation_is_applied_once_in_other_formats(self, file_format: str, orientation: int) -> None:
        options = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}[file_format]
        data = encode_array(stored_for(orientation, RGB), file_format, exif=exif_of(orientation), **options)
        assert np.array_equal(decode_rgb(data), RGB)

    @pytest.mark.parametrize(
        "garbage",
        [
            b"Exif\0\0garbage",
            b"Exif\0\0MM\0*\xff\xff\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
            b"Exif\0\0",
        ],
    )
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
    def test_garbage_exif_is_ignored(self, file_format: str, garbage: bytes) -> None:
        plain = decode_rgb(encode_array(RGB, file_format))
        assert np.array_equal(decode_rgb(encode_array(RGB, file_format, exif=garbage)), plain)

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_impossible_orientation_is_ignored(self, orientation: int) -> None:
        data = encode_array(RGB, "PNG", exif=exif_of(orientation))
        assert np.array_equal(decode_rgb(data), RGB)


class TestSize:
    @pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_other_sizes_are_stretched_with_the_filter_of_the_spec(
        self, resample: str, channels: int
    ) -> None:
        picture = noise(20, 31, channels=None if channels == 1 else 3)
        resized = Image.fromarray(picture).resize((13, 9), Image.Resampling[resample.upper()])
        spec = ImageSpec(height=9, width=13, channels=channels, resample=resample)
        decoded = decode_rgb(encode_array(picture, "PNG"), spec)
        assert np.array_equal(decoded, np.asarray(resized).reshape(9, 13, channels))

    def test_filters_differ(self) -> None:
        data = encode_array(noise(20, 31), "PNG")
        decoded = {
            decode_rgb(data, spec_of(RGB, resample=resample)).tobytes()
            for resample in ("nearest", "bilinear", "bicubic", "lanczos")
        }
        assert len(decoded) == 4

    def test_bilinear_is_the_default(self) -> None:
        assert ImageSpec(height=1, width=1, channels=3).resample == "bilinear"

    @pytest.mark.parametrize(
        "fault",
        [{"height": 0}, {"width": -1}, {"channels": 2}, {"resample": "area"}, {"colour": "red"}],
    )
    def test_impossible_spec_is_refused(self, fault: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            ImageSpec(**{"height": 4, "width": 4, "channels": 3, **fault})


class TestRefusals:
    @pytest.mark.parametrize(
        "file_format",
        ["GIF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "AVIF", "EPS", "PDF", "DIB", "ICNS"],
    )
    def test_other_image_formats_are_unsupported(self, file_format: str) -> None:
        data = encode(Image.new("RGB", (16, 16), (1, 2, 3)), file_format)
        assert code_of(data) == "unsupported_format"

    @pytest.mark.parametrize(
        "data",
        [
            b"just some text, no picture",
            b"<html><body>404</body></html>",
            b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            b"8BPS\0\1" + bytes(60),
            b"\0",
            bytes(100),
            noise(1, 4096, channels=None).tobytes(),
        ],
        ids=["text", "html", "svg", "psd", "one-byte", "zeros", "random"],
    )
    def test_other_content_is_unsupported(self, data: bytes) -> None:
        assert code_of(data) == "unsupported_format"

    @pytest.mark.parametrize(
        ("brand", "name"),
        [(b"heic", "HEIC"), (b"heix", "HEIC"), (b"mif1", "HEIC"), (b"avif", "AVIF"), (b"avis", "AVIF")],
    )
    def test_picture_of_a_phone_is_named_with_a_way_to_convert_it(self, brand: bytes, name: str) -> None:
        data = b"\0\0\0\x18ftyp" + brand + bytes(100)
        assert code_of(data) == "unsupported_format"
        with pytest.raises(InputError, match=rf"magick FILE a\.png\)\. Received: {name}\."):
            decode_rgb(data)

    @pytest.mark.parametrize(
        ("frame", "named"), [(0xC3, "lossless"), (0xC5, "hierarchical"), (0xCF, "hierarchical")]
    )
    def test_unusual_jpeg_is_named(self, frame: int, named: str) -> None:
        data = bytearray(encode_array(RGB, "JPEG"))
        data[data.index(b"\xff\xc0") + 1] = frame
        assert code_of(bytes(data)) == "unsupported_format"
        with pytest.raises(InputError, match=named):
            decode_rgb(bytes(data))

    @pytest.mark.parametrize(("offset", "value", "named"), [(4, 12, "12 bits"), (9, 2, "2 components")])
    def test_jpeg_of_other_samples_is_named(self, offset: int, value: int, named: str) -> None:
        data = bytearray(encode_array(RGB, "JPEG"))
        data[data.index(b"\xff\xc0") + offset] = value
        assert code_of(bytes(data)) == "unsupported_format"
        with pytest.raises(InputError, match=named):
            decode_rgb(bytes(data))

    @pytest.mark.parametrize("masks", [(0xF00, 0xF0, 0xF, 0xF000), (0x3FF00000, 0xFFC00, 0x3FF, 0)])
    def test_unusual_masks_of_a_bmp_are_named(self, masks: tuple[int, int, int, int]) -> None:
        bits = 16 if max(masks) < 2**16 else 32
        assert code_of(bmp_of_masks(bytes(8 * bits), bits, masks)) == "unsupported_format"

    def test_empty_file_is_corrupt(self) -> None:
        assert code_of(b"") == "corrupt_image"

    @pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
    @pytest.mark.parametrize(
        ("file_format", "options"),
        [*LOSSLESS.values(), LOSSY["jpeg"], LOSSY["jpeg-progressive"]],
        ids=[*LOSSLESS, "jpeg", "jpeg-progressive"],
    )
    def test_truncated_file_is_corrupt(self, file_format: str, options: dict[str, str], kept: float) -> None:
        data = encode_array(noise(16, 16), file_format, **options)
        assert code_of(data[: int(len(data) * kept)]) == "corrupt_image"

    def test_broken_compressed_pixels_are_corrupt(self) -> None:
        tags = [(256, WIDTH), (257, HEIGHT), (259, 8), (278, HEIGHT)]
        assert code_of(tiff(tags, b"no zlib stream")) == "corrupt_image"

    def test_tag_of_a_wrong_type_is_corrupt(self) -> None:
        """Pillow raises TypeError for a width that is no integer."""
        data = bytearray(tiff([(256, WIDTH), (257, HEIGHT), (259, 1)], bytes(HEIGHT * WIDTH)))
        struct.pack_into("<H", data, 12, 5)  # RATIONAL
        assert code_of(bytes(data)) == "corrupt_image"

    def test_corrupt_image_names_its_length_and_no_content(self) -> None:
        secret = b"SECRET-TOKEN"
        data = encode_array(RGB, "PNG")[:60] + secret
        with pytest.raises(InputError) as caught:
            decode_rgb(data)
        assert "SECRET" not in str(caught.value)
        assert str(len(data)) in str(caught.value)


ENCODINGS = [
    encode_array(RGB, "BMP"),
    encode(Image.fromarray(RGB).quantize(16), "BMP"),
    encode_array(RGB, "PNG"),
    encode_array(RAMP_16, "PNG"),
    encode_array(np.dstack([RGB, ALPHA]), "PNG"),
    encode(Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())]),
    encode_array(RGB, "JPEG", exif=exif_of(6)),
    encode_array(RGB, "JPEG", progressive=True),
    encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    encode_array(RGB, "TIFF", exif=exif_of(8)),
    encode_array(RGB, "TIFF", compression="tiff_lzw"),
    encode_array(BILEVEL, "TIFF", compression="group4"),
    encode_array(RAMP_16.astype(np.float32), "TIFF"),
    encode_array(RGB, "WEBP"),
    encode_array(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exif=exif_of(3)),
]
SMALL = ImageLimits(max_image_bytes=100_000, max_image_pixels=250_000, max_image_side_pixels=5_000)


@st.composite
def broken_files(draw: st.DrawFn) -> bytes:
    """A valid file with a few bytes replaced, inserted or removed, which may be truncated as well."""
    data = bytearray(draw(st.sampled_from(ENCODINGS)))
    for _ in range(draw(st.integers(0, 8))):
        # Most structure is near the beginning.
        position = draw(st.integers(0, min(200, len(data) - 1)) | st.integers(0, len(data) - 1))
        old, new = draw(st.tuples(st.integers(0, 4), st.binary(max_size=4)))
        data[position : position + old] = new
        if not data:
            break
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


class TestHostileBytes:
    @pytest.mark.slow
    @given(broken_files(), st.sampled_from([1, 3]))
    @settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
    def test_broken_file_is_decoded_or_becomes_input_error(self, data: bytes, channels: int) -> None:
        spec = ImageSpec(height=5, width=7, channels=channels)
        try:
            pixels = decode(data, spec, SMALL)
        except InputError as error:
            assert error.code in {"unsupported_format", "corrupt_image", "image_too_large"}
            assert os.sep not in str(error)
        else:
            assert pixels.shape == spec.shape
            assert pixels.dtype == np.uint8

    @given(st.binary(max_size=300))
    @settings(max_examples=200)
    def test_random_bytes_become_input_error(self, data: bytes) -> None:
        with pytest.raises(InputError):
            decode(data, ImageSpec(height=5, width=7, channels=3), SMALL)


class TestEncodePng:
    @pytest.mark.parametrize("picture", [RGB, GREY[..., np.newaxis]], ids=["colour", "grey"])
    def test_encoded_pixels_round_trip(self, picture: Pixels) -> None:
        data = encode_png(picture)
        assert data.startswith(b"\x89PNG")
        assert np.array_equal(decode_rgb(data, spec_of(picture, picture.shape[2])), picture)

    def test_plane_without_a_channel_axis_is_grey(self) -> None:
        assert encode_png(GREY) == encode_png(GREY[..., np.newaxis])


@pytest.mark.parametrize("size", [(20, 30), (45, 31)])
@pytest.mark.parametrize("mode", ["L", "1", "I;16", "RGB", "LA"])
def test_grey_image_has_three_equal_channels(mode: str, size: tuple[int, int]) -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
    file = io.BytesIO()
    (Image.fromarray(np.asarray(grey).astype(np.uint16)) if mode == "I;16" else grey.convert(mode)).save(
        file, "PNG"
    )
    decoded = {
        channels: decode(file.getvalue(), ImageSpec(height=20, width=30, channels=channels), ImageLimits())
        for channels in (1, 3)
    }
    assert decoded[3].shape == (20, 30, 3)
    assert np.array_equal(decoded[3], np.repeat(decoded[1], 3, axis=2))


class TestFit:
    PICTURE = np.random.default_rng(3).integers(0, 256, (40, 70, 3), dtype=np.uint8)

    def decode_as(self, **given: Any) -> np.ndarray:
        spec = ImageSpec(height=16, width=24, channels=3, **given)
        return decode(encode_png(self.PICTURE), spec, ImageLimits())

    @pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
    def test_crop_and_pad_are_those_of_pillow(self, resample: str) -> None:
        image, method = Image.fromarray(self.PICTURE), Image.Resampling[resample.upper()]
        cropped = ImageOps.fit(image, (24, 16), method)
        padded = ImageOps.pad(image, (24, 16), method)
        assert np.array_equal(self.decode_as(fit="crop", resample=resample), cropped)
        assert np.array_equal(self.decode_as(fit="pad", resample=resample), padded)

    def test_bilinear_without_antialias_is_that_of_tensorflow(self) -> None:
        import tensorflow as tf  # noqa: PLC0415 - only for this test

        expected = tf.image.resize(self.PICTURE, (16, 24)).numpy()
        found = self.decode_as(resample="bilinear-no-antialias")
        assert np.abs(found - expected).max() <= 0.501

    @pytest.mark.parametrize("fit", ["crop", "pad"])
    def test_fit_without_antialias_shows_the_same_part(self, fit: str) -> None:
        smooth = np.zeros((40, 70, 3), np.uint8) + np.arange(70, dtype=np.uint8)[:, np.newaxis] * 3
        spec = ImageSpec(height=16, width=24, channels=3, fit=fit)
        plain = spec.model_copy(update={"resample": "bilinear-no-antialias"})
        data = encode_png(smooth)
        difference = decode(data, spec, ImageLimits()) - decode(data, plain, ImageLimits()).astype(int)
        assert np.abs(difference)[2:-2, 2:-2].max() <= 4

    @pytest.mark.parametrize("size", [(1, 600), (600, 1)])
    @pytest.mark.parametrize("resample", ["bilinear", "bilinear-no-antialias"])
    def test_thin_picture_is_padded_and_not_lost(self, resample: str, size: tuple[int, int]) -> None:
        spec = ImageSpec(height=16, width=24, channels=3, fit="pad", resample=resample)
        assert decode(encode(Image.new("L", size, 255), "PNG"), spec, LIMITS).any()

    @pytest.mark.parametrize(
        ("fit", "expected"), [("stretch", (300, 100)), ("crop", (150, 100)), ("pad", (300, 200))]
    )
    def test_frame_is_the_part_that_the_network_sees(self, fit: str, expected: tuple[float, float]) -> None:
        spec = ImageSpec(height=16, width=24, channels=3, fit=fit)
        assert spec.frame_size((300, 100)) == expected
