"""For every PNG, the decoder reads only critical chunks, with the pixels in one IDAT."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.errors import CorruptImage, ImageTooLarge
from model.formats import png as png_chunks
from model.formats.png import MAX_COMPRESSED_TEXT_BYTES, MAX_TEXT_BYTES, SPARE_COMPRESSED_BYTES, strip
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits
from tests.model.pictures import chunk, decoded_by_pillow, encode, encode_array, noise

RGB = noise(20, 31)
SPEC = ImageSpec(height=20, width=31, channels=3)
PICTURE = encode_array(RGB, "PNG")
IDAT_AT, END_AT = PICTURE.index(b"IDAT") - 4, PICTURE.index(b"IEND") - 4
COMPRESSED = PICTURE[IDAT_AT + 8 : END_AT - 4]
TURNED = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0"
XMP = b'<x tiff:Orientation="3"/>'


def decode_whole(data: bytes) -> np.ndarray:
    return decode(data, SPEC, ImageLimits())


def with_chunks(before: bytes = b"", after: bytes = b"") -> bytes:
    return PICTURE[:IDAT_AT] + before + PICTURE[IDAT_AT:END_AT] + after + PICTURE[END_AT:]


def with_pixels(chunks: bytes) -> bytes:
    return PICTURE[:IDAT_AT] + chunks + PICTURE[END_AT:]


ANCILLARY = {
    "texts": chunk(b"iTXt", b"k\0\0\0\0\0text") * 100_000,
    "empty": chunk(b"abCd") * 100_000,
    "large": chunk(b"abCd", bytes(5_000_000)),
    "bombs": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(MAX_TEXT_BYTES))) * 500,
    "too-large-bomb": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * MAX_TEXT_BYTES))),
    "profile-bombs": chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(MAX_TEXT_BYTES))) * 500,
    "unknown-compression": chunk(b"zTXt", b"k\0\7nothing"),
    "exif": chunk(b"eXIf", TURNED.replace(b"\0\3\0\0\0\0\0\0", b"\0\1\0\0\0\0\0\0")) * 1000,
    "animation": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", bytes(26)),
    "gamma": chunk(b"gAMA", b"") + chunk(b"cHRM", b"") + chunk(b"sRGB", b"") + chunk(b"pHYs", b""),
    "checksum": chunk(b"tEXt", b"k\0text")[:-4] + bytes(4),
}


@pytest.mark.parametrize("content", ANCILLARY.values(), ids=ANCILLARY)
def test_ancillary_chunks_do_not_reach_the_decoder(content: bytes) -> None:
    for data in (with_chunks(before=content), with_chunks(after=content)):
        assert strip(data)[0] == strip(PICTURE)[0]
        assert np.array_equal(decode_whole(data), RGB)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_pixels_in_many_chunks_reach_the_decoder_in_one(size: int) -> None:
    pieces = [COMPRESSED[start : start + size] for start in range(0, len(COMPRESSED), size)]
    split = with_pixels(b"".join(chunk(b"IDAT", piece) + chunk(b"IDAT") for piece in pieces))
    assert strip(split)[0] == strip(PICTURE)[0]
    assert np.array_equal(decode_whole(split), RGB)


def test_number_of_chunks_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_chunks, "MAX_CHUNKS", 10)
    assert np.array_equal(decode_whole(with_chunks(chunk(b"abCd") * 7)), RGB)
    with pytest.raises(ImageTooLarge, match=r"at most 10 chunks"):
        decode_whole(with_chunks(chunk(b"abCd") * 8))


@pytest.mark.parametrize("kind", [b"IHDR", b"tRNS"])
def test_one_chunk_of_a_kind_is_kept(kind: bytes) -> None:
    last = {b"IHDR": PICTURE[8:33], b"tRNS": chunk(kind, b"\0\1" * 3)}[kind]
    stripped, _ = strip(with_chunks(chunk(kind) * 1000 + last))
    assert stripped == strip(with_chunks(last))[0]
    assert stripped.count(kind) == 1


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_whole_file(mode: str) -> None:
    image = Image.fromarray(RGB)
    image = Image.fromarray(np.full((20, 31), 200, np.uint16)) if mode == "I;16" else image.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = encode(image, "PNG", dpi=(72, 72), icc_profile=bytes(100_000), **options)
    stripped, _ = strip(data)
    assert len(stripped) < len(data)
    assert np.array_equal(decoded_by_pillow(stripped), decoded_by_pillow(data))


def test_interlaced_picture_is_decoded() -> None:
    """Seven passes (W3C, section 8) over an image of one colour."""
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    rows = b"".join(
        (b"\0" + b"\x4d" * len(range(x, 31, step_x))) * len(range(y, 20, step_y))
        for x, y, step_x, step_y in passes
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 31, 20, 8, 0, 0, 0, 1))
    data = PICTURE[:8] + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    assert (decode_whole(data) == 0x4D).all()


@pytest.mark.parametrize("default_image", [False, True])
def test_default_image_of_an_animation_is_decoded(default_image: bool) -> None:
    frames = [Image.fromarray(noise(20, 31, seed=seed)) for seed in range(4)]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default_image)
    assert b"fdAT" in data
    assert b"fdAT" not in strip(data)[0]
    assert np.array_equal(decode_whole(data), np.asarray(frames[0]))


BROKEN = {
    "no-pixels": with_pixels(b""),
    "empty-pixels": with_pixels(chunk(b"IDAT") * 1000),
    "end-first": with_chunks(chunk(b"IEND")),
    "nameless": with_chunks(chunk(b"\0\0\0\0") * 1000),
    "chunk-beyond-the-end": with_chunks(b"\xff\xff\xff\xff" + b"tEXt"),
    "header-checksum": PICTURE[:29] + bytes(4) + PICTURE[33:],
    "header-cut": PICTURE[:20],
    "only-a-signature": PICTURE[:8],
    "pixels-cut": PICTURE[: IDAT_AT + 500],
    "pixels-in-two-places": with_pixels(
        chunk(b"IDAT", COMPRESSED[:99]) + chunk(b"tEXt", b"k\0text") + chunk(b"IDAT", COMPRESSED[99:])
    ),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_file_stays_broken(data: bytes) -> None:
    with pytest.raises(CorruptImage):
        decode_whole(data)


def test_file_without_its_end_is_decoded() -> None:
    assert np.array_equal(decode_whole(PICTURE[:END_AT]), RGB)


def test_blocks_without_pixels_are_limited() -> None:
    """Deflate allows any number of empty blocks, of which a decoder reads 10 MB a second."""
    empty_block = b"\0\0\0\xff\xff"
    padded = {
        spare: COMPRESSED[:2] + empty_block * (spare // len(empty_block)) + COMPRESSED[2:]
        for spare in (SPARE_COMPRESSED_BYTES - 100, SPARE_COMPRESSED_BYTES + 10_000)
    }
    within, beyond = (with_pixels(chunk(b"IDAT", pixels)) for pixels in padded.values())
    assert np.array_equal(decode_whole(within), RGB)
    with pytest.raises(
        ImageTooLarge, match=r"31 x 20 pixels must have at most \d+ bytes of compressed pixels"
    ):
        decode_whole(beyond)


def profile_of(exif: bytes) -> str:
    digits = exif.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return "\n".join(["", "exif", f"{len(exif):8}", *lines, ""])


def text(keyword: str, value: str, *, compressed: bool = False, international: bool = False) -> bytes:
    info = PngInfo()
    (info.add_itxt if international else info.add_text)(keyword, value, zip=compressed)
    [(kind, content, _)] = info.chunks
    return chunk(kind, content)


ORIENTATIONS = {
    "exif": chunk(b"eXIf", TURNED),
    "exif-text": chunk(b"tEXt", b"exif\0" + TURNED),
    "profile": text("Raw profile type exif", profile_of(TURNED)),
    "compressed-profile": text("Raw profile type exif", profile_of(TURNED), compressed=True),
    "xmp": text("XML:com.adobe.xmp", XMP.decode(), international=True),
    "compressed-xmp": text("XML:com.adobe.xmp", XMP.decode(), international=True, compressed=True),
}


@pytest.mark.parametrize("content", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_orientation_is_found_before_and_after_the_pixels(content: bytes) -> None:
    for data in (with_chunks(before=content), with_chunks(after=content)):
        assert strip(data)[1].orientation() == 3
        assert np.array_equal(decode_whole(data), RGB[::-1, ::-1])


USELESS = {
    "profile-of-no-digits": text("Raw profile type exif", "\nexif\n 8\nno digits\n"),
    "profile-of-one-line": text("Raw profile type exif", "exif"),
    "keyword-only": chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
    "broken-compression": chunk(b"zTXt", b"Raw profile type exif\0\0nothing"),
    "too-long-when-decompressed": chunk(
        b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(MAX_TEXT_BYTES) + XMP)
    ),
    "too-long-compressed": chunk(
        b"iTXt",
        b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(noise(1, MAX_COMPRESSED_TEXT_BYTES).tobytes() + XMP),
    ),
}


@pytest.mark.parametrize("content", USELESS.values(), ids=USELESS)
def test_unreadable_text_is_ignored(content: bytes) -> None:
    assert np.array_equal(decode_whole(with_chunks(content)), RGB)


def broken(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def png_of(mode: str) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(RGB).quantize(16) if mode == "P" else Image.fromarray(RGB).convert(mode)
    return encode(image, "PNG"), np.asarray(image.convert("RGB"))


TEXT = zlib.compress(bytes(5_000_000))
ANCILLARY = {
    "large text": chunk(b"zTXt", b"Comment\0\0" + TEXT),
    "large profile": chunk(b"iCCP", b"icc\0\0" + TEXT),
    "profile that is none": chunk(b"iCCP", b"icc\0\0no profile"),
    "wrong checksum of a text": broken(chunk(b"tEXt", b"a\0b")),
    "wrong checksum of a profile": broken(chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x"))),
    "short gamma": chunk(b"gAMA", b"1"),
    "empty": b"".join(
        chunk(kind) for kind in (b"pHYs", b"cHRM", b"sBIT", b"tIME", b"hIST", b"bKGD", b"eXIf", b"acTL")
    ),
    "private": broken(chunk(b"prVt", b"x" * 100)),
    "wrong checksum of a transparency": broken(chunk(b"tRNS", b"\0\5" * 3)),
    "transparency of no kind": chunk(b"tRNS"),
    "long transparency": chunk(b"tRNS", bytes(300)),
}


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", ANCILLARY)
def test_no_pixel_depends_on_a_broken_ancillary_chunk(name: str, before: bytes, mode: str) -> None:
    """What libpng warns of and leaves out."""
    whole, pixels = png_of(mode)
    place = whole.index(before) - 4
    assert np.array_equal(decode_whole(whole[:place] + ANCILLARY[name] + whole[place:]), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "palette", [chunk(b"PLTE", bytes(9)), broken(chunk(b"PLTE", bytes(9))), chunk(b"PLTE", b"x")]
)
def test_suggested_palette_is_ignored(mode: str, palette: bytes) -> None:
    whole, pixels = png_of(mode)
    place = whole.index(b"IDAT") - 4
    assert np.array_equal(decode_whole(whole[:place] + palette + whole[place:]), pixels)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_wrong_checksum_of_a_critical_chunk_is_corrupt(kind: bytes) -> None:
    whole, _ = png_of("P")
    end = whole.index(kind) + 4 + int.from_bytes(whole[whole.index(kind) - 4 : whole.index(kind)], "big") + 4
    with pytest.raises(CorruptImage):
        decode_whole(broken(whole[:end]) + whole[end:])


def test_first_of_two_transparent_colours_counts() -> None:
    grey, _ = png_of("L")
    place = grey.index(b"IDAT") - 4
    first = chunk(b"tRNS", b"\0\5")
    one = decode_whole(grey[:place] + first + grey[place:])
    assert np.array_equal(decode_whole(grey[:place] + first + chunk(b"tRNS", b"\0\7") + grey[place:]), one)


def png_of_samples(samples: np.ndarray, depth: int, interlace: int = 0, before: bytes = b"") -> bytes:
    """Grey or RGB pixels (h, w, c) below 2 ** depth, in rows without a filter."""
    height, width, channels = samples.shape
    colour = 0 if channels == 1 else 2
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8)
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return png_chunks.SIGNATURE + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND")


@pytest.mark.parametrize("unused_bits", [0, 0xFF00])
@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)])
def test_transparent_colour_has_the_depth_of_the_pixels(channels: int, depth: int, unused_bits: int) -> None:
    levels = min(2**depth, 16)
    samples = np.arange(levels).repeat(channels).reshape(1, levels, channels) * (0x101 if depth == 16 else 1)
    for level in range(levels):
        given = int(samples[0, level, 0]) if depth == 16 else level | unused_bits
        key = chunk(b"tRNS", struct.pack(">H", given) * channels)
        data = png_of_samples(samples, depth, before=key)
        spec = ImageSpec(height=1, width=levels, channels=3)
        is_white = (decode(data, spec, ImageLimits()) == 255).all(axis=2)[0]
        opaque = (decode(png_of_samples(samples, depth), spec, ImageLimits()) == 255).all(axis=2)[0]
        assert is_white.tolist() == (opaque | (np.arange(levels) == level)).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("interlace", [0, 1])
def test_pixels_that_end_early_are_corrupt(mode: str, interlace: int) -> None:
    """Their stream has an end, and Pillow would leave the rest black."""
    grey = Image.fromarray(RGB[..., 0])
    image = Image.fromarray(RGB[..., 0].astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    data = bytearray(encode(image, "PNG"))
    start = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[start:])
    data[28] = interlace
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    for missing in (1, len(rows) // 20, len(rows) // 2, len(rows)):
        short = zlib.compress(rows[: len(rows) - missing])
        with pytest.raises(CorruptImage):
            decode_whole(bytes(data[: start - 8]) + chunk(b"IDAT", short) + chunk(b"IEND"))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 2), (8, 8), (17, 16)])
def test_interlaced_picture_of_any_size_is_complete(size: tuple[int, int]) -> None:
    """Of black pixels, whose rows are all alike, and of few passes."""
    height, width = size
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    lines = [
        len(range(x, width, across)) + 1
        for x, y, across, down in passes
        for _ in range(y, height, down)
        if x < width
    ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 1))
    palette = chunk(b"PLTE", bytes((9, 9, 9)))

    def of_rows(row_bytes: int) -> bytes:
        pixels = chunk(b"IDAT", zlib.compress(bytes(row_bytes)))
        return png_chunks.SIGNATURE + header + palette + pixels + chunk(b"IEND")

    spec = ImageSpec(height=height, width=width, channels=3)
    assert (decode(of_rows(sum(lines)), spec, ImageLimits()) == 9).all()
    with pytest.raises(CorruptImage):
        decode(of_rows(sum(lines) - 1), spec, ImageLimits())
