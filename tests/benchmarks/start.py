"""Time to ready and memory of `ext-classify serve`: python -m tests.benchmarks.start --python PYTHON.

PYTHON is the interpreter of the serving environment, which has no TensorFlow.
"""

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

from app.client import Client, is_ready
from app.images.files import find_images
from tests.benchmarks.contenders import NETWORKS, ext_classify
from tests.benchmarks.footprint import memory, server_processes
from tests.benchmarks.served import require_label
from tests.benchmarks.tables import write_table
from tests.conftest import SAMPLES
from tests.running import free_port

DEFAULT_NETWORK = NETWORKS[1]


def start_once(python: str) -> tuple[float, float, float, float]:
    """Seconds to ready; MB of memory when ready, and after 600 images. Raises Mislabelled."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    with subprocess.Popen(
        [python, "-m", "app.cli", "serve", "--port", str(port)], stderr=subprocess.DEVNULL
    ) as service:
        try:
            while not is_ready(url):
                time.sleep(0.005)
            seconds = time.perf_counter() - started
            require_label(ext_classify(), DEFAULT_NETWORK, port, Path(os.devnull))
            idle = memory(server_processes(service.pid)).pss
            for _ in Client(url).classify_all(find_images([SAMPLES]) * 100, concurrent_batches=1):
                pass
            processes = server_processes(service.pid)
            largest = max(memory([process]).rss for process in processes)
            return seconds, idle, memory(processes).pss, largest
        finally:
            service.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    start_once(options.python)  # the first start reads files from a cold disk
    found = [start_once(options.python) for _ in range(options.rounds)]
    names = (
        "seconds to ready",
        "MB of all processes when ready (PSS)",
        "MB of all processes after 600 images (PSS)",
        "MB of the largest process then (RSS)",
    )
    rows = [
        [name, f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"]
        for name, values in zip(names, zip(*found, strict=True), strict=True)
    ]
    write_table("start", ["serve", "median", "range"], rows)


if __name__ == "__main__":
    main()
