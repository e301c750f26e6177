import asyncio
import io
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from app.outcome import Outcome
from app.settings import Settings
from app.workers.capacity import Capacity
from app.workers.host import ClassifierProcesses
from app.workers.pool import LiveClassifiers
from app.workers.protocol import WaitingRow
from app.workers.queue import RowQueue
from model.image import encode_png
from tests.model.pictures import tiff

LINUX = sys.platform.startswith("linux")
on_linux = pytest.mark.skipif(not LINUX, reason="only Linux says what memory a process has")


@pytest.fixture(scope="module")
def large_image() -> bytes:
    """16 million pixels of WebP, half a second's work in a third of a gigabyte."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000), "grey").save(file, format="WEBP", method=0)
    return file.getvalue()


def classify(images: list[bytes], **settings: float) -> list[Outcome | None]:
    chosen = Settings(classifiers=1, **settings)  # type: ignore[arg-type]

    async def run() -> list[Outcome | None]:
        processes = ClassifierProcesses(chosen)
        queue = RowQueue(Capacity(1, 64))
        model = processes.wait_until_ready()
        async with LiveClassifiers(chosen, queue, processes, model):
            with queue.request(len(images)) as request:
                rows = [WaitingRow(image, evidence=False) for image in images]
                return await asyncio.wait_for(request.classify(rows), 60)

    return asyncio.run(run())


def code_of(outcome: Outcome | None) -> str | None:
    assert outcome is not None
    return outcome["error"] and outcome["error"]["code"]


@on_linux
def test_image_that_wants_more_memory_than_any_may_costs_its_neighbours_nothing(
    sample: bytes,
) -> None:
    large_image = encode_png(np.zeros((4000, 4000, 3), np.uint8))
    outcomes = classify([sample, large_image, sample], max_image_memory_bytes=64 * 1024 * 1024)
    assert [code_of(outcome) for outcome in outcomes] == [None, "image_too_large", None]
    assert outcomes[1] is not None
    assert outcomes[1]["error"] is not None
    assert outcomes[1]["error"]["message"] == "An image must be decodable in the memory at hand."


def test_image_that_takes_longer_than_any_may_costs_its_neighbours_nothing(
    sample: bytes, large_image: bytes
) -> None:
    outcomes = classify([sample, large_image, sample, sample], max_image_cpu_seconds=0.1)
    assert [code_of(outcome) for outcome in outcomes] == [None, "classify_timeout", None, None]
    assert outcomes[1] is not None
    assert outcomes[1]["error"] is not None
    assert "at most 0.1 seconds of CPU time" in outcomes[1]["error"]["message"]


def test_largest_image_allowed_is_within_the_usual_bounds(large_image: bytes) -> None:
    assert [code_of(outcome) for outcome in classify([large_image] * 3)] == [None] * 3


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("wait", "signal_name"),
    [
        ("while True: pass", "SIGPROF"),
        pytest.param("time.sleep(60)", "SIGALRM", id="and one that hangs without using any"),
    ],
)
def test_process_that_takes_too_long_ends_itself(wait: str, signal_name: str) -> None:
    ended = run(
        "import time\nfrom app.workers.resource_limits import bounded_time\n"
        f"with bounded_time(0.1):\n    {wait}"
    )
    assert ended.returncode == -signal.Signals[signal_name]


def test_time_spent_outside_does_not_count() -> None:
    spend = "end = time.process_time() + 0.15\nwhile time.process_time() < end: pass"
    ended = run(
        "import time\nfrom app.workers.resource_limits import bounded_time\n"
        f"with bounded_time(0.1): pass\n{spend}\nwith bounded_time(0.1): pass\nprint('done')"
    )
    assert ended.stdout == "done\n"


@on_linux
@pytest.mark.parametrize(
    ("allocate", "expected"),
    [("bytearray(10 * M)", "allocated\n"), ("bytearray(100 * M)", "refused\n")],
)
def test_memory_is_counted_from_what_the_process_has(allocate: str, expected: str) -> None:
    ended = run(
        "from app.workers.resource_limits import bound_memory\nM = 1024 ** 2\nheld = bytearray(500 * M)\n"
        f"bound_memory(50 * M)\ntry:\n    {allocate}\n    print('allocated')\n"
        "except MemoryError:\n    print('refused')"
    )
    assert ended.stdout == expected


@on_linux
def test_process_that_decodes_is_the_first_to_go_and_leaves_no_core() -> None:
    ended = run(
        "import resource\nfrom pathlib import Path\nfrom app.workers.resource_limits import bound_memory\n"
        "bound_memory(1024 ** 3)\nprint(Path('/proc/self/oom_score_adj').read_text().strip())\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert ended.stdout == "1000\n(0, 0)\n"


def test_decoder_errors_do_not_reach_the_log(sample: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """For each of them libtiff writes a line to file descriptor 2."""
    broken = tiff([(256, 8), (257, 8), (259, 8), (278, 8)], b"no zlib stream")
    outcomes = classify([broken, sample])
    assert [code_of(outcome) for outcome in outcomes] == ["corrupt_image", None]
    assert "Decode" not in capfd.readouterr().err


def test_tracebacks_reach_the_log_when_decoder_errors_do_not() -> None:
    ended = run(
        "import os, sys\nfrom app.workers.resource_limits import keep_libraries_from_stderr\n"
        "keep_libraries_from_stderr()\nos.write(2, b'a line of a library')\n"
        "print('a line of Python', file=sys.stderr)\nraise RuntimeError('a defect')"
    )
    assert "a line of a library" not in ended.stderr
    assert ended.stderr.startswith("a line of Python\nTraceback")
    assert ended.stderr.endswith("RuntimeError: a defect\n")
