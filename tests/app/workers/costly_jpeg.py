"""A small JPEG that takes long to decode: the maximum number of passes over all coefficients."""

_MARKERS = {"begin": b"\xff\xd8", "end": b"\xff\xd9"}
_QUANTISATION, _HUFFMAN, _PROGRESSIVE, _SCAN = 0xDB, 0xC4, 0xC2, 0xDA
# "End of band" for the next 32767 blocks: a code of one bit, and 14 that say how many.
_LONG_RUN = 0xE0
_RUN_BLOCKS = 32767


def costly_jpeg(side: int = 4000, scans: int = 25) -> bytes:
    """A grey JPEG. Source: ITU-T T.81, annex G."""
    runs = "0" + "1" * 14
    bits = runs * (-(-((side // 8) ** 2) // _RUN_BLOCKS) + 1)
    bits += "1" * (-len(bits) % 8)
    empty = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    size = side.to_bytes(2, "big")
    first = _scan(0, 0, 0x00) + b"\0" + _scan(1, 63, 0x01) + empty
    return b"".join(
        [
            _MARKERS["begin"],
            _segment(_QUANTISATION, b"\0" + b"\1" * 64),
            _segment(_PROGRESSIVE, b"\x08" + size + size + b"\x01\x01\x11\x00"),
            _table(0x00, 0),
            _table(0x10, _LONG_RUN),
            first,
            *[_scan(1, 63, 0x10) + empty] * (scans - 2),
            _MARKERS["end"],
        ]
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _table(place: int, symbol: int) -> bytes:
    """One code of one bit."""
    return _segment(_HUFFMAN, bytes([place, 1, *[0] * 15, symbol]))


def _scan(first: int, last: int, approximation: int) -> bytes:
    return _segment(_SCAN, bytes([1, 1, 0, first, last, approximation]))
