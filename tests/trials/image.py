"""python -m tests.trials.image: the size of the container image, and the time until it answers.

Measures the image in CONTAINER_IMAGE, run as `make container-test` runs it.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import from_json

from tests.benchmarks.images import load_images
from tests.benchmarks.tables import machine, write_table
from tests.container.engine import IMAGE, run_engine, running_container
from tests.running import exchange

RESULTS = Path(__file__).parent / "results"
STARTS = 7
IMAGES = 200
MEGABYTE = 1_000_000


def layers() -> Iterator[tuple[str, int]]:
    """What each layer with files is, and its bytes, from the base on."""
    history = from_json(run_engine("history", "--format", "json", IMAGE).stdout)
    for layer in reversed(history):
        if layer["size"]:
            yield _name_of(str(layer["CreatedBy"])), layer["size"]


def _name_of(created_by: str) -> str:
    if "apt-get install" in created_by:
        return "Python, certificates"
    return "the service and what it imports" if "COPY" in created_by else "Debian, slim"


def start_and_ask(images: tuple[bytes, ...]) -> tuple[float, float, float]:
    """Seconds from the order to run to readiness, then MB of memory, before and after some images."""
    with running_container() as container:
        ready = _memory_mb(container.name)
        for image in images:
            answer = exchange(
                container.port, "POST", "/classify", image, {"Content-Type": "application/octet-stream"}
            )
            assert answer.status == 200
        return container.ready_seconds, ready, _memory_mb(container.name)


def _memory_mb(name: str) -> float:
    """What the container's control group counts but for cached files, as its limit does not."""
    program = (
        "for f in /sys/fs/cgroup/memory.stat /sys/fs/cgroup/memory/memory.stat; do"
        " [ -f $f ] && grep -E '^(rss|anon|shmem) ' $f; done; true"
    )
    counted = dict(line.split() for line in run_engine("exec", name, "sh", "-c", program).stdout.splitlines())
    return sum(map(int, counted.values())) / MEGABYTE


def main() -> None:
    if not IMAGE:
        sys.exit("CONTAINER_IMAGE names no image: make container-test builds one")
    images = tuple(load_images().files[:IMAGES])
    weights = list(layers())
    starts = [start_and_ask(images) for _ in range(STARTS)]
    seconds, ready, after = (statistics.median(values) for values in zip(*starts, strict=True))
    slowest = max(start[0] for start in starts)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
    print(f"of {revision.stdout.strip()}")
    write_table(
        "image",
        ["image", ""],
        [
            *([name, f"{size / MEGABYTE:.0f} MB"] for name, size in weights),
            ["together", f"{sum(size for _, size in weights) / MEGABYTE:.0f} MB"],
            [f"ready after `run`, median of {STARTS}", f"{seconds:.1f} s (at most {slowest:.1f})"],
            ["memory when ready", f"{ready:.0f} MB"],
            [f"memory after {len(images)} images", f"{after:.0f} MB"],
        ],
        command="python -m tests.trials.image",
        about=f"{machine()}; Debian 12 base, read-only root, 1 GB of memory",
        folder=RESULTS,
    )


if __name__ == "__main__":
    main()
