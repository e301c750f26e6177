"""What C++ code writes to stderr at its start is dropped; errors, and what Python writes, are passed on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.native_log import without_native_log

NOISE = [
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1796065796.943860   31235 port.cc:153] oneDNN custom operations are on.",
    "W0000 00:00:1796065796.943860   31235 computation_placer.cc:177] already registered",
    "2026-11-30 19:00:00.000001: I tensorflow/core/platform/cpu_feature_guard.cc:210] rebuild TensorFlow",
    "E0000 00:00:1796065796.943860 31235 cuda_dnn.cc:8579] Unable to register cuDNN factory: already",
    "E0000 00:00:1796065796.943860 31235 cuda_platform.cc:51] failed call to cuInit: UNKNOWN ERROR (303)",
]
ERRORS = [
    "E0000 00:00:1796065796.943860   31235 bfc_allocator.cc:1] out of memory",
    "F0000 00:00:1796065796.943860   31235 tensor.cc:5] Check failed: a == b",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "INFO of another library",
]


def test_only_known_lines_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with without_native_log():
        os.write(2, "\n".join([*NOISE, *ERRORS, *NOISE, "an unfinished line"]).encode())
    os.write(2, b"\nafter")
    assert capfd.readouterr().err.splitlines() == [*ERRORS, "an unfinished line", "after"]


def test_stderr_of_python_is_not_filtered_and_errors_before_a_crash_arrive(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(
        "import os, sys\n"
        "from model.native_log import without_native_log\n"
        "with without_native_log():\n"
        f"    print({NOISE[0]!r}, file=sys.stderr)\n"
        f"    os.write(2, {NOISE[1] + chr(10) + ERRORS[1] + chr(10)!r}.encode())\n"
        "    os.abort()\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True) as process:
        _, printed = process.communicate(timeout=180)
    assert process.returncode < 0
    assert printed.splitlines() == [NOISE[0], ERRORS[1]]


def test_error_inside_leaves_stderr_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr, os.fstat(2).st_ino
    with pytest.raises(ValueError, match="inside"), without_native_log():
        raise ValueError("inside")
    assert (sys.stderr, os.fstat(2).st_ino) == before
    os.write(2, NOISE[0].encode())
    assert capfd.readouterr().err == NOISE[0]
