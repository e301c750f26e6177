"""python -m tests.fuzz.run: fuzz bodies and images, guided by what is covered, and keep what was found.

Inputs that reach something new are merged into tests/fuzz/corpus, all of which the tests go through. One that
breaks a target ends the run, and is left in the working folder as crash-…
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image

CORPUS = Path(__file__).parent / "corpus"
SAMPLE = Path(__file__).parents[2] / "model" / "samples" / "scratches.png"
# A finding is also what takes longer or more.
OPTIONS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=4096")


def body_seeds() -> Iterator[bytes]:
    """One of each form."""
    data = [[0, "iVBORw0KGgo="], [1, None], [2, "@db.s.images/a.png", {"evidence": True}], [3, "https://a/b"]]
    batch = json.dumps({"data": data}).encode()
    yield from (b"\0" + batch, b"\1" + gzip.compress(batch, mtime=0), b"\2" + zlib.compress(batch))
    yield b'\4--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\nx\r\n--b--\r\n'


def image_seeds() -> Iterator[bytes]:
    """Every format in every mode that it has, small enough for a fuzzer to get anywhere."""
    with Image.open(SAMPLE) as sample:
        small = sample.resize((20, 16))
    for mode in ("1", "L", "P", "RGB", "I;16"):
        for kind, options in (
            ("BMP", {}),
            ("PNG", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "jpeg"}),
            ("JPEG", {"progressive": True}),
            ("WEBP", {"lossless": True}),
        ):
            file = BytesIO()
            try:
                small.convert(mode).save(file, kind, **options)
            except (OSError, ValueError):
                continue
            yield file.getvalue()


SEEDS = {"body": body_seeds, "image": image_seeds}


def fuzz(target: str, seconds: int) -> int:
    """The exit status of libFuzzer."""
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds, tempfile.TemporaryDirectory() as found:
        for number, seed in enumerate(SEEDS[target]()):
            (Path(seeds) / str(number)).write_bytes(seed)
        limits = [*OPTIONS, f"-max_total_time={seconds}", "-print_final_stats=1"]
        status = _libfuzzer(target, *limits, found, str(kept), seeds)
        return status or _libfuzzer(target, *OPTIONS, "-merge=1", str(kept), seeds, found)


def _libfuzzer(target: str, *arguments: str) -> int:
    command = [sys.executable, "-m", "tests.fuzz.libfuzzer", target, *arguments]
    return subprocess.run(command, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *SEEDS], help="(default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each (default: 600)")
    options = parser.parse_args()
    for target in options.targets or SEEDS:
        if status := fuzz(target, options.seconds):
            sys.exit(status)


if __name__ == "__main__":
    main()
