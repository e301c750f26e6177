"""For every TIFF, the decoder reads one short directory, with strips and tiles within the limits."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model.errors import CorruptImage, ImageTooLarge, UnsupportedFormat
from model.formats.tiff import (
    MAX_DIRECTORIES,
    MAX_PIECES,
    MAX_TAGS,
    SPARE_COMPRESSED_BYTES,
    SPARE_SHARED_BYTES,
    strip,
)
from model.image import ImageSpec, decode, decode_sized
from model.image_limits import ImageLimits
from tests.model.pictures import decoded_by_pillow, encode, jpeg_of_scans, noise

RGB = noise(40, 61)
GREY = 77
BYTE, SHORT, LONG, RATIONAL = 1, 3, 4, 5
UNCOMPRESSED, LZW, JPEG, DEFLATE = 1, 5, 7, 8
IFD_AT = 8


class Tag(NamedTuple):
    number: int
    kind: int
    values: int
    value: int


def tiff(tags: list[Tag], content: bytes, big: bool = False) -> bytes:
    """A little-endian file with one directory, followed by `content`."""
    if big:
        entries = b"".join(struct.pack("<HHQQ", *tag) for tag in tags)
        return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + entries + bytes(8) + content
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, IFD_AT, len(tags)) + entries + bytes(4) + content


def grey_tags(width: int, height: int, compression: int = UNCOMPRESSED) -> list[Tag]:
    return [
        Tag(256, LONG, 1, width),
        Tag(257, LONG, 1, height),
        Tag(258, SHORT, 1, 8),
        Tag(259, SHORT, 1, compression),
        Tag(262, SHORT, 1, 1),
        Tag(277, SHORT, 1, 1),
    ]


def content_at(tags: int) -> int:
    return IFD_AT + 2 + 12 * tags + 4


def with_tags(others: list[Tag], content: bytes = b"") -> bytes:
    """One strip of 16 x 16 grey pixels followed by `content`, and additional tags."""
    tags = grey_tags(16, 16)
    at = content_at(len(tags) + 3 + len(others))
    strips = [Tag(273, LONG, 1, at), Tag(278, LONG, 1, 16), Tag(279, LONG, 1, 256)]
    return tiff([*tags, *strips, *others], bytes([GREY] * 256) + content)


def of_shared_strips(number: int, piece: bytes, compression: int, width: int = 16, rows: int = 1) -> bytes:
    """An image of `number` strips that share the same bytes."""
    tags = grey_tags(width, number * rows, compression)
    at = content_at(len(tags) + 3)
    piece_at = at + (8 * number if number > 1 else 0)
    offsets, lengths = (at, at + 4 * number) if number > 1 else (piece_at, len(piece))
    tags += [Tag(273, LONG, number, offsets), Tag(278, LONG, 1, rows), Tag(279, LONG, number, lengths)]
    arrays = struct.pack("<I", piece_at) * number + struct.pack("<I", len(piece)) * number
    return tiff(tags, (arrays if number > 1 else b"") + piece)


def of_tiles(
    side: int, tile_side: int, number: int, content: bytes, compression: int = UNCOMPRESSED
) -> bytes:
    """An image of `number` tiles that share the same bytes."""
    tags = grey_tags(side, side, compression)
    at = content_at(len(tags) + 4)
    tags += [Tag(322, LONG, 1, tile_side), Tag(323, LONG, 1, tile_side)]
    tags += [Tag(324, LONG, number, at), Tag(325, LONG, number, at + 4 * number)]
    offsets = struct.pack("<I", at + 8 * number) * number
    return tiff(tags, offsets + struct.pack("<I", len(content)) * number + content)


def decode_as_is(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return decode(data, ImageSpec(height=height, width=width, channels=3), ImageLimits())


def decode_small(data: bytes) -> np.ndarray:
    return decode(data, ImageSpec(height=4, width=4, channels=3), ImageLimits())


def number_of_tags(data: bytes) -> int:
    (number,) = struct.unpack_from("<H", data, IFD_AT)
    return int(number)


LOSSLESS = (None, "tiff_lzw", "tiff_deflate", "packbits", "zstd", "lzma")
CODECS = {
    "group4": ["1"],
    "jpeg": ["L", "RGB", "CMYK", "YCbCr"],
    **{codec: ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"] for codec in LOSSLESS},
}


@pytest.mark.parametrize(
    ("compression", "mode"), [(codec, mode) for codec in CODECS for mode in CODECS[codec]]
)
@pytest.mark.parametrize("big", [False, True])
def test_pixels_are_those_of_the_whole_file(mode: str, compression: str | None, big: bool) -> None:
    image = Image.fromarray(RGB)
    image = Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)
    options = {} if compression is None else {"compression": compression}
    data = encode(image, "TIFF", big_tiff=big, dpi=(72, 72), software="a program", **options)
    assert strip(data) != data
    assert np.array_equal(decoded_by_pillow(strip(data)), decoded_by_pillow(data))


@pytest.mark.parametrize("rows_per_strip", [8, 16, 40])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_strips_of_every_height_are_decoded(rows_per_strip: int, compression: str | None) -> None:
    options = {} if compression is None else {"compression": compression}
    data = encode(Image.fromarray(RGB), "TIFF", tiffinfo={278: rows_per_strip}, **options)
    assert np.array_equal(decode_as_is(data), decoded_by_pillow(data))


@pytest.mark.parametrize("compression", [UNCOMPRESSED, DEFLATE])
def test_tiles_are_decoded(compression: int) -> None:
    tile = bytes([GREY] * 256)
    content = zlib.compress(tile) if compression == DEFLATE else tile
    assert (decode_small(of_tiles(40, 16, 9, content, compression)) == GREY).all()


def test_only_the_first_page_reaches_the_decoder() -> None:
    pages = [Image.fromarray(noise(40, 61, seed=seed)) for seed in range(50)]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(io.BytesIO(strip(data))) as image:
        assert image.n_frames == 1
    assert np.array_equal(decode_as_is(data), np.asarray(pages[0]))


RATIONALS = 200_000
VALUES_AT = content_at(6 + 3 + 1) + 256
UNREAD = {
    "resolution": with_tags([Tag(282, RATIONAL, RATIONALS, VALUES_AT)], b"\1\0\0\0" * 2 * RATIONALS),
    "exif": with_tags(
        [Tag(34665, LONG, 1, VALUES_AT)],
        struct.pack("<HHHIII", 1, 0x9000, RATIONAL, RATIONALS, VALUES_AT + 18, 0)
        + b"\1\0\0\0" * 2 * RATIONALS,
    ),
    "unknown-tags": with_tags([Tag(1000 + place % 30_000, SHORT, 1, 5) for place in range(MAX_TAGS - 9)]),
    "doubles": with_tags([Tag(256, LONG, 1, 5)] * 1000),
    "wrong-kinds": with_tags([Tag(266, RATIONAL, RATIONALS, 8), Tag(284, 77, 1, 2)]),
    "large-xmp": with_tags([Tag(700, BYTE, 2_000_000, 8)], bytes(2_000_000)),
    "empty": with_tags([Tag(292, LONG, 0, 0)]),
}


@pytest.mark.parametrize("data", UNREAD.values(), ids=UNREAD)
def test_other_tags_do_not_reach_the_decoder(data: bytes) -> None:
    assert number_of_tags(data) > 9
    assert number_of_tags(strip(data)) == 9
    assert (decode_small(data) == GREY).all()


def test_number_of_tags_is_limited() -> None:
    width = Tag(256, LONG, 1, 16)
    read, unread = (
        strip(tiff([*[Tag(305, SHORT, 1, 0)] * others, width], b"", big=True))
        for others in (MAX_TAGS - 1, MAX_TAGS)
    )
    assert read[16:24] == struct.pack("<Q", 1)
    assert unread[16:24] == struct.pack("<Q", 0)


@pytest.mark.parametrize("tag", [258, 273, 320])
def test_values_beyond_the_end_of_the_file_are_left_out(tag: int) -> None:
    at = content_at(1)
    assert number_of_tags(strip(tiff([Tag(tag, SHORT, 1000, at)], bytes(2000)))) == 1
    for beyond in (
        Tag(tag, SHORT, 1000, at + 1),
        Tag(tag, LONG, 2**32 - 1, at),
        Tag(tag, SHORT, 3, 2**32 - 1),
    ):
        assert number_of_tags(strip(tiff([beyond], bytes(2000)))) == 0


@pytest.mark.parametrize(
    ("tags", "kept"), [([273, 279, 324, 325], [324, 325]), ([273, 279, 325], [273, 279]), ([324, 279], [324])]
)
def test_image_has_strips_or_tiles(tags: list[int], kept: list[int]) -> None:
    stripped = strip(tiff([Tag(tag, LONG, 1, 8) for tag in tags], b""))
    assert number_of_tags(stripped) == len(kept)
    assert [
        struct.unpack_from("<H", stripped, IFD_AT + 2 + 12 * place)[0] for place in range(len(kept))
    ] == kept


def test_directory_at_the_end_of_a_truncated_file_does_not_grow() -> None:
    data = tiff([Tag(305, SHORT, 1, 0), Tag(256, LONG, 1, 16)], b"")[:-2]
    assert len(strip(data)) == len(data)
    data = tiff([Tag(256, LONG, 1, 16)], b"")[:-2]
    assert strip(data) == data


@pytest.mark.parametrize("tag", [258, 262, 338, 339, 532])
def test_values_of_a_tag_are_limited(tag: int) -> None:
    with pytest.raises(
        ImageTooLarge, match=rf"Tag {tag} of a TIFF must have at most 4096 bytes\. Received: 4098\."
    ):
        strip(tiff([Tag(tag, SHORT, 2049, 8)], bytes(5000)))


@pytest.mark.parametrize("compression", [UNCOMPRESSED, DEFLATE])
def test_number_of_tiles_is_limited(compression: int) -> None:
    with pytest.raises(
        ImageTooLarge, match=f"at most {MAX_PIECES} strips or tiles. Received: {MAX_PIECES + 1}"
    ):
        strip(of_tiles(256, 1, MAX_PIECES + 1, b"\1", compression))
    strip(of_tiles(256, 1, MAX_PIECES, b"\1"))


def test_number_of_tiles_by_image_size_is_limited() -> None:
    with pytest.raises(ImageTooLarge, match=rf"at most {MAX_PIECES} strips or tiles. Received: 1000000\."):
        strip(of_tiles(1000, 1, 1, b"\1", DEFLATE))


def test_strips_of_every_plane_are_counted() -> None:
    tags = [
        *grey_tags(16, 30_000, DEFLATE)[:-1],
        Tag(277, SHORT, 1, 3),
        Tag(284, SHORT, 1, 2),
        Tag(278, SHORT, 1, 1),
    ]
    with pytest.raises(ImageTooLarge, match=r"Received: 90000\."):
        strip(tiff(tags, b""))


class TestSharedBytes:
    def test_blank_tiles_may_share_bytes(self) -> None:
        blank = zlib.compress(bytes([GREY] * 256))
        assert (decode_small(of_tiles(4000, 16, 62_500, blank, DEFLATE)) == GREY).all()

    def test_shared_bytes_are_limited(self) -> None:
        piece = zlib.compress(bytes(100_000)) + bytes(100_000)
        allowed = SPARE_SHARED_BYTES // len(piece)
        strip(of_shared_strips(allowed, piece, DEFLATE, 1000, 100))
        with pytest.raises(ImageTooLarge, match=r"must have at most \d+ bytes\. Received: \d+\."):
            strip(of_shared_strips(allowed + 10, piece, DEFLATE, 1000, 100))

    def test_strips_without_lengths_extend_to_the_end_of_the_file(self) -> None:
        data = bytearray(of_shared_strips(1000, bytes(10_000), DEFLATE, 1000, 100))
        lengths = data.index(struct.pack("<HH", 279, LONG))
        data[lengths : lengths + 2] = struct.pack("<H", 305)
        with pytest.raises(ImageTooLarge, match=r"Received: \d{8}\."):
            strip(bytes(data))

    def test_lengths_beyond_the_end_of_the_file_do_not_count(self) -> None:
        piece = zlib.compress(noise(1000, 8000, channels=None).tobytes(), 0)
        whole = of_shared_strips(1, piece, DEFLATE, 8000, 1000)
        strip(whole)
        with pytest.raises(CorruptImage):
            decode_small(whole[:1_000_000])

    @pytest.mark.parametrize("compression", [LZW, DEFLATE])
    def test_compressed_bytes_are_limited_by_pixels(self, compression: int) -> None:
        allowed = SPARE_COMPRESSED_BYTES + 2 * 256
        strip(of_shared_strips(16, bytes(allowed // 16), compression))
        with pytest.raises(ImageTooLarge, match=rf"at most {allowed} bytes\. Received: {allowed + 16}\."):
            strip(of_shared_strips(16, bytes(allowed // 16 + 1), compression))

    @pytest.mark.slow
    def test_noise_is_not_mistaken_for_padding(self) -> None:
        for compression in ("tiff_lzw", "tiff_deflate", "packbits", "zstd", "lzma"):
            data = encode(Image.fromarray(noise(1000, 1000)), "TIFF", compression=compression)
            assert np.array_equal(decode_as_is(data), noise(1000, 1000))
        bilevel = noise(3000, 3000, channels=None) > 127
        data = encode(Image.fromarray(bilevel), "TIFF", compression="group4")
        assert np.array_equal(decode_as_is(data)[..., 0] > 0, bilevel)

    def test_lengths_are_read_from_the_new_directory(self) -> None:
        """The lengths overlap the directory, and dropping its first tags moves others to their offset."""
        dropped = Tag(305, 0, 0, 0)
        tags = [*[dropped] * 6, *grey_tags(16, 15, DEFLATE), Tag(278, LONG, 1, 1)]
        at = content_at(len(tags) + 2)
        tags += [Tag(273, LONG, 15, at), Tag(279, LONG, 15, IFD_AT + 2)]
        with pytest.raises(ImageTooLarge, match=r"must have at most 1049056 bytes\. Received: 11\d{5}\."):
            strip(tiff(tags, bytes(400_000)))


class TestJpegTiles:
    def test_scans_of_a_strip_are_limited(self) -> None:
        strip(of_shared_strips(1, jpeg_of_scans(100), JPEG, 64, 64))
        with pytest.raises(ImageTooLarge, match="at most 100 scans"):
            strip(of_shared_strips(1, jpeg_of_scans(101), JPEG, 64, 64))

    def test_scans_of_all_strips_are_limited_by_the_size_of_the_image(self) -> None:
        strip(of_shared_strips(250, jpeg_of_scans(25), JPEG, 1000, 64))
        with pytest.raises(ImageTooLarge, match="JPEG of 16000000 pixels must have at most 25 scans"):
            strip(of_shared_strips(250, jpeg_of_scans(26), JPEG, 1000, 64))


@pytest.mark.parametrize(
    "data",
    [
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        tiff([], b""),
        tiff(grey_tags(16, 16), b""),
        tiff([*grey_tags(0, 16, DEFLATE), Tag(273, LONG, 1, 8), Tag(278, LONG, 1, 0)], b""),
        tiff([*grey_tags(16, 16), Tag(273, LONG, 2, 0), Tag(279, LONG, 2, 0)], b""),
        tiff([*grey_tags(16, 16, DEFLATE), Tag(273, LONG, 2, 0), Tag(279, LONG, 2, 0)], b""),
        with_tags([])[:60],
        with_tags([])[:-10],
    ],
)
def test_broken_file_stays_broken(data: bytes) -> None:
    with pytest.raises(CorruptImage):
        decode_small(data)


class Page(NamedTuple):
    """One strip of 8-bit grey pixels of one level, whose offset the file's writer sets."""

    side: int
    level: int
    tags: tuple[Tag, ...] = ()
    subs: tuple["Page", ...] = ()


REDUCED, MASK, PAGE = (Tag(254, LONG, 1, bits) for bits in (1, 4, 2))


def of_pages(*pages: Page, order: str = "<") -> bytes:
    """A file whose directories follow each other, each with SubIFDs."""
    data = bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4))
    link_at = 4
    for page in pages:
        subs = [write_page(data, sub, order, []) for sub in page.subs]
        at = write_page(data, page, order, subs)
        struct.pack_into(order + "I", data, link_at, at)
        link_at = len(data) - 4
    return bytes(data)


def write_page(data: bytearray, page: Page, order: str, subs: list[int]) -> int:
    strip_at = len(data)
    data += bytes([page.level]) * page.side**2
    given = {tag.number: tag._replace(kind=LONG) for tag in (*grey_tags(page.side, page.side), *page.tags)}
    tags = list(given.values())
    tags += [Tag(273, LONG, 1, strip_at), Tag(278, LONG, 1, page.side), Tag(279, LONG, 1, page.side**2)]
    if subs:
        tags.append(Tag(330, LONG, len(subs), subs[0] if len(subs) == 1 else len(data)))
        data += struct.pack(f"{order}{len(subs)}I", *subs) if len(subs) > 1 else b""
    at = len(data)
    data += struct.pack(order + "H", len(tags))
    data += b"".join(struct.pack(order + "HHII", *tag) for tag in sorted(tags))
    data += bytes(4)
    return at


THUMBNAIL = Page(2, 10, (REDUCED,))
FULL = Page(6, GREY)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "pages",
    [
        [FULL],
        [THUMBNAIL, FULL],
        [THUMBNAIL, Page(6, GREY, (PAGE,))],
        [Page(2, 10, (Tag(255, LONG, 1, 2),)), Page(6, GREY, (Tag(255, LONG, 1, 1),))],
        [THUMBNAIL, Page(3, 20, (REDUCED,)), Page(6, 30, (MASK,)), FULL, Page(9, 40)],
        [Page(2, 10, (REDUCED,), (FULL,))],
        [Page(2, 10, (REDUCED,), (Page(3, 20, (REDUCED,)), FULL, Page(9, 30)))],
        [Page(6, 30, (MASK,)), FULL],
        [Page(6, GREY, (), (Page(3, 20, (REDUCED,)),)), THUMBNAIL],
        [Page(6, GREY, (REDUCED,)), THUMBNAIL],
    ],
)
def test_whole_image_is_decoded_and_not_its_thumbnail(pages: list[Page], order: str) -> None:
    data = of_pages(*pages, order=order)
    decoded = decode_sized(data, ImageSpec(height=4, width=4, channels=3), ImageLimits())
    assert decoded.source_size == (6, 6)
    assert (decoded.pixels == GREY).all()


def test_chain_of_thumbnails_is_followed_for_a_few_directories() -> None:
    looped = bytearray(of_pages(*[THUMBNAIL] * 3))
    looped[-4:] = looped[4:8]
    for data in (bytes(looped), of_pages(*[THUMBNAIL] * MAX_DIRECTORIES, FULL), of_pages(THUMBNAIL)[:-4]):
        assert (decode_small(data) == 10).all()


def test_kind_is_that_of_the_whole_image() -> None:
    """As a DNG, whose thumbnail is RGB."""
    raw = Page(6, 9, (Tag(262, LONG, 1, 32803),))
    with pytest.raises(UnsupportedFormat, match="colour filter array"):
        decode_small(of_pages(Page(2, 10, (REDUCED,), (raw,))))


def with_samples(samples: int, bits: int, kind: int, colour: int) -> bytes:
    tags = [Tag(256, LONG, 1, 8), Tag(257, LONG, 1, 8), Tag(258, SHORT, 1, bits), Tag(259, SHORT, 1, 1)]
    tags += [Tag(262, SHORT, 1, colour), Tag(277, SHORT, 1, samples), Tag(339, SHORT, 1, kind)]
    strip_bytes = 8 * -(-8 * samples * bits // 8)
    tags += [Tag(273, LONG, 1, content_at(10)), Tag(278, LONG, 1, 8), Tag(279, LONG, 1, strip_bytes)]
    return tiff(sorted(tags), bytes(strip_bytes))


@pytest.mark.parametrize(
    ("samples", "bits", "kind", "colour", "named"),
    [
        (1, 16, 3, 1, "grey, 1 x 16 bits, float"),
        (1, 64, 3, 1, "grey, 1 x 64 bits, float"),
        (3, 16, 3, 2, "RGB, 3 x 16 bits, float"),
        (3, 32, 3, 2, "RGB, 3 x 32 bits, float"),
        (3, 64, 3, 2, "RGB, 3 x 64 bits, float"),
        (1, 10, 1, 1, "grey, 1 x 10 bits"),
        (1, 14, 1, 1, "grey, 1 x 14 bits"),
        (3, 12, 1, 2, "RGB, 3 x 12 bits"),
        (3, 8, 2, 2, "RGB, 3 x 8 bits, signed"),
        (1, 64, 6, 1, "grey, 1 x 64 bits, complex"),
        (5, 8, 1, 1, "grey, 5 x 8 bits"),
        (1, 8, 1, 32803, "colour filter array"),
        (3, 32, 3, 32845, "LogLuv"),
        (1, 8, 1, 999, "photometric interpretation 999"),
        (1, 8, 9, 1, "sample format 9"),
    ],
)
def test_kind_that_is_not_decoded_is_named(
    samples: int, bits: int, kind: int, colour: int, named: str
) -> None:
    with pytest.raises(UnsupportedFormat, match=named):
        decode_small(with_samples(samples, bits, kind, colour))


@pytest.mark.parametrize(
    ("codec", "name"), [(34887, "LERC"), (50001, "WebP"), (34712, "JPEG 2000"), (50002, "JPEG XL")]
)
def test_codec_that_is_not_decoded_is_named(codec: int, name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        decode_small(tiff([*grey_tags(8, 8, codec), Tag(273, LONG, 1, 8), Tag(279, LONG, 1, 9)], bytes(9)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("times", [1, 257])
def test_palette_has_8_or_16_bits_a_colour(bits: int, times: int) -> None:
    colours = noise(2**bits, 1, seed=3).reshape(-1, 3)
    image = Image.fromarray((np.arange(64) % 2**bits).astype(np.uint8).reshape(8, 8))
    packed = np.packbits(
        np.unpackbits(np.asarray(image)[..., None], axis=2)[..., -bits:].reshape(8, -1), axis=1
    )
    colour_map = (colours.T.astype(np.uint16) * times).tobytes()
    tags = [*grey_tags(8, 8)]
    tags[2], tags[4] = Tag(258, SHORT, 1, bits), Tag(262, SHORT, 1, 3)
    at = content_at(10)
    strips = [Tag(273, LONG, 1, at + len(colour_map)), Tag(278, LONG, 1, 8), Tag(279, LONG, 1, packed.size)]
    data = tiff(sorted([*tags, *strips, Tag(320, SHORT, 3 * 2**bits, at)]), colour_map + packed.tobytes())
    assert np.array_equal(decode_as_is(data), colours[np.asarray(image)])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("codec", [UNCOMPRESSED, DEFLATE])
@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [(2, 16, "i2"), (2, 32, "i4"), (3, 32, "f4"), (1, 16, "u2")],
    ids=str,
)
def test_samples_have_the_byte_order_of_the_file(
    order: str, codec: int, kind: int, bits: int, dtype: str
) -> None:
    values = np.arange(64).reshape(8, 8) * 4
    samples = (values * (257 if bits == 16 and kind == 1 else 1)).astype(order + dtype).tobytes()
    content = zlib.compress(samples) if codec == DEFLATE else samples
    tags = [Tag(256, LONG, 1, 8), Tag(257, LONG, 1, 8), Tag(258, LONG, 1, bits), Tag(259, LONG, 1, codec)]
    tags += [Tag(262, LONG, 1, 1), Tag(273, LONG, 1, content_at(9)), Tag(277, LONG, 1, 1)]
    tags += [Tag(279, LONG, 1, len(content)), Tag(339, LONG, 1, kind)]
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", IFD_AT, len(tags))
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    assert np.array_equal(decode_as_is(header + entries + bytes(4) + content)[..., 0], values)


@pytest.mark.parametrize("codec", [UNCOMPRESSED, DEFLATE])
def test_grey_with_alpha_in_planes_is_named(codec: int) -> None:
    tags = {tag.number: tag for tag in grey_tags(8, 8, codec)}
    tags |= {277: Tag(277, SHORT, 1, 2), 284: Tag(284, SHORT, 1, 2), 338: Tag(338, SHORT, 1, 2)}
    tags |= {
        number: Tag(number, SHORT, 2, each | each << 16) for number, each in ((258, 8), (273, 8), (279, 64))
    }
    with pytest.raises(UnsupportedFormat, match="LA, 8 bits"):
        decode_small(tiff(sorted(tags.values()), bytes(200)))


@pytest.mark.parametrize(
    ("codec", "more", "named"),
    [
        (UNCOMPRESSED, [Tag(284, SHORT, 1, 2), Tag(338, SHORT, 1, 1)], "RGBA, 8 bits, extra samples"),
        (UNCOMPRESSED, [Tag(530, SHORT, 2, 2 | 2 << 16)], r"subsampling \(2, 2\)"),
        (UNCOMPRESSED, [Tag(532, RATIONAL, 6, 8)], "levels"),
        (JPEG, [Tag(284, SHORT, 1, 2)], "8 bits, jpeg"),
    ],
)
def test_colours_that_pillow_misreads_are_named(codec: int, more: list[Tag], named: str) -> None:
    samples = 4 if any(tag.number == 338 for tag in more) else 3
    tags = {tag.number: tag for tag in (*grey_tags(8, 8, codec), *more)}
    tags[262], tags[277] = Tag(262, SHORT, 1, 2 if samples == 4 else 6), Tag(277, SHORT, 1, samples)
    pieces = samples if 284 in tags else 1
    at = content_at(len(tags) + 3)
    tags[273], tags[278] = Tag(273, LONG, pieces, at if pieces > 1 else 8), Tag(278, LONG, 1, 8)
    tags[279] = Tag(279, LONG, pieces, at if pieces > 1 else 64)
    with pytest.raises(UnsupportedFormat, match=named):
        decode_small(tiff(sorted(tags.values()), struct.pack("<4I", *[at] * 4) + bytes(300)))


@pytest.mark.parametrize("strips", [1, 3, 5])
def test_strips_cover_the_image_exactly(strips: int) -> None:
    data = of_shared_strips(4, bytes(16), UNCOMPRESSED)
    tags = data[IFD_AT + 2 : content_at(9)]
    number = struct.pack("<I", 4)
    wrong = tags.replace(struct.pack("<HH", 273, LONG) + number, struct.pack("<HHI", 273, LONG, strips))
    assert wrong != tags
    with pytest.raises(CorruptImage, match="strips"):
        decode_as_is(data.replace(tags, wrong))


def test_colour_map_has_three_values_for_each_index() -> None:
    tags = [*grey_tags(8, 8), Tag(273, LONG, 1, 8), Tag(278, LONG, 1, 8), Tag(279, LONG, 1, 64)]
    tags[4] = Tag(262, SHORT, 1, 3)
    colour_map = Tag(320, SHORT, 765, content_at(10))
    with pytest.raises(CorruptImage, match=r"768 values\. Received: 765"):
        decode_small(tiff([*tags, colour_map], bytes(2000)))


def test_big_endian_bigtiff_is_named() -> None:
    with pytest.raises(UnsupportedFormat, match="big-endian"):
        decode_small(b"MM\0+\0\x08\0\0" + bytes(100))
