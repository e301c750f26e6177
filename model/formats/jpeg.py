"""The segments of a JPEG (ITU-T T.81, annex B): those that pixels depend on, and the number of scans."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from model.errors import ImageTooLarge
from model.formats import Metadata

# Pillow reads a header marker by marker in Python. Ordinary files have at most a few hundred segments.
MAX_HEADER_SEGMENTS = 10_000
# Tables and frame header together; ordinary files have a few kilobytes.
MAX_TABLE_BYTES = 128 * 1024
# Parsed in Python to count the scans of a file that may have too many. Restart markers are skipped in C.
MAX_MARKERS = 10_000
# A scan costs a pass over the whole image, even when it is empty; progressive files have ten to twenty.
MAX_SCANS = 100
# 25 scans of 16 million pixels. Ten scans with content cost as much.
MAX_SCANNED_PIXELS = 400_000_000

_FILLER_BYTES = 64
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
# Frame headers, Huffman and arithmetic tables; quantization tables, line count, restart interval and so on.
_TABLES = frozenset({*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDB, 0xE0)})
# Tables have the numbers between these frame headers.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC9})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_UNUSUAL_FRAMES = {0xC3: "lossless", 0xCB: "lossless", **dict.fromkeys(_HIERARCHICAL, "hierarchical")}
_USUAL_BITS, _USUAL_COMPONENTS = 8, (1, 3, 4)
_COEFFICIENTS = 64
_FRAME = struct.Struct(">BHHB")
# libjpeg guesses the colour space from these two, and ignores shorter ones.
_COLOUR_SPACE = {_APP0: (b"JFIF\0", 18), _APP14: (b"Adobe", 16)}
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_FIRST_WITH_LENGTH = 0xC0
# FF, then no stuffed zero, fill byte or restart.
_HEADER_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SCAN_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")


def strip(data: bytes) -> tuple[bytes, Metadata]:
    """The file without application segments, comments and fill bytes before its first scan.

    A file without a scan is cut where its header ends. Raises ImageTooLarge.
    """
    view = memoryview(data)
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    table_bytes = 0
    exif: list[bytes] = []
    xmp = b""
    position = 2
    for _ in range(MAX_HEADER_SEGMENTS):
        found = _HEADER_MARKER.search(data, position)
        if found is None:
            break
        start, marker = found.start(), data[found.start() + 1]
        if marker == _START_OF_SCAN:
            kept.append(view[start:])
            break
        position = _segment_end(data, start)
        name, least_bytes = _COLOUR_SPACE.get(marker, (b"", 0))
        states_colours = name and data.startswith(name, start + 4) and position - start >= least_bytes
        if marker in _TABLES or states_colours:
            kept.append(view[start:position])
            table_bytes += position - start
        elif marker == _APP1 and data.startswith(_EXIF, start + 4):
            exif.append(data[start + 4 + (len(_EXIF) if exif else 0) : position])
        elif marker == _APP1 and data.startswith(_XMP, start + 4):
            xmp = data[start + 4 + len(_XMP) : position]
        elif not _APP0 <= marker <= _APP15 and marker != _COMMENT:
            kept.append(view[start : start + 2])  # decoders fail here
            break
    else:
        raise ImageTooLarge(
            f"A JPEG must have at most {MAX_HEADER_SEGMENTS} segments before its first scan. Received: more."
        )
    if table_bytes > MAX_TABLE_BYTES:
        raise ImageTooLarge(
            f"The tables of a JPEG must have at most {MAX_TABLE_BYTES} bytes. Received: {table_bytes}."
        )
    return b"".join(kept), Metadata(b"".join(exif), xmp)


def refuse_stripped_scans(stripped: bytes, pixels: int) -> None:
    """As refuse_scans, for a file that `strip` returned; most have one scan, which takes no counting."""
    if not _has_one_scan(stripped):
        refuse_scans(stripped, pixels)


def refuse_scans(data: bytes, pixels: int) -> None:
    """Raise ImageTooLarge when a JPEG with `pixels` pixels has too many scans for its size."""
    max_scans = min(MAX_SCANS, max(1, MAX_SCANNED_PIXELS // max(1, pixels)))
    # A count of the bytes is fast and never too low; markers are parsed only if it exceeds the limit.
    if data.count(bytes((0xFF, _START_OF_SCAN))) <= max_scans:
        return
    scans = 0
    for number, place in enumerate(_markers(data)):
        scans += data[place] == _START_OF_SCAN
        if scans > max_scans:
            raise ImageTooLarge(
                f"A JPEG of {pixels} pixels must have at most {max_scans} scans. Received: more."
            )
        if number == MAX_MARKERS:
            raise ImageTooLarge(
                f"A JPEG of many scans must have at most {MAX_MARKERS} markers. Received: more."
            )
        if scans and data[place] == _END_OF_IMAGE:
            break


def _markers(data: bytes) -> Iterator[int]:
    """Yield the places of markers that may have a length, past their FF.

    Like decoders, skip an unknown marker without a length.
    """
    position = 0
    while found := _SCAN_MARKER.search(data, position):
        marker = found.group(1)[0]
        yield found.start(1)
        if marker < _FIRST_WITH_LENGTH or marker in (_START_OF_IMAGE, _END_OF_IMAGE):
            position = found.end()
        else:
            position = _segment_end(data, found.start())


def with_an_end(data: bytes) -> tuple[bytes, bytes]:
    """Two files with an end-of-image marker. Before it, one has bits of 0 and the other one nearly only of 1.

    A decoder that misses even a single bit reads another symbol from each.
    """
    data, end = data.rstrip(b"\xff"), bytes((0xFF, _END_OF_IMAGE))
    return data + bytes(_FILLER_BYTES) + end, data + b"\xfe" * _FILLER_BYTES + end


def has_all_scans(data: bytes) -> bool:
    """Whether every coefficient of every component is sent to its last bit (ITU-T T.81, B.2.3)."""
    frame, sent = frame_of(data), set[tuple[int, int]]()
    for place in _markers(data):
        after = place + 4 + 2 * data[place + 3] if len(data) > place + 3 else len(data)
        if data[place] == _START_OF_SCAN and len(data) > after + 2 and not data[after + 2] & 0xF:
            band = range(data[after], data[after + 1] + 1)
            sent |= {(component, at) for component in data[place + 4 : after : 2] for at in band}
    return frame is not None and len(sent) == frame.components * _COEFFICIENTS


class Frame(NamedTuple):
    """A frame header (ITU-T T.81, B.2.2)."""

    marker: int
    bits: int
    height: int
    """0 if the first scan states it."""
    width: int
    components: int


def frame_of(data: bytes) -> Frame | None:
    """The first frame header before the first scan."""
    for start in _header_segments(data):
        if data[start + 1] in _FRAMES and len(data) > start + 9:
            return Frame(data[start + 1], *_FRAME.unpack_from(data, start + 4))
    return None


def unusual_kind(data: bytes) -> str | None:
    """What a JPEG is that few programs decode; None for the usual kinds."""
    frame = frame_of(data)
    if frame is None:
        return None
    if frame.marker in _UNUSUAL_FRAMES:
        return f"a {_UNUSUAL_FRAMES[frame.marker]} one"
    if frame.bits != _USUAL_BITS or frame.components not in _USUAL_COMPONENTS:
        return f"{frame.bits} bits, {frame.components} components"
    return None


def is_usual_colour(frame: Frame) -> bool:
    """Whether its pixels are grey or three colours of 8 bits."""
    return frame.bits == _USUAL_BITS and frame.components in (1, 3)


def _has_one_scan(data: bytes) -> bool:
    """Whether the first scan of a sequential file sends all components: decoders then read no other one."""
    frame = frame_of(data)
    if frame is None or frame.marker not in _SEQUENTIAL:
        return False
    *_, start = _header_segments(data)
    return data[start + 1] == _START_OF_SCAN and data[start + 4 : start + 5] >= bytes([frame.components])


def _header_segments(data: bytes) -> Iterator[int]:
    """Yield the places of the segments of the header, up to the first scan's."""
    position = 2
    while found := _HEADER_MARKER.search(data, position):
        yield found.start()
        if found[1][0] == _START_OF_SCAN:
            return
        position = _segment_end(data, found.start())


def _segment_end(data: bytes, start: int) -> int:
    return start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
