"""Room for the files that several workers keep their metrics in, taken before anything is written to them.

prometheus_client maps sparse files into memory. A write to a page that the file system has no room for ends
the process with SIGBUS, without a word; to allocate the pages first turns that into an error.
"""

import os
from pathlib import Path

# As prometheus_client names them: by the kind of metric, and the mode of a gauge.
_FILE_BYTES = {
    "counter": 128 * 1024,
    "histogram": 128 * 1024,
    "gauge_livesum": 64 * 1024,
    "gauge_livemax": 64 * 1024,
    "gauge_livemin": 64 * 1024,
}


def require_room(folder: Path, workers: int) -> None:
    """Raises OSError unless the files of so many workers fit."""
    probe = folder / "probe"
    try:
        _allocate(probe, workers * sum(_FILE_BYTES.values()))
    finally:
        probe.unlink(missing_ok=True)


def reserve(folder: Path) -> None:
    """The files of this process, to be called before prometheus_client is imported. Raises OSError."""
    for kind, size_bytes in _FILE_BYTES.items():
        _allocate(folder / f"{kind}_{os.getpid()}.db", size_bytes)


def _allocate(path: Path, size_bytes: int) -> None:
    try:
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        raise OSError(
            f"The metrics of the workers need {size_bytes} bytes in {path.parent}: {error.strerror}. "
            "TMPDIR may name another folder."
        ) from None
