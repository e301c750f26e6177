"""CPU-milliseconds to decode an image for the default network: python -m tests.benchmarks.decoding.

Pillow and OpenCV decode as most services do: the whole file, its colours, then a resize. OpenCV is measured
if `cv2` is installed (`pip install opencv-python-headless`), on one thread. Rounds are interleaved; the
pictures are drawn samples at the size of a camera, with noise. Pixels that differ from Pillow's fail the run,
and so does an environment without kornia-rs, by which this service decodes as shipped.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

import numpy as np
from PIL import Image

from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits
from tests.benchmarks.images import JPEG_QUALITY
from tests.benchmarks.served import Mislabelled
from tests.benchmarks.tables import machine, write_table
from tests.draw_samples import SEEDS, draw

Decode = Callable[[bytes], object]

AIMS_MS = {
    "200 x 200 grey JPEG": 0.15,
    "200 x 200 grey PNG": 0.35,
    "1600 x 1200 colour JPEG": 4.0,
    "4000 x 3000 colour JPEG": 22.0,
}
"""Of this service's median."""
MOST_DIFFERENCE = 2.0
"""Mean, of 255: what other filters and a decoding at a part of the size change."""
NOISE = 4.0
LEAST_SECONDS = 0.02
"""A round decodes an image until this much CPU time has passed: the clock's steps are then small."""


def pictures() -> dict[str, bytes]:
    """Files by description."""
    return {
        "200 x 200 grey JPEG": _file(200, 200, "L", "JPEG"),
        "200 x 200 grey PNG": _file(200, 200, "L", "PNG"),
        "1600 x 1200 colour JPEG": _file(1600, 1200, "RGB", "JPEG"),
        "4000 x 3000 colour JPEG": _file(4000, 3000, "RGB", "JPEG"),
        "1600 x 1200 grey PNG": _file(1600, 1200, "L", "PNG"),
        "2048 x 1536 16-bit TIFF": _file(2048, 1536, "I;16", "TIFF"),
    }


def _file(width: int, height: int, mode: str, file_format: str) -> bytes:
    name = next(iter(SEEDS))
    drawn = Image.fromarray(draw(name, seed=SEEDS[name])).resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0.0, NOISE, (height, width))
    grey = np.clip(np.asarray(drawn) + noise, 0, 255)
    image = Image.fromarray((grey * 257).astype(np.uint16) if mode == "I;16" else grey.astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, file_format, quality=JPEG_QUALITY)
    return file.getvalue()


def decoders(spec: ImageSpec) -> dict[str, Decode]:
    limits = ImageLimits()
    found: dict[str, Decode] = {
        "ext-classify": lambda data: decode(data, spec, limits),
        "Pillow": lambda data: _decode_by_pillow(data, spec),
    }
    if (by_opencv := _opencv(spec)) is not None:
        found["OpenCV"] = by_opencv
    return found


def _decode_by_pillow(data: bytes, spec: ImageSpec) -> object:
    with Image.open(io.BytesIO(data)) as opened:
        deep = opened.mode.startswith("I")  # convert would clip it
        shallow = Image.fromarray((np.asarray(opened) // 257).astype(np.uint8)) if deep else opened
        image = shallow.convert("L" if spec.channels == 1 else "RGB")
    return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BILINEAR))


def _opencv(spec: ImageSpec) -> Decode | None:
    try:
        import cv2  # noqa: PLC0415 - not a dependency of the project
    except ImportError:
        return None
    cv2.setNumThreads(1)
    flag = cv2.IMREAD_GRAYSCALE if spec.channels == 1 else cv2.IMREAD_COLOR_RGB

    def decode_by_opencv(data: bytes) -> object:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        return cv2.resize(pixels, (spec.width, spec.height), interpolation=cv2.INTER_AREA)

    return decode_by_opencv


def cpu_ms(decode_one: Decode, data: bytes) -> float:
    """CPU-milliseconds an image, in one round."""
    done, started = 0, time.process_time()
    while (spent := time.process_time() - started) < LEAST_SECONDS:
        decode_one(data)
        done += 1
    return spent / done * 1000


def measure(rounds: int, spec: ImageSpec) -> dict[str, dict[str, list[float]]]:
    """The rounds' CPU-milliseconds, by picture and decoder."""
    found = decoders(spec)
    spent: dict[str, dict[str, list[float]]] = {}
    for picture, data in pictures().items():
        require_same_pixels(found, data)
        spent[picture] = {name: [] for name in found}
        for turn in range(rounds):
            for name in list(found) if turn % 2 == 0 else reversed(found):
                spent[picture][name].append(cpu_ms(found[name], data))
    return spent


def require_same_pixels(found: Mapping[str, Decode], data: bytes) -> None:
    """Raises Mislabelled unless all decode to Pillow's pixels, apart from their filters."""
    expected = np.asarray(found["Pillow"](data), np.float32).squeeze()
    for name, decode_one in found.items():
        difference = np.abs(np.asarray(decode_one(data), np.float32).squeeze() - expected).mean()
        if not difference <= MOST_DIFFERENCE:
            raise Mislabelled(
                f"{name} must decode to Pillow's pixels. Received: {difference:.1f} of 255 off."
            )


def row(picture: str, spent: Mapping[str, list[float]]) -> list[str]:
    ours = spent["ext-classify"]
    aim, middle = AIMS_MS.get(picture), statistics.median(ours)
    met = "–" if aim is None else f"at most {aim:g}: {'yes' if middle <= aim else 'no'}"
    cells = [
        f"{min(ms):.2f}, {statistics.median(ms):.2f} "
        f"({statistics.median(a / b for a, b in zip(ms, ours, strict=True)):.2f}x)"
        for ms in spent.values()
    ]
    return [picture, *cells, met]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    spent = measure(rounds, load_artifact(DEFAULT_MODEL_PATH).card.image)
    names = next(iter(spent.values()))
    write_table(
        "decoding",
        ["CPU-ms an image: least, median", *names, "aim of ext-classify, met"],
        [row(*measured) for measured in spent.items()],
        about=f"Pillow {version('pillow')}, kornia-rs {version('kornia-rs')}; {machine()}",
    )


if __name__ == "__main__":
    main()
