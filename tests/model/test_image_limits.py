"""Costly files must be refused because of their headers, exactly at the stated limits."""

import resource
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from model.errors import ImageTooLarge
from model.image import FORMATS, ImageSpec, decode
from model.image_limits import ImageLimits
from tests.model.pictures import (
    encode,
    encode_array,
    jpeg_of_scans,
    noise,
    png_header,
    rle_bmp,
    tiff,
    tiled_tiff,
)

SPEC = ImageSpec(height=4, width=4, channels=3)
DEFAULTS = ImageLimits()


def decode_small(data: bytes, limits: ImageLimits = DEFAULTS) -> np.ndarray:
    return decode(data, SPEC, limits)


@contextmanager
def refused_at_once(within_seconds: float = 1.0, within_mebibytes: int = 64) -> Iterator[None]:
    """Assert that the block raises ImageTooLarge, quickly and without memory for the pixels."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises(ImageTooLarge) as caught:
        yield
    assert time.process_time() - started < within_seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < within_mebibytes * 1024
    assert caught.value.code == "image_too_large"
    assert "at most" in str(caught.value)


def test_default_limits_are_as_documented() -> None:
    assert ImageLimits() == ImageLimits(
        max_image_bytes=20 * 1024 * 1024, max_image_pixels=16_000_000, max_image_side_pixels=10_000
    )


class TestConfigurableLimits:
    WIDTH, HEIGHT = 12, 5

    @pytest.fixture(params=FORMATS)
    def picture(self, request: pytest.FixtureRequest) -> bytes:
        return encode_array(noise(self.HEIGHT, self.WIDTH), request.param)

    @pytest.mark.parametrize("spare", [0, 1])
    def test_picture_at_or_below_every_limit_is_decoded(self, picture: bytes, spare: int) -> None:
        limits = ImageLimits(
            max_image_bytes=len(picture) + spare,
            max_image_pixels=self.WIDTH * self.HEIGHT + spare,
            max_image_side_pixels=self.WIDTH + spare,
        )
        assert decode_small(picture, limits).shape == SPEC.shape

    def test_one_byte_too_many_is_refused(self, picture: bytes) -> None:
        with pytest.raises(
            ImageTooLarge, match=rf"{len(picture) - 1} bytes .*_MAX_IMAGE_BYTES\). Received: {len(picture)}\."
        ):
            decode_small(picture, ImageLimits(max_image_bytes=len(picture) - 1))

    def test_one_pixel_too_many_is_refused(self, picture: bytes) -> None:
        with pytest.raises(ImageTooLarge, match=r"59 pixels .*_MAX_IMAGE_PIXELS\). Received: 12 x 5\."):
            decode_small(picture, ImageLimits(max_image_pixels=59))

    def test_a_side_one_pixel_too_long_is_refused(self, picture: bytes) -> None:
        with pytest.raises(
            ImageTooLarge, match=r"at most 11 pixels .*_MAX_IMAGE_SIDE_PIXELS\). Received: 12 x 5\."
        ):
            decode_small(picture, ImageLimits(max_image_side_pixels=11))

    def test_a_tall_picture_is_measured_by_its_height(self) -> None:
        with pytest.raises(ImageTooLarge, match="sides"):
            decode_small(encode_array(noise(12, 5), "PNG"), ImageLimits(max_image_side_pixels=11))

    def test_bytes_are_refused_before_the_format_is_looked_at(self) -> None:
        with pytest.raises(ImageTooLarge):
            decode_small(b"no picture", ImageLimits(max_image_bytes=9))

    def test_full_size_picture_of_sixteen_megapixels_is_decoded(self) -> None:
        picture = encode(Image.new("1", (4000, 4000), 1), "PNG")
        assert (decode_small(picture) == 255).all()
        with pytest.raises(ImageTooLarge):
            decode_small(encode(Image.new("1", (4000, 4001), 1), "PNG"))

    def test_picture_of_a_24_megapixel_camera_is_decoded_with_the_documented_value(self) -> None:
        picture = encode(Image.new("L", (6048, 4024), 70), "JPEG")
        with pytest.raises(ImageTooLarge, match=r"16000000 pixels \(EXT_CLASSIFY_MAX_IMAGE_PIXELS\)"):
            decode_small(picture)
        assert (decode_small(picture, ImageLimits(max_image_pixels=25_000_000)) == 70).all()


class TestBombs:
    @pytest.mark.parametrize("size", [(30_000, 30_000), (9_999, 9_999), (1, 80_000_000), (2**31 - 1, 1)])
    def test_png_that_claims_a_huge_size_is_refused(self, size: tuple[int, int]) -> None:
        with refused_at_once():
            decode_small(png_header(*size))

    def test_tiff_that_claims_a_huge_size_is_refused(self) -> None:
        with refused_at_once():
            decode_small(tiff([(256, 60_000), (257, 60_000), (259, 4), (278, 60_000)], b"\0"))

    def test_bilevel_bomb_is_refused(self) -> None:
        bomb = encode(Image.new("1", (9_000, 9_000)), "TIFF", compression="group4")
        assert len(bomb) < 10_000
        with refused_at_once():
            decode_small(bomb)

    def test_small_frame_on_a_huge_webp_canvas_is_refused(self) -> None:
        frames = [Image.fromarray(noise(16, 16, seed=seed)) for seed in (0, 1)]
        data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
        assert data[12:16] == b"VP8X"
        data[24:30] = (8_999).to_bytes(3, "little") * 2  # the canvas, less one
        with refused_at_once():
            decode_small(bytes(data))


class TestRunLengthBmp:
    def test_small_one_is_decoded(self) -> None:
        assert (decode_small(rle_bmp(300, 20, value=77)) == 77).all()

    def test_a_million_pixels_are_decoded_and_one_row_more_refused(self) -> None:
        assert (decode_small(rle_bmp(1000, 1000)) == 7).all()
        with refused_at_once():
            decode_small(rle_bmp(1000, 1001))

    def test_four_bit_run_length_is_limited(self) -> None:
        data = bytearray(rle_bmp(1000, 1001))
        data[28:30], data[30:34] = b"\4\0", b"\2\0\0\0"  # 4 bits a pixel, BI_RLE4
        with refused_at_once():
            decode_small(bytes(data))

    @pytest.mark.parametrize("code", [b"\1\7", b"\0\0", b"\0\2\0\0"], ids=["run", "end-of-row", "move"])
    def test_codes_without_pixels_are_limited(self, code: bytes) -> None:
        """Each code costs Pillow a step in Python; 20 MB of them cost five seconds."""
        bitmap = rle_bmp(10, 10)
        padded = bitmap[:-2] + code * 1_000_000
        with refused_at_once():
            decode_small(padded)
        with pytest.raises(ImageTooLarge, match=r"10 x 10 pixels must have at most 65756 bytes\."):
            decode_small(padded)

    @pytest.mark.slow
    def test_runs_of_one_pixel_are_decoded(self) -> None:
        bitmap = rle_bmp(1000, 1000)
        content = bitmap.index(b"\xff\7\xff\7")
        assert (decode_small(bitmap[:content] + (b"\1\7" * 1000 + b"\0\0") * 1000 + b"\0\1") == 7).all()

    def test_bmp_without_run_lengths_may_be_larger(self) -> None:
        picture = encode(Image.new("L", (1000, 1001), 9), "BMP")
        assert (decode_small(picture) == 9).all()


class TestTiffTiles:
    def test_giant_tile_for_one_pixel_is_refused(self) -> None:
        bomb = tiled_tiff(1, 40_000, 40_000)
        assert len(bomb) < 600
        with refused_at_once():
            decode_small(bomb)

    def test_four_megapixel_tile_is_decoded_and_a_wider_one_refused(self) -> None:
        white = b"\xff" * (2000 * 2000)
        assert (decode_small(tiled_tiff(1, 2000, 2000, white)) == 255).all()
        with refused_at_once():
            decode_small(tiled_tiff(1, 2016, 2000, white))

    def test_tile_of_up_to_four_times_the_image_is_decoded(self) -> None:
        """1100 x 1100 pixels allow a tile of 4.84 M."""
        white = b"\xff" * (2192 * 2192)
        assert (decode_small(tiled_tiff(1100, 2192, 2192, white)) == 255).all()
        with refused_at_once():
            decode_small(tiled_tiff(1100, 2208, 2208, white))

    def test_second_tile_size_does_not_hide_the_first(self) -> None:
        """A tag may occur twice; the check must read the first one, as libtiff does."""
        image = [(256, 1), (257, 1), (259, 8)]
        small, giant = [(322, 16), (323, 16)], [(322, 40_000), (323, 40_000)]
        content = zlib.compress(b"\xff" * 256)
        with refused_at_once():
            decode_small(tiff([*image, *giant, *small], content, tile=True))
        assert (decode_small(tiff([*image, *small, *giant], content, tile=True)) == 255).all()

    def test_strip_that_claims_more_rows_than_the_image_is_decoded(self) -> None:
        tags = [(256, 4), (257, 4), (259, 1), (278, 2**31)]
        assert (decode_small(tiff(tags, bytes([50] * 16))) == 50).all()


class TestJpegScans:
    def test_hundred_scans_are_decoded_and_one_more_refused(self) -> None:
        assert np.abs(decode_small(jpeg_of_scans(100)).astype(int) - 90).max() < 20
        with refused_at_once():
            decode_small(jpeg_of_scans(101))

    def test_scan_bomb_is_refused_at_once(self) -> None:
        bomb = jpeg_of_scans(5000, side=4000)
        assert len(bomb) < 150_000
        with refused_at_once():
            decode_small(bomb)

    @pytest.mark.parametrize("standalone", [b"\xff\x01", b"\xff\xd0", b"\xff\xff", b"\xff\x00"])
    def test_scans_behind_a_marker_without_length_are_counted(self, standalone: bytes) -> None:
        """TEM and RST have no length field: what follows TEM is the next marker, not a segment to skip."""
        with refused_at_once():
            decode_small(jpeg_of_scans(101, before_repeats=standalone))

    @pytest.mark.parametrize("side", [64, 1500])
    def test_scans_after_fill_bytes_are_counted(self, side: int) -> None:
        bomb = jpeg_of_scans(101, side).replace(b"\xff\xda", b"\xff\xff\xff\xda")
        with refused_at_once():
            decode_small(bomb)

    def test_start_of_scan_inside_app_segments_is_no_scan(self) -> None:
        """Thumbnails and maker notes contain JPEGs: 263 of 273 FFDA in one of Exiv2's samples are theirs."""
        picture = encode(Image.new("L", (64, 64), 90), "JPEG")
        payload = b"\xff\xda\0\x08\1\1\0\0\0\1" * 600
        segments = b"".join(
            b"\xff" + kind + (len(payload) + 2).to_bytes(2, "big") + payload
            for kind in (b"\xe2", b"\xed", b"\xfe")
        )
        data = picture[:2] + segments + picture[2:]
        assert data.count(b"\xff\xda") > 1000
        assert np.array_equal(decode_small(data), decode_small(picture))

    def test_ordinary_progressive_picture_is_decoded(self) -> None:
        y, x = np.mgrid[0:200, 0:200]
        smooth = ((x + y) // 2).astype(np.uint8)
        decoded = decode_small(encode_array(smooth, "JPEG", progressive=True, quality=95))
        assert np.abs(decoded.astype(int) - decode_small(encode_array(smooth, "PNG"))).max() < 6

    def test_scans_are_limited_by_pixels(self) -> None:
        assert decode_small(jpeg_of_scans(25, side=4000)).shape == SPEC.shape
        with refused_at_once():
            decode_small(jpeg_of_scans(26, side=4000))

    def test_large_noisy_picture_is_not_mistaken_for_a_scan_bomb(self) -> None:
        picture = encode_array(noise(1200, 1200), "JPEG", quality=95, restart_marker_blocks=1)
        assert picture.count(b"\xff\xd0") > 100
        assert decode_small(picture).shape == SPEC.shape
