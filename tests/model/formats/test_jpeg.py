"""For every JPEG, the decoder reads a short header and a limited number of scans."""

import itertools

import numpy as np
import pytest
from PIL import Image

from model.errors import CorruptImage, ImageTooLarge
from model.formats import fast
from model.formats.jpeg import (
    MAX_HEADER_SEGMENTS,
    MAX_MARKERS,
    MAX_SCANNED_PIXELS,
    MAX_SCANS,
    MAX_TABLE_BYTES,
    refuse_scans,
    refuse_stripped_scans,
    strip,
)
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits
from tests.model.pictures import decoded_by_pillow, encode, encode_array, jpeg_of_scans, noise, segment

RGB = noise(45, 61)
SPEC = ImageSpec(height=45, width=61, channels=3)
PICTURE = encode_array(RGB, "JPEG")
EXIF, XMP = b"Exif\0\0II*\0\x08\0\0\0\0\0", b"http://ns.adobe.com/xap/1.0/\0<x/>"
QUANTIZATION_TABLE = b"\0" + b"\1" * 64


def decode_whole(data: bytes) -> np.ndarray:
    return decode(data, SPEC, ImageLimits())


def before_tables(content: bytes, data: bytes = PICTURE) -> bytes:
    start = data.index(b"\xff\xdb")
    return data[:start] + content + data[start:]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 1_000_000,
        b"\0" * 1_000_000,
        b"\xff\0" * 500_000,
        b"\xff\xd0" * 500_000,
        segment(0xFE, b"") * 5000,
        segment(0xFE, b"comment" * 9000) * 20,
        segment(0xE0, b"JFXX\0" + bytes(60_000)) * 20,
        segment(0xE1, EXIF) * 5000,
        segment(0xE1, EXIF + bytes(60_000)) * 20,
        segment(0xE1, XMP + bytes(60_000)) * 20,
        segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(60_000)) * 20,
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 60_000) * 20,
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000) * 20,
        segment(0xEE, b"other" + bytes(60_000)) * 20,
        b"\xff\xfe\0\0" * 5000,
    ],
    ids=[
        *("fill", "junk", "stuffed", "restarts", "empty-comments", "comments", "thumbnails", "exifs"),
        *("large-exif", "xmp", "icc", "mpf", "photoshop", "app14", "no-length"),
    ],
)
def test_metadata_does_not_reach_the_decoder(content: bytes) -> None:
    padded = before_tables(content)
    assert strip(padded)[0] == strip(PICTURE)[0]
    assert np.array_equal(decode_whole(padded), decoded_by_pillow(PICTURE))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize(
    ("progressive", "subsampling", "restarts"), list(itertools.product([False, True], [0, 2], [0, 3]))
)
def test_pixels_are_those_of_the_whole_file(
    mode: str, progressive: bool, subsampling: int, restarts: int
) -> None:
    data = encode(
        Image.fromarray(RGB).convert(mode),
        "JPEG",
        progressive=progressive,
        subsampling=subsampling,
        restart_marker_blocks=restarts,
        icc_profile=bytes(200_000),
        comment=b"comment",
    )
    assert len(strip(data)[0]) < len(data) - 200_000
    assert np.array_equal(decode_whole(data), decoded_by_pillow(data))


def test_marker_of_the_colour_space_is_kept() -> None:
    """Without the Adobe marker, decoders take the colours of this file for YCbCr."""
    red_green_blue = (
        PICTURE[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + PICTURE[PICTURE.index(b"\xff\xdb") :]
    )
    decoded = decode_whole(red_green_blue)
    assert np.array_equal(decoded, decoded_by_pillow(red_green_blue))
    assert not np.array_equal(decoded, decode_whole(PICTURE))


@pytest.mark.parametrize("short", [segment(0xEE, b"Adobe\0\x64\0\0\0\0"), segment(0xE0, b"JFIF\0\1")])
def test_short_marker_of_the_colour_space_is_ignored(short: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libjpeg ignores it; Pillow's header reader would fail."""
    data = PICTURE[:2] + short + PICTURE[PICTURE.index(b"\xff\xdb") :]
    assert np.array_equal(decode_whole(data), decode_whole(PICTURE))
    monkeypatch.setattr(fast, "_KORNIA", None)
    assert np.array_equal(decode_whole(data), decode_whole(PICTURE))


@pytest.mark.parametrize("options", [{"progressive": True}, {}], ids=["progressive", "sequential"])
def test_file_that_ends_between_two_scans_is_corrupt(options: dict[str, bool]) -> None:
    """It shows every row, in less detail or fewer colours."""
    whole = encode_array(RGB, "JPEG", **options)
    starts = [at for at in range(len(whole) - 1) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    for cut in starts:
        with pytest.raises(CorruptImage):
            decode_whole(whole[:cut])
    assert np.array_equal(decode_whole(whole[:-2]), decode_whole(whole))


def test_exif_in_several_segments_is_joined() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    parts = [exif[:20], b"Exif\0\0" + exif[20:]]
    data = before_tables(b"".join(segment(0xE1, part) for part in parts))
    assert strip(data)[1].exif == exif
    assert strip(data)[1].orientation() == 6


def test_last_xmp_is_used() -> None:
    segments = b"".join(segment(0xE1, XMP + text) for text in (b"one", b"two"))
    assert strip(before_tables(segments))[1].xmp == b"<x/>two"


def test_number_of_segments_is_limited() -> None:
    own = strip(PICTURE)[0].count(b"\xff") - strip(PICTURE)[0].count(b"\xff\0")
    assert own < 20
    assert np.array_equal(
        decode_whole(before_tables(segment(0xFE, b"") * (MAX_HEADER_SEGMENTS - 20))), decode_whole(PICTURE)
    )
    with pytest.raises(ImageTooLarge, match=f"at most {MAX_HEADER_SEGMENTS} segments"):
        decode_whole(before_tables(segment(0xFE, b"") * MAX_HEADER_SEGMENTS))


@pytest.mark.parametrize(
    "tables",
    [
        segment(0xDB, QUANTIZATION_TABLE * 1000) * 3,
        segment(0xC0, b"\x08\0\x40\0\x40\3" + b"\1\x11\0" * 20_000) * 3,
        segment(0xC4, b"\0" + bytes(16)) * 7000,
        segment(0xE0, b"JFIF\0" + bytes(60_000)) * 3,
    ],
    ids=["quantization", "frame", "huffman", "jfif"],
)
def test_bytes_of_tables_are_limited(tables: bytes) -> None:
    assert len(tables) > MAX_TABLE_BYTES
    with pytest.raises(ImageTooLarge, match=rf"at most {MAX_TABLE_BYTES} bytes\. Received: \d+\."):
        decode_whole(before_tables(tables))


def test_repeated_tables_are_read() -> None:
    repeated = before_tables(segment(0xDB, QUANTIZATION_TABLE) * 100)
    assert np.array_equal(decode_whole(repeated), decode_whole(PICTURE))


@pytest.mark.parametrize("marker", [b"\xff\xd8", b"\xff\xd9", b"\xff\xf0", b"\xff\xc8", b"\xff\1", b"\xff\2"])
def test_header_is_cut_where_decoders_fail(marker: bytes) -> None:
    broken = before_tables(marker * 100_000)
    assert len(strip(broken)[0]) < 100
    with pytest.raises(CorruptImage):
        decode_whole(broken)


def test_file_without_a_scan_is_corrupt() -> None:
    with pytest.raises(CorruptImage):
        decode_whole(PICTURE[: PICTURE.index(b"\xff\xda")])


class TestScans:
    @pytest.mark.parametrize(
        ("pixels", "scans"),
        [(64 * 64, MAX_SCANS), (4_000_000, 100), (16_000_000, 25), (2 * MAX_SCANNED_PIXELS, 1)],
    )
    def test_scans_are_limited_by_pixels(self, pixels: int, scans: int) -> None:
        refuse_scans(jpeg_of_scans(scans), pixels)
        with pytest.raises(ImageTooLarge, match=f"JPEG of {pixels} pixels must have at most {scans} scans"):
            refuse_scans(jpeg_of_scans(scans + 1), pixels)

    def test_ordinary_progressive_file_is_far_below_the_limit(self) -> None:
        largest = encode(Image.new("CMYK", (64, 64)), "JPEG", progressive=True)
        assert 10 <= largest.count(b"\xff\xda") <= 20
        refuse_scans(largest, 16_000_000)

    def test_scans_of_a_second_picture_do_not_count(self) -> None:
        refuse_scans(jpeg_of_scans(60) * 2, 64 * 64)

    @pytest.mark.parametrize("marker", [2, 0x4F, 0xBF])
    def test_unknown_marker_hides_no_scans(self, marker: int) -> None:
        """A decoder that searches for a restart marker skips an unknown marker, but no length after it."""
        scans = jpeg_of_scans(101, before_repeats=bytes((0xFF, marker)) + b"\xf0\xf0")
        with pytest.raises(ImageTooLarge):
            refuse_scans(scans, 64 * 64)

    def test_number_of_markers_between_scans_is_limited(self) -> None:
        hidden = segment(0xFE, b"\xff\xda" * 101)
        refuse_scans(jpeg_of_scans(2, before_repeats=hidden + segment(0xFE, b"") * 1000), 64 * 64)
        with pytest.raises(ImageTooLarge, match=f"at most {MAX_MARKERS} markers"):
            refuse_scans(jpeg_of_scans(2, before_repeats=hidden + segment(0xFE, b"") * MAX_MARKERS), 64 * 64)


def test_only_files_of_several_scans_are_counted() -> None:
    """The first scan of a sequential file with all components is the only one that decoders read."""
    more = PICTURE[PICTURE.index(b"\xff\xda") :] * (MAX_SCANS + 1)
    refuse_stripped_scans(strip(PICTURE + more)[0], RGB.size // 3)
    grey = encode_array(RGB[..., 0], "JPEG")
    assert np.array_equal(decode_whole(grey + more), decode_whole(grey))
    one_colour = segment(0xDA, b"\1\1\0\0\x3f\0") + b"\0"
    start = PICTURE.index(b"\xff\xda")
    with pytest.raises(ImageTooLarge, match="scans"):
        decode_whole(PICTURE[:start] + one_colour * (MAX_SCANS + 1) + PICTURE[start:])
