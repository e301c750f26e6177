"""python -m tests.trials.pictures: a thousand mixed images, decoded here, by libvips and by OpenCV.

Needs `pip install pyvips[binary] opencv-python-headless tifffile imagecodecs`, unlike the project. Where the
pixels that a file was made of are known, they decide; CONVENTIONS says why the others show something else.
tests/model/test_mixed_images.py decodes those that Pillow writes.
"""

import io
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageCms

from model.errors import InputError
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits
from tests.benchmarks.tables import write_table

RESULTS = Path(__file__).parent / "results"
WIDTH, HEIGHT = 61, 43
# Decoders of lossy formats differ in how they interpolate colours and round.
LOSSLESS_LEVELS, LOSSY_LEVELS, LOSSY_MEAN = 2, 64, 4.0
CONVENTIONS = {
    "alpha nowhere set": ("BMP 888", "BMP unused alpha"),
    "five bits of 1 are 255": ("BMP 555", "BMP 565"),
    "an unspecified extra sample is no alpha": ("rgbx", "grey+extra"),
    "only the end marker is missing": ("without_end",),
    "the whole image, not its thumbnail": ("thumbnail",),
    "the others lack the codec": ("zstd", "lzma"),
    "the others lack the layout": ("planes tiled", "LAB", "BMP palette", "BMP full"),
}


# A format and a mode of Pillow, an EXIF orientation, and options to write with.
Recipe: TypeAlias = tuple[str, str, int, dict[str, Any]]


class Picture(NamedTuple):
    """A file, and the pixels that it was made of where they are known, upright, on white, in 8 bits."""

    name: str
    """Format, then what is special, by spaces."""
    data: bytes
    expected: np.ndarray | None = None

    @property
    def kind(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def is_lossy(self) -> bool:
        return self.kind == "JPEG" or any(word in self.name for word in ("lossy", "YCbCr", "LAB"))


def scene() -> np.ndarray:
    """Colours (HEIGHT, WIDTH, 3) that vary smoothly, so that codecs keep them, and without symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    ramps = [x * 255 / WIDTH, y * 255 / HEIGHT, 128 + 100 * np.sin(x / 9.0) * np.cos(y / 7.0)]
    pixels = np.stack(ramps, axis=2)
    pixels[4:14, 6:22] *= 0.5
    return np.rint(pixels).astype(np.uint8)


SCENE = scene()
GREY = np.asarray(Image.fromarray(SCENE).convert("L"))
ALPHA = np.tile(np.rint(np.linspace(0, 255, WIDTH)).astype(np.uint8), (HEIGHT, 1))


def pictures() -> Iterator[Picture]:
    """All of them."""
    yield from by_pillow()
    yield from by_hand()
    yield from by_tifffile()
    yield from by_vips_writer()
    yield from by_opencv_writer()


ORIENTATIONS = range(1, 9)
DEEP = ("I;16", "I;16B", "F", "I")


def by_pillow() -> Iterator[Picture]:
    """Those whose pixels are known from how they are made."""
    for file_format, mode, orientation, options in chain(of_cameras(), of_other_options()):
        yield turned(file_format, mode, orientation, **options)


def of_cameras() -> Iterator[Recipe]:
    """Every mode under every orientation."""
    for orientation, is_progressive in product(ORIENTATIONS, (False, True)):
        for mode, subsampling in (("L", 0), ("CMYK", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)):
            options = {"quality": 92, "progressive": is_progressive, "subsampling": subsampling}
            yield "JPEG", mode, orientation, options
    for orientation, mode in product(ORIENTATIONS, ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")):
        yield "PNG", mode, orientation, {}
    for orientation, mode in product(ORIENTATIONS, ("RGB", "RGBA")):
        yield "WEBP", mode, orientation, {"lossless": True, "exact": True}
        yield "WEBP", mode, orientation, {"quality": 95}
    colours = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", *DEEP)
    for orientation, mode, compression in product(ORIENTATIONS, colours, ("raw", "tiff_lzw", "tiff_deflate")):
        yield "TIFF", mode, orientation, {"compression": compression}
    for orientation, compression in product(ORIENTATIONS, ("raw", "group3", "group4")):
        yield "TIFF", "1", orientation, {"compression": compression}


def of_other_options() -> Iterator[Recipe]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield "BMP", mode, 1, {}
    for quality, rows in product((60, 75, 100), (0, 1)):
        yield "JPEG", "RGB", 1, {"quality": quality, "optimize": True, "restart_marker_rows": rows}
    for options in (
        {"keep_rgb": True},
        {"dpi": (300, 300)},
        {"comment": "c"},
        {"icc_profile": b"no profile"},
    ):
        yield "JPEG", "RGB", 1, {"quality": 95, **options}
    for bits, more in product((1, 2, 4, 8), ({}, {"transparency": 0})):
        yield "PNG", "P", 1, {"bits": bits, "colours": 2**bits, **more}
    for level in (0, 1, 9):
        yield "PNG", "RGB", 1, {"compress_level": level}
    for mode, key in (("L", 0), ("RGB", (0, 0, 0)), ("I;16", 0)):
        yield "PNG", mode, 1, {"transparency": key}
    for mode, file_format, frames in product(("L", "RGB"), ("TIFF", "PNG", "WEBP"), (2, 3)):
        more = {"append_images": [Image.fromarray(255 - SCENE)] * (frames - 1), "save_all": True}
        yield file_format, mode, 1, more | ({"lossless": True} if file_format == "WEBP" else {})


def turned(file_format: str, mode: str, orientation: int, colours: int = 256, **options: Any) -> Picture:
    """SCENE in a mode of Pillow, stored as a camera stores it under an orientation."""
    image = in_mode(mode, colours)
    shown = decoded_colours(image, options.get("transparency"))
    if (file_format, mode) == ("BMP", "RGBA"):
        shown = SCENE  # the fourth byte is not used
    method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = image if method is None else image.transpose(Image.Transpose(method))
    if orientation > 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    written = {name: value for name, value in options.items() if name not in ("exif", "append_images")}
    lossy = file_format == "WEBP" and "quality" in options
    words = [file_format, mode, *(f"{name}={value}" for name, value in written.items())]
    name = " ".join([*words, f"orientation={orientation}", *(["lossy"] if lossy else [])])
    file = io.BytesIO()
    stored.save(file, file_format, **options)
    return Picture(name, file.getvalue(), shown)


def in_mode(mode: str, colours: int) -> Image.Image:
    image = Image.fromarray(SCENE)
    deep = {
        "I;16": GREY.astype(np.uint16) * 257,
        "F": GREY.astype(np.float32) / 255,
        "I": GREY.astype(np.int32),
    }
    if mode in deep:
        return Image.fromarray(deep[mode])
    if mode == "I;16B":
        return Image.frombytes(mode, (WIDTH, HEIGHT), (GREY.astype(">u2") * 257).tobytes())
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    image = image.quantize(colours) if mode == "P" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(ALPHA))
    return image


def decoded_colours(image: Image.Image, transparency: Any) -> np.ndarray:
    """What a viewer shows of an upright image, on white."""
    if image.mode in DEEP:
        shown = np.stack([GREY] * 3, axis=2)
    elif image.mode == "LAB":
        shown = SCENE
    else:
        shown = np.asarray(image.convert("RGB"))
    if image.mode in ("LA", "RGBA"):
        opacity = ALPHA[..., np.newaxis] / 255
        shown = np.rint(shown * opacity + 255 * (1 - opacity)).astype(np.uint8)
    if transparency is not None:
        key = np.asarray(image) == np.asarray(transparency)
        shown = np.where((key.all(axis=2) if key.ndim == 3 else key)[..., np.newaxis], 255, shown)
    return shown.astype(np.uint8)


def by_hand() -> Iterator[Picture]:
    """BMPs that no library here writes, and files that are cut, repaired or of other formats."""
    packed = {
        "555": (
            16,
            (0x7C00, 0x3E0, 0x1F, 0),
            lambda c: (c[..., 0] >> 3) << 10 | (c[..., 1] >> 3) << 5 | c[..., 2] >> 3,
        ),
        "565": (
            16,
            (0xF800, 0x7E0, 0x1F, 0),
            lambda c: (c[..., 0] >> 3) << 11 | (c[..., 1] >> 2) << 5 | c[..., 2] >> 3,
        ),
        "888": (32, (0xFF0000, 0xFF00, 0xFF, 0), lambda c: c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]),
        "rgba": (32, (0xFF, 0xFF00, 0xFF0000, 0), lambda c: c[..., 2] << 16 | c[..., 1] << 8 | c[..., 0]),
        "unused alpha": (
            32,
            (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
            lambda c: c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2],
        ),
        "full alpha": (
            32,
            (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
            lambda c: 255 << 24 | c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2],
        ),
        "4444": (
            16,
            (0xF00, 0xF0, 0xF, 0xF000),
            lambda c: 15 << 12 | (c[..., 0] >> 4) << 8 | (c[..., 1] >> 4) << 4 | c[..., 2] >> 4,
        ),
        "2101010": (
            32,
            (0x3FF00000, 0xFFC00, 0x3FF, 0),
            lambda c: c[..., 0] << 22 | c[..., 1] << 12 | c[..., 2] << 2,
        ),
    }
    fives = np.rint((SCENE >> 3) * (255 / 31)).astype(np.uint8)
    sixes = np.rint((SCENE[..., 1] >> 2) * (255 / 63)).astype(np.uint8)
    shown = {"555": fives, "565": np.dstack([fives[..., 0], sixes, fives[..., 2]])}
    for name, (bits, masks, pack) in packed.items():
        for header_bytes in (40, 52, 56, 108, 124):
            for is_top_down in (False, True):
                values = pack(SCENE.astype(np.uint32))
                made = bmp(values, bits, masks, header_bytes, is_top_down=is_top_down)
                words = f"BMP {name} header={header_bytes} top_down={is_top_down}"
                yield Picture(words, made, shown.get(name, SCENE))
    for bits in (1, 4, 8):
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        index = (GREY.astype(int) * 2**bits // 256).astype(np.uint8)
        for is_core in (False, True):
            yield Picture(
                f"BMP palette bits={bits} core={is_core}",
                indexed_bmp(index, bits, palette, is_core=is_core),
                palette[index],
            )
    for quality in (75, 90):
        for options in ({}, {"progressive": True}):
            whole = turned("JPEG", "RGB", 1, quality=quality, **options)
            for cut in (1, 2):
                yield Picture(f"{whole.name} without_end={cut}", whole.data[:-cut], whole.expected)
    for file_format in ("GIF", "JPEG2000", "PPM", "TGA", "AVIF"):
        file = io.BytesIO()
        Image.fromarray(SCENE).save(file, file_format)
        yield Picture(f"other {file_format}", file.getvalue())


def bmp(
    values: np.ndarray, bits: int, masks: tuple[int, ...], header_bytes: int, *, is_top_down: bool
) -> bytes:
    rows = values.astype("<u2" if bits == 16 else "<u4")
    rows = rows if is_top_down else rows[::-1]
    row_bytes = -(-WIDTH * bits // 32) * 4
    pixels = b"".join(row.tobytes().ljust(row_bytes, b"\0") for row in rows)
    height = -HEIGHT if is_top_down else HEIGHT
    header = struct.pack("<IiiHHIIiiII", header_bytes, WIDTH, height, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    if header_bytes == 40:
        header += struct.pack("<3I", *masks[:3])
    else:
        header += struct.pack("<4I", *masks)[: header_bytes - 40]
        header = header.ljust(header_bytes, b"\0")
    return (
        struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(pixels), 0, 0, 14 + len(header))
        + header
        + pixels
    )


def indexed_bmp(index: np.ndarray, bits: int, palette: np.ndarray, *, is_core: bool) -> bytes:
    packed = np.packbits(
        np.unpackbits(index[..., np.newaxis], axis=2)[..., -bits:].reshape(HEIGHT, -1), axis=1
    )
    row_bytes = -(-WIDTH * bits // 32) * 4
    pixels = b"".join(row.tobytes()[:row_bytes].ljust(row_bytes, b"\0") for row in packed[::-1])
    if is_core:
        header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, bits) + palette[:, ::-1].tobytes()
    else:
        colours = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()
        header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, 0, len(pixels), 0, 0, 0, 0) + colours
    return (
        struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(pixels), 0, 0, 14 + len(header))
        + header
        + pixels
    )


# Options of tifffile for colours and for the way that they are stored.
RGB_OPTIONS, GREY_OPTIONS = {"photometric": "rgb"}, {"photometric": "minisblack", "planarconfig": "contig"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "": {},
    "MM": {"byteorder": ">"},
    "MM zlib predictor": {"byteorder": ">", "compression": "zlib", "predictor": True},
    "bigtiff": {"bigtiff": True},
    "zlib": {"compression": "zlib", "rowsperstrip": 7},
    "zlib predictor": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw"},
    "lzw predictor tiled": {"compression": "lzw", "predictor": True, "tile": (16, 32)},
    "tiled": {"tile": (32, 16)},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "lzma": {"compression": "lzma"},
    "planes": {"planarconfig": "separate"},
    "planes zlib": {"planarconfig": "separate", "compression": "zlib"},
    "planes tiled": {"planarconfig": "separate", "tile": (16, 16)},
}


def by_tifffile() -> Iterator[Picture]:
    import tifffile  # noqa: PLC0415 - not a dependency of the project

    for (name, (values, given)), (layout, options) in product(arrays_of_tiff().items(), LAYOUTS.items()):
        if "planes" in layout and values.ndim == 2:
            continue
        file = io.BytesIO()
        try:
            stored = np.moveaxis(values, 2, 0) if "planes" in layout else values
            tifffile.imwrite(file, stored, **given | options)
        except (ValueError, KeyError, NotImplementedError, TypeError, RuntimeError):
            continue  # no such combination
        yield Picture(f"TIFF {name} {layout}".strip(), file.getvalue(), shown_of(name))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(SCENE[::4, ::4], photometric="rgb", subfiletype=1)
        writer.write(SCENE, photometric="rgb")
    yield Picture("TIFF thumbnail first", file.getvalue(), SCENE)


def arrays_of_tiff() -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    arrays: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for dtype in ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"):
        white = 1 if dtype.startswith("float") else min(65535, np.iinfo(dtype).max)
        arrays[f"grey {dtype}"] = (GREY / 255 * white).astype(dtype), GREY_OPTIONS
        arrays[f"rgb {dtype}"] = (SCENE / 255 * white).astype(dtype), RGB_OPTIONS
    for dtype, times in (("uint8", 1), ("uint16", 257)):
        rgba, inked = (np.dstack([SCENE, ALPHA]), np.dstack([255 - SCENE, GREY * 0]))
        arrays |= {
            f"white-is-zero {dtype}": ((255 - GREY).astype(dtype) * times, {"photometric": "miniswhite"}),
            f"rgba {dtype}": (rgba.astype(dtype) * times, {**RGB_OPTIONS, "extrasamples": ["unassalpha"]}),
            f"rgbx {dtype}": (rgba.astype(dtype) * times, {**RGB_OPTIONS, "extrasamples": ["unspecified"]}),
            f"cmyk {dtype}": (inked.astype(dtype) * times, {"photometric": "separated"}),
        }
    for name, meaning in (("grey+extra", "unspecified"), ("grey+alpha", "unassalpha")):
        arrays[name] = np.dstack([GREY, ALPHA]), {**GREY_OPTIONS, "extrasamples": [meaning]}
    arrays["bilevel"] = GREY > 127, GREY_OPTIONS
    for bits in (10, 12, 14):
        options = {**GREY_OPTIONS, "bitspersample": bits}
        arrays[f"packed bits={bits}"] = GREY.astype(np.uint16) << (bits - 8), options
    return arrays


def shown_of(name: str) -> np.ndarray | None:
    """What a TIFF of by_tifffile shows, on white; None for what is too coarse to compare."""
    if "int8" in name.split() or name.startswith("packed"):
        return None
    whites = {"int16": 32767 / 65535}
    times = next((share for word, share in whites.items() if word in name.split()), 1.0)
    shown = SCENE if name.startswith(("rgb", "cmyk")) else np.stack([GREY] * 3, axis=2)
    if name == "bilevel":
        shown = np.where(shown > 127, 255, 0)
    if "rgba" in name or "+alpha" in name:
        opacity = ALPHA[..., np.newaxis] / 255
        shown = shown * opacity + 255 * (1 - opacity)
    return np.rint(shown * times).astype(np.uint8)


# Options of libvips's writers, by format.
VIPS_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "PNG": (
        *({"interlace": interlace, "compression": level} for interlace in (False, True) for level in (1, 9)),
        *({"palette": True, "bitdepth": bits} for bits in (1, 2, 4, 8)),
    ),
    "TIFF": (
        {"tile": True},
        {"tile": True, "pyramid": True, "tile_width": 16, "tile_height": 16},
        {"tile": True, "pyramid": True, "subifd": True, "tile_width": 16, "tile_height": 16},
        {"bigtiff": True},
        {"compression": "deflate"},
        {"compression": "lzw", "predictor": "horizontal"},
        {"compression": "packbits"},
        {"compression": "jpeg", "Q": 90},
        {"premultiply": True},
    ),
    "WEBP": ({"lossless": True}, {"Q": 90}, {"near_lossless": True}),
    "JPEG": ({"Q": 90}, {"Q": 90, "interlace": True}, {"Q": 90, "subsample_mode": "off"}),
}


def by_vips_writer() -> Iterator[Picture]:
    import pyvips  # noqa: PLC0415 - not a dependency of the project

    def image_of(pixels: np.ndarray, interpretation: str) -> Any:
        return pyvips.Image.new_from_array(pixels).copy(interpretation=interpretation)

    grey = image_of(GREY, "b-w")
    kinds = {
        "rgb": image_of(SCENE, "srgb"),
        "grey": grey,
        "rgba": image_of(np.dstack([SCENE, ALPHA]), "srgb"),
        "cmyk": image_of(np.dstack([255 - SCENE, GREY * 0]), "cmyk"),
        "rgb16": image_of(SCENE.astype(np.uint16) * 257, "rgb16"),
        "grey16": image_of(GREY.astype(np.uint16) * 257, "grey16"),
    }
    for (name, image), (file_format, several) in product(kinds.items(), VIPS_OPTIONS.items()):
        for options in several:
            lossy = " lossy" if "Q" in options or "near_lossless" in options or "palette" in options else ""
            suffix = {"JPEG": "jpg"}.get(file_format, file_format.lower())
            with suppress(pyvips.Error):  # no such combination
                data = image.write_to_buffer(f".{suffix}", **options)
                yield Picture(f"{file_format} vips {name} {options}{lossy}", data)
    for bits, is_inverted in product((1, 2, 4), (False, True)):
        data = grey.tiffsave_buffer(bitdepth=bits, miniswhite=is_inverted)
        yield Picture(f"TIFF vips bits={bits} white_is_zero={is_inverted}", data)


def by_opencv_writer() -> Iterator[Picture]:
    import cv2  # noqa: PLC0415 - not a dependency of the project
    import imagecodecs  # noqa: PLC0415 - not a dependency of the project

    bgr = SCENE[..., ::-1].copy()
    bgra = np.dstack([bgr, ALPHA])
    arrays = {
        "rgb": bgr,
        "grey": GREY,
        "rgba": bgra,
        "rgb16": bgr.astype(np.uint16) * 257,
        "grey16": GREY.astype(np.uint16) * 257,
        "rgba16": bgra.astype(np.uint16) * 257,
        "greyf": GREY.astype(np.float32) / 255,
        "rgbf": bgr.astype(np.float32) / 255,
        "rgbd": bgr.astype(np.float64) / 255,
    }
    for (name, values), suffix in (
        (a, b) for a in arrays.items() for b in (".png", ".bmp", ".tiff", ".jpg", ".webp")
    ):
        try:
            is_written, data = cv2.imencode(suffix, values)
        except cv2.error:
            continue
        if is_written:
            kind = {".png": "PNG", ".bmp": "BMP", ".tiff": "TIFF", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
            yield Picture(f"{kind} opencv {name}{' lossy' if kind == 'WEBP' else ''}", data.tobytes())
    ink = np.dstack([255 - SCENE, GREY // 4])
    for colours in ("CMYK", "YCCK"):
        for level in (60, 90, 100):
            yield Picture(
                f"JPEG imagecodecs {colours} level={level}",
                imagecodecs.jpeg8_encode(ink, level=level, colorspace="CMYK", outcolorspace=colours),
            )
    for bits in (8, 12):
        values = GREY.astype(np.uint16) << 4 if bits == 12 else GREY
        yield Picture(
            f"JPEG imagecodecs bits={bits}", imagecodecs.jpeg8_encode(values, level=95, bitspersample=bits)
        )
    yield Picture("JPEG imagecodecs lossless", imagecodecs.jpeg8_encode(GREY, lossless=True))


def decoded_here(data: bytes, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return decode(data, ImageSpec(height=height, width=width, channels=3), ImageLimits())


def decoded_by_vips(data: bytes) -> np.ndarray:
    """RGB in 8 bits on white. Raises pyvips.Error."""
    import pyvips  # noqa: PLC0415 - not a dependency of the project

    image = pyvips.Image.new_from_buffer(data, "", fail_on="truncated").autorot()
    if image.interpretation == "cmyk":
        return from_ink(image.numpy().astype(float) / (65535 if image.format == "ushort" else 255))
    if image.interpretation in ("lab", "labs"):
        image = image.colourspace("srgb")
    values = image.numpy().astype(float)
    values = values[..., np.newaxis] if values.ndim == 2 else values
    return on_white(values, is_whole=image.format not in ("float", "double"))


def decoded_by_opencv(data: bytes) -> np.ndarray:
    """RGB in 8 bits on white. Raises ValueError."""
    import cv2  # noqa: PLC0415 - not a dependency of the project

    flags = cv2.IMREAD_UNCHANGED
    values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if values is None:
        raise ValueError("not decoded")
    values = values[..., np.newaxis] if values.ndim == 2 else values
    values = values[..., [2, 1, 0, *range(3, values.shape[2])]] if values.shape[2] >= 3 else values
    return on_white(values.astype(float), is_whole=values.dtype.kind in "ui")


def on_white(values: np.ndarray, *, is_whole: bool) -> np.ndarray:
    """Colours of any depth (h, w, 1 to 4) on white, in 8 bits: white is 1, 255 or 65535."""
    white = next(
        (white for white in (1.0, 255.0, 65535.0) if values.max() <= white and (white > 1 or not is_whole)),
        values.max(),
    )
    values = values / white
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:]
        values = values[..., :-1] * alpha + 1 - alpha
    values = np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values[..., :3]
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def from_ink(ink: np.ndarray) -> np.ndarray:
    """CMYK by the formula, as Pillow converts it: libvips uses a printer's profile."""
    return np.rint(255 * (1 - ink[..., :3]) * (1 - ink[..., 3:4])).astype(np.uint8)


def is_same(ours: np.ndarray, others: np.ndarray, picture: Picture) -> bool:
    if ours.shape != others.shape:
        return False
    differences = np.abs(ours.astype(int) - others.astype(int))
    if not picture.is_lossy:
        return bool(differences.max() <= LOSSLESS_LEVELS)
    return bool(differences.max() <= LOSSY_LEVELS and differences.mean() <= LOSSY_MEAN)


class Verdict(NamedTuple):
    kind: str
    detail: str = ""


def judge(picture: Picture) -> Verdict:
    others: dict[str, np.ndarray] = {}
    for name, decode_by in (("libvips", decoded_by_vips), ("OpenCV", decoded_by_opencv)):
        with suppress(Exception):  # pyvips.Error, cv2.error and others
            others[name] = decode_by(picture.data)
    known = others if picture.expected is None else {"its maker": picture.expected}
    size = next(iter(known.values())).shape[:2] if known else (HEIGHT, WIDTH)
    try:
        ours = decoded_here(picture.data, size)
    except InputError as error:
        return Verdict(f"refused: {error.code}", kind_of(error))
    if any(is_same(ours, pixels, picture) for pixels in others.values()):
        return Verdict("as libvips or OpenCV")
    if picture.expected is not None and is_same(ours, picture.expected, picture):
        return Verdict("as it was made", convention_of(picture))
    return Verdict("different", f"of {', '.join(known) or 'none'}")


def kind_of(error: InputError) -> str:
    """What a message names, without the byte order; other formats have no name."""
    kind = error.message.partition("Received: ")[2].rstrip(".")
    return (
        "another format"
        if "bytes beginning" in kind
        else kind.removesuffix(", little-endian").removesuffix(", big-endian")
    )


def convention_of(picture: Picture) -> str:
    named = (rule for rule, words in CONVENTIONS.items() if any(word in picture.name for word in words))
    return next(named, "?")


def main() -> int:
    warnings.simplefilter("ignore")
    verdicts = [(picture, judge(picture)) for picture in pictures()]
    counts = Counter((picture.kind, verdict.kind, verdict.detail) for picture, verdict in verdicts)
    rows = [
        [kind, verdict, detail, str(number)] for (kind, verdict, detail), number in sorted(counts.items())
    ]
    rows.append(["all", "", "", str(len(verdicts))])
    write_table(
        "pictures",
        ("format", "decoded", "why", "files"),
        rows,
        command="python -m tests.trials.pictures",
        about="every file decoded by this project, libvips and OpenCV",
        folder=RESULTS,
    )
    unexplained = [
        picture.name
        for picture, verdict in verdicts
        if verdict.kind == "different" or verdict.detail == "?" or "corrupt" in verdict.kind
    ]
    print(*unexplained, sep="\n")
    return len(unexplained) > 0


if __name__ == "__main__":
    sys.exit(main())
