"""python -m tests.fuzz.run: fuzz requests, bodies, JSON and images, and keep the new inputs.

Inputs that reach new code are merged into tests/fuzz/corpus, which the tests run. An input that breaks a
target ends the run and is kept in the working folder as crash-…
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

from tests.app.snowflake.watched import FILLINGS, FORMS

CORPUS = Path(__file__).parent / "corpus"
SAMPLE = Path(__file__).parents[2] / "model" / "samples" / "scratches.png"
# An input that exceeds one of these limits is a finding too.
OPTIONS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=4096")


def body_seeds() -> Iterator[bytes]:
    """One of each form."""
    data = [[0, "iVBORw0KGgo="], [1, None], [2, "@db.s.images/a.png", {"evidence": True}], [3, "https://a/b"]]
    batch = json.dumps({"data": data}).encode()
    yield from (b"\0" + batch, b"\1" + gzip.compress(batch, mtime=0), b"\2" + zlib.compress(batch))
    yield b'\4--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\nx\r\n--b--\r\n'


def http_seeds() -> Iterator[bytes]:
    """Requests alone and one after the other, with every kind of body and of what may go wrong with it."""
    host = b"Host: a\r\n"
    get = b"GET /a?b=c HTTP/1.1\r\n" + host + b"\r\n"
    post = b"POST /classify HTTP/1.1\r\n" + host
    sized = post + b"Content-Length: 5\r\n\r\nhello"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    for stream in (
        get * 3,
        sized + get,
        chunked + chunked,
        post + upgrade + b"Content-Length: 5\r\n\r\nhello" + get,
        post + upgrade + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + get,
        post + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi" + get,
        get + b"garbage\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get,
        b"\r\n\r\nHEAD http://a/b HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n" + get,
        b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n",
        post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ):
        yield from (b"\0" + stream, b"\6" + stream, b"\x3f" + stream)


def json_seeds() -> Iterator[bytes]:
    """Texts with a part that the target repeats, after the places where it begins and ends."""
    for form in FORMS:
        for filling in FILLINGS:
            begin = form.index(b"%b")
            yield bytes((begin, begin + len(filling))) + form % filling


def image_seeds() -> Iterator[bytes]:
    """Every format in every mode that it has, small enough to fuzz quickly."""
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


SEEDS = {"body": body_seeds, "http": http_seeds, "image": image_seeds, "json": json_seeds}


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
