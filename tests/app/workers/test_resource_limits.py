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
from app.workers.pool import LiveClassifiers
from app.workers.protocol import WaitingRow
from app.workers.queue import Capacity, RowQueue
from app.workers.starting import ClassifierProcesses
from model.image import encode_png
from tests.model.pictures import tiff

LINUX = sys.platform.startswith("linux")
on_linux = pytest.mark.skipif(not LINUX, reason="only Linux tells how much memory a process has")


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
                return await asyncio.wait_for(request.classify(rows), 120)

    return asyncio.run(run())


def code_of(outcome: Outcome | None) -> str | None:
    assert outcome is not None
    return outcome["error"] and outcome["error"]["code"]


@pytest.mark.slow
@on_linux
def test_image_that_exceeds_the_memory_limit_fails_alone(
    sample: bytes,
) -> None:
    large_image = encode_png(np.zeros((4000, 4000, 3), np.uint8))
    outcomes = classify([sample, large_image, sample], max_image_memory_bytes=64 * 1024 * 1024)
    assert [code_of(outcome) for outcome in outcomes] == [None, "image_too_large", None]


@pytest.mark.slow
def test_image_that_exceeds_the_time_limit_fails_alone(sample: bytes, large_image: bytes) -> None:
    outcomes = classify([sample, large_image, sample, sample], max_image_cpu_seconds=0.1)
    assert [code_of(outcome) for outcome in outcomes] == [None, "classify_timeout", None, None]


@pytest.mark.slow
def test_largest_allowed_image_is_within_the_default_limits(large_image: bytes) -> None:
    assert [code_of(outcome) for outcome in classify([large_image] * 3)] == [None] * 3


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wait", "signal_name"),
    [
        ("while True: pass", "SIGPROF"),
        pytest.param("time.sleep(600)", "SIGALRM", id="without CPU time"),
    ],
)
def test_process_ends_itself_at_its_time_limit(wait: str, signal_name: str) -> None:
    # However little CPU time the machine gives to a busy process, that limit applies first.
    wall = "process.MAX_SECONDS_PER_CPU_SECOND = 1000" if signal_name == "SIGPROF" else "pass"
    ended = run(
        f"import time\nfrom app.workers import process\n{wall}\nwith process.limited_time(0.1):\n    {wait}"
    )
    assert ended.returncode == -signal.Signals[signal_name]


def test_time_outside_the_context_does_not_count() -> None:
    spend = "end = time.process_time() + 0.15\nwhile time.process_time() < end: pass"
    ended = run(
        "import time\nfrom app.workers.process import limited_time\n"
        f"with limited_time(0.1): pass\n{spend}\nwith limited_time(0.1): pass\nprint('done')"
    )
    assert ended.stdout == "done\n"


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(
    ("allocate", "expected"),
    [("bytearray(10 * M)", "allocated\n"), ("bytearray(100 * M)", "refused\n")],
)
def test_memory_limit_applies_to_further_allocations(allocate: str, expected: str) -> None:
    ended = run(
        "from app.workers.process import limit_memory\nM = 1024 ** 2\nheld = bytearray(500 * M)\n"
        f"limit_memory(50 * M)\ntry:\n    {allocate}\n    print('allocated')\n"
        "except MemoryError:\n    print('refused')"
    )
    assert ended.stdout == expected


@on_linux
def test_memory_limit_sets_the_oom_score_and_disables_core_dumps() -> None:
    ended = run(
        "import resource\nfrom pathlib import Path\nfrom app.workers.process import limit_memory\n"
        "limit_memory(1024 ** 3)\nprint(Path('/proc/self/oom_score_adj').read_text().strip())\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    assert ended.stdout == "1000\n(0, 0)\n"


def test_decoder_messages_do_not_reach_the_log(sample: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Decoders in C write to file descriptor 2."""
    broken = tiff([(256, 8), (257, 8), (259, 8), (278, 8)], b"no zlib stream")
    outcomes = classify([broken, sample])
    assert [code_of(outcome) for outcome in outcomes] == ["corrupt_image", None]
    assert "Decode" not in capfd.readouterr().err


def test_tracebacks_reach_the_log_when_decoder_messages_do_not() -> None:
    ended = run(
        "import os, sys\nfrom app.workers.process import redirect_library_stderr\n"
        "redirect_library_stderr()\nos.write(2, b'a line of a library')\n"
        "print('a line of Python', file=sys.stderr)\nraise RuntimeError('a defect')"
    )
    assert "a line of a library" not in ended.stderr
    assert ended.stderr.startswith("a line of Python\nTraceback")
    assert ended.stderr.endswith("RuntimeError: a defect\n")
