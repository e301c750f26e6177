"""kornia_rs decodes to the same pixels as Pillow, and Pillow decodes what it does not."""

import io
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.errors import ImageTooLarge
from model.formats import fast, png
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits

LIMITS = ImageLimits()
RANDOM = np.random.default_rng(0)
WAVES = (127 + 60 * np.sin(np.arange(61 * 83 * 4) / 7) + RANDOM.integers(0, 60, 61 * 83 * 4)).astype(np.uint8)


def pixels_of(mode: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if mode == "I;16":
        return (WAVES[: 61 * 83].astype(np.uint16) * 257).reshape(61, 83)
    channels = len(mode)
    shape = (61, 83, channels) if channels > 1 else (61, 83)
    return WAVES[: 61 * 83 * channels].reshape(shape)


def png_of(pixels: NDArray[np.generic], **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def jpeg_of(pixels: NDArray[np.uint8], **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(*data: bytes, width: int = 83, height: int = 61, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    chunks = [chunk(b"IHDR", header), *(chunk(b"IDAT", part) for part in data), chunk(b"IEND", b"")]
    return png.SIGNATURE + b"".join(chunks)


def without_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_KORNIA", None)


def decode_plain(plain: png.PlainPng) -> fast.Pixels | None:
    return fast.decode_png(plain.file, plain.size, plain.mode, is_16_bit=plain.is_16_bit)


def spec_of(mode: str, height: int = 61, width: int = 83) -> ImageSpec:
    return ImageSpec(height=height, width=width, channels=1 if mode in {"L", "I;16"} else 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_plain_png_decodes_as_by_pillow(mode: str, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = png_of(pixels_of(mode), compress_level=level)
    plain = png.find_plain(data)
    assert plain is not None
    decoded = decode_plain(plain)
    assert decoded is not None
    np.testing.assert_array_equal(decoded, pixels_of(mode))
    specs = [spec_of(mode), spec_of(mode, 40, 50), spec_of(mode, 61, 50)]
    fast_pixels = [decode(data, spec, LIMITS) for spec in specs]
    without_kornia(monkeypatch)
    for spec, pixels in zip(specs, fast_pixels, strict=True):
        np.testing.assert_array_equal(pixels, decode(data, spec, LIMITS))


@pytest.mark.parametrize("filter_type", range(5))
def test_each_filter(filter_type: int) -> None:
    rows = b"".join(bytes([filter_type]) + bytes(row) for row in pixels_of("L"))
    data = grey_png(zlib.compress(rows))
    plain = png.find_plain(data)
    assert plain is not None
    decoded = decode_plain(plain)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image))


def test_chunks_of_any_length() -> None:
    compressed = zlib.compress(b"".join(b"\0" + bytes(row) for row in pixels_of("L")))
    parts = [compressed[start : start + 7] for start in range(0, len(compressed), 7)]
    plain = png.find_plain(grey_png(b"", *parts, b""))
    assert plain is not None
    np.testing.assert_array_equal(decode_plain(plain), pixels_of("L"))


@pytest.mark.parametrize("bits", [slice(-6, -5), slice(50, 51)], ids=["checksum", "pixels"])
def test_broken_png_is_left_to_pillow(bits: slice) -> None:
    data = bytearray(png_of(pixels_of("L")))
    position = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 :][:4])[0]
    place = position if bits.start < 0 else data.index(b"IDAT") + bits.start
    data[place] ^= 1
    plain = png.find_plain(bytes(data))
    assert plain is not None
    assert decode_plain(plain) is None


def test_wrong_checksum_of_a_chunk_is_accepted_as_before() -> None:
    data = bytearray(png_of(pixels_of("L")))
    length = struct.unpack(">I", data[data.index(b"IDAT") - 4 :][:4])[0]
    data[data.index(b"IDAT") + 4 + length] ^= 1
    np.testing.assert_array_equal(decode(bytes(data), spec_of("L"), LIMITS)[:, :, 0], pixels_of("L"))


@pytest.mark.parametrize(
    "data",
    [
        png_of(pixels_of("L"), transparency=3),
        png_of(pixels_of("L") > 127),
        png_of(pixels_of("RGBA")[..., :2]),
        jpeg_of(pixels_of("L")),
        b"",
    ],
    ids=["transparent colour", "1 bit", "grey and alpha", "JPEG", "empty"],
)
def test_other_files_are_not_plain(data: bytes) -> None:
    assert png.find_plain(data) is None


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 30}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"optimize": True}],
    ids=str,
)
def test_jpeg_decodes_as_by_pillow(
    mode: str, channels: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg_of(pixels_of(mode), **options)
    spec = ImageSpec(height=61, width=83, channels=channels)
    used = []
    decode_jpeg = fast.decode_jpeg

    def note(*arguments: object) -> fast.Pixels | None:
        used.append(decode_jpeg(*arguments))
        return used[-1]

    monkeypatch.setattr(fast, "decode_jpeg", note)
    fast_pixels = decode(data, spec, LIMITS)
    assert used[0] is not None
    smaller = spec.model_copy(update={"height": 40})
    smaller_pixels = decode(data, smaller, LIMITS)
    without_kornia(monkeypatch)
    np.testing.assert_array_equal(fast_pixels, decode(data, spec, LIMITS))
    np.testing.assert_array_equal(smaller_pixels, decode(data, smaller, LIMITS))


@pytest.mark.parametrize("channels", [1, 3])
def test_orientation_is_applied(channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.rot90(pixels_of("L"), -1)
    spec = ImageSpec(height=83, width=61, channels=channels)
    np.testing.assert_array_equal(decode(png_of(pixels_of("L"), exif=exif), spec, LIMITS)[:, :, 0], upright)


def test_size_is_checked_before_decoding() -> None:
    with pytest.raises(ImageTooLarge, match="MAX_IMAGE_PIXELS"):
        decode(grey_png(b"\0", width=5000, height=5000), spec_of("L"), LIMITS)


def decode_with_little_memory(path: str) -> None:
    """Run in a process of its own; writes the error's code."""
    data = Path(path).read_bytes()
    decode(png_of(pixels_of("L")), spec_of("L"), LIMITS)  # imports what decoding needs
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 8 * 1024 * 1024,) * 2)
    try:
        decode(data, spec_of("L"), LIMITS)
    except ImageTooLarge as error:
        sys.stdout.write(error.code)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory a process has")
def test_lack_of_memory_is_an_error_and_no_abort(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_of(np.zeros((3000, 4000), np.uint8)))
    code = f"from {__name__} import decode_with_little_memory as run; run({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "image_too_large"
