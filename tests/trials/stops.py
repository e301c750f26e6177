"""python -m tests.trials.stops: SIGTERM under load, repeatedly; no accepted request may be lost."""

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

from app.client import is_ready
from tests.benchmarks.connection import Connection, ConnectionLost
from tests.benchmarks.images import as_jpeg, load_images
from tests.running import logging_service, wait_until
from tests.trials.caller import Batch, make_batches, post_of

CALLERS = 8


async def load_until_gone(port: int, batches: list[Batch], outcomes: Counter[str], stop_at: float) -> None:
    """Send requests on one connection after another until the port is closed."""
    connection = Connection(port)
    for batch in batches:
        sent_at = time.perf_counter()
        try:
            answer = await connection.ask(post_of(batch))
        except ConnectionRefusedError:
            return
        except (OSError, ConnectionLost):
            # Reset before it was accepted, or accepted and lost: which, the service's log says.
            outcomes["cut off" if sent_at < stop_at else "cut off while it stopped"] += 1
            connection.close()
        else:
            outcomes[str(answer.status)] += 1


async def load(service: "subprocess.Popen[bytes]", port: int, batches: list[Batch]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    wait_seconds = random.uniform(0.2, 0.8)  # noqa: S311 - no secret
    stop_at = time.perf_counter() + wait_seconds

    async def stop() -> None:
        await asyncio.sleep(wait_seconds)
        service.send_signal(signal.SIGTERM)

    loads = (load_until_gone(port, batches[n::CALLERS], outcomes, stop_at) for n in range(CALLERS))
    await asyncio.gather(stop(), *loads)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--workers", default="1")
    options = parser.parse_args()
    batches = list(make_batches(as_jpeg(load_images().files), rows=8, count=8000))
    total: Counter[str] = Counter()
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.times):
            variables = {"EXT_CLASSIFY_STOP_DELAY_SECONDS": "0.5", "EXT_CLASSIFY_WORKERS": options.workers}
            with logging_service(Path(folder) / "log", **variables) as (service, port):
                wait_until(lambda port=port: is_ready(f"http://127.0.0.1:{port}"))  # type: ignore[misc]
                total += uvloop.run(load(service, port, batches))
                began = time.perf_counter()
                total[f"exit {service.wait(60)}"] += 1
                seconds.append(time.perf_counter() - began)
    print(f"{options.times} times: {dict(total)}; ended {max(seconds):.1f} s after the last answer at most")
    if set(total) != {"200", "exit 0"}:
        sys.exit(1)


if __name__ == "__main__":
    main()
