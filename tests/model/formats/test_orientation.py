"""The orientation is found among other metadata, which is not decoded."""

import struct

import pytest

from model.formats import UPRIGHT, Metadata

ORDERS = {b"II*\0": "<", b"MM\0*": ">", b"II\0*": "<", b"MM*\0": ">"}
BYTE, SHORT, LONG, RATIONAL, UNKNOWN = 1, 3, 4, 5, 200


def exif(
    entries: list[tuple[int, int, int, int]], signature: bytes = b"II*\0", prefix: bytes = b"Exif\0\0"
) -> bytes:
    """A TIFF structure of entries (tag, kind, number of values, value)."""
    order = ORDERS[signature]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, values, value in entries:
        inline = struct.pack(
            f"{order}HH" if kind == SHORT else f"{order}I", *([value, 0][: 2 if kind == SHORT else 1])
        )
        directory += struct.pack(f"{order}HHI", tag, kind, values) + inline
    return prefix + signature + struct.pack(f"{order}I", 8) + directory + bytes(4)


@pytest.mark.parametrize("signature", ORDERS)
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
@pytest.mark.parametrize("kind", [SHORT, LONG])
def test_orientation_is_read_in_every_byte_order(signature: bytes, prefix: bytes, kind: int) -> None:
    block = exif([(0x0100, LONG, 1, 99), (0x0112, kind, 1, 6)], signature, prefix)
    assert Metadata(block).orientation() == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II+\0" + bytes(100),
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        exif([(0x0110, SHORT, 1, 6)]),
        exif([(0x0112, RATIONAL, 1, 6)]),
        exif([(0x0112, UNKNOWN, 1, 6)]),
        exif([(0x0112, SHORT, 2**31, 6)]),
        exif([(0x0112, SHORT, 0, 6)]),
        exif([(0x0112, SHORT, 1, 6)])[:-8],
    ],
)
def test_metadata_without_an_orientation_is_upright(block: bytes) -> None:
    assert Metadata(block).orientation() == UPRIGHT


def test_first_of_two_values_and_a_byte_are_read() -> None:
    assert Metadata(exif([(0x0112, SHORT, 2, 6)])).orientation() == 6
    assert Metadata(exif([(0x0112, BYTE, 1, 6)])).orientation() == 6


def test_first_of_two_orientations_is_used() -> None:
    assert Metadata(exif([(0x0112, SHORT, 1, 3), (0x0112, SHORT, 1, 6)])).orientation() == 3


@pytest.mark.slow
def test_orientation_is_found_behind_every_other_tag() -> None:
    entries = [(tag, RATIONAL, 2**31, 8) for tag in range(65_535) if tag != 0x0112]
    assert Metadata(exif([*entries, (0x0112, SHORT, 1, 8)])).orientation() == 8


@pytest.mark.parametrize("xmp", [b'tiff:Orientation="8"', b"<tiff:Orientation>8</tiff:Orientation>"])
def test_xmp_is_used_if_exif_has_no_orientation(xmp: bytes) -> None:
    assert Metadata(b"", b"<x>" + xmp).orientation() == 8
    assert Metadata(exif([(0x0110, SHORT, 1, 6)]), xmp).orientation() == 8
    assert Metadata(exif([(0x0112, SHORT, 1, 3)]), xmp).orientation() == 3
    assert Metadata(exif([(0x0112, SHORT, 1, UPRIGHT)]), xmp).orientation() == UPRIGHT
