"""TIFFs of more than 8 bits, with any black, white, sign and planes in their header."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from model.errors import CorruptImage, InputError, UnsupportedFormat
from model.image import ImageSpec, decode, scale_integers, scale_to_fit
from model.image_limits import ImageLimits
from tests.model.pictures import tiff

SIDE = 16
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)  # 0..255
BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339


def decode_tiff(pixels: NDArray[np.generic], tags: Mapping[int, int]) -> NDArray[np.uint8]:
    header = {256: SIDE, 257: SIDE, COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, 278: SIDE} | dict(tags)
    data = tiff(sorted(header.items()), pixels.tobytes())
    return decode(data, ImageSpec(height=SIDE, width=SIDE, channels=1), ImageLimits())[..., 0]


@pytest.mark.parametrize("photometric", [0, 1], ids=["white-is-zero", "black-is-zero"])
@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (RAMP.astype("<u2") * 257, {BITS: 16}),
        ((RAMP / 255).astype("<f4"), {BITS: 32, SAMPLE_FORMAT: 3}),
        (RAMP.astype("<f4"), {BITS: 32, SAMPLE_FORMAT: 3}),
        (RAMP.astype("u1"), {BITS: 8}),
    ],
    ids=["uint16", "unit-float", "byte-float", "uint8"],
)
def test_ramp_is_decoded_as_viewers_show_it(
    pixels: NDArray[np.generic], tags: dict[int, int], photometric: int
) -> None:
    expected = RAMP if photometric else 255 - RAMP
    assert np.abs(decode_tiff(pixels, tags | {PHOTOMETRIC: photometric}) - expected).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "sample_format"),
    [(RAMP.astype("<i4") * 257, 2), (RAMP.astype("<u4") * (2**24 + 2**16 + 2**8 + 1), 1)],
    ids=["int32", "uint32"],
)
def test_32_bit_integers_are_decoded_or_refused(pixels: NDArray[np.generic], sample_format: int) -> None:
    tags = {BITS: 32, SAMPLE_FORMAT: sample_format}
    assert np.abs(decode_tiff(pixels, tags) - RAMP).max() <= 1
    with pytest.raises(InputError):
        decode_tiff(pixels, tags | {PHOTOMETRIC: 0})


def test_32_bits_without_a_sample_format_are_unsigned() -> None:
    """TIFF 6.0, section 19: the default."""
    pixels = RAMP.astype("<u4") * (2**24 + 2**16 + 2**8 + 1)
    assert np.abs(decode_tiff(pixels, {BITS: 32}) - RAMP).max() <= 1


def test_twelve_bits_are_scaled_to_white() -> None:
    values = np.rint(RAMP / 255 * 4095).astype(np.uint16).reshape(-1, 2)
    first, second = values[:, 0], values[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype("u1")
    assert np.abs(decode_tiff(packed, {BITS: 12}) - RAMP).max() <= 1


def test_signed_bytes_are_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="signed"):
        decode_tiff((RAMP - 128).astype("i1"), {BITS: 8, SAMPLE_FORMAT: 2})


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
def test_other_depths_are_refused(dtype: str) -> None:
    with pytest.raises(InputError):
        decode_tiff(RAMP.astype(dtype), {BITS: np.dtype(dtype).itemsize * 8, SAMPLE_FORMAT: 3})


@pytest.mark.parametrize("bits", range(9, 17))
def test_every_value_of_any_depth_is_rounded(bits: int) -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(-1, 256)
    exact = np.minimum(values * (255 / (2**bits - 1)), 255)
    assert np.abs(scale_integers(values, bits) - exact).max() < 0.5
    assert scale_integers(np.array([[0, 2**bits - 1]], np.uint16), bits).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("values", "scaled"),
    [
        ([0.0, 1.0], [0, 255]),
        ([0.0, 2.0], [0, 2]),
        ([0.0, 256.0], [0, 1]),
        ([-1.0, 1.0], [0, 255]),
        ([-0.2, 0.3], [0, 255]),
        ([-3e38, 3e38], [0, 255]),
        ([70000.0, 70000.0], [0, 0]),
    ],
)
def test_range_is_the_first_usual_white_that_fits(values: list[float], scaled: list[int]) -> None:
    assert scale_to_fit(np.array([values], np.float32)).tolist() == [scaled]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_corrupt(bad: float) -> None:
    with pytest.raises(CorruptImage, match="finite"):
        scale_to_fit(np.array([[0.0, bad, 1.0]], np.float32))
