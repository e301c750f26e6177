"""python -m tests.trials.reloads: SIGUSR1 under load, repeatedly, also with broken networks."""

import argparse
import asyncio
import json
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import uvloop

from app.client import is_ready
from model.defaults import DEFAULT_MODEL_PATH
from tests.app.workers.faults import FAULTS, RECIPE, put
from tests.benchmarks.connection import Connection
from tests.benchmarks.images import as_jpeg, load_images
from tests.running import exchange, logging_service, wait_until
from tests.trials.caller import make_batches, post_of

CALLERS = 4
ROWS = 8


async def load(port: int, statuses: Counter[str], versions: Counter[str]) -> None:
    """Runs until cancelled. Raises AssertionError if a row fails."""
    connection = Connection(port)
    for batch in make_batches(as_jpeg(load_images().files), ROWS, count=1_000_000):
        answer = await connection.ask(post_of(batch))
        statuses[str(answer.status)] += 1
        for _, outcome in json.loads(answer.body)["data"]:
            assert outcome["error"] is None, outcome["error"]
            versions[outcome["model"]["version"]] += 1


def networks(place: Path) -> Iterator[str]:
    """Networks to install in turn, with the expected result of the reload."""
    while True:
        for suffix, spoil in FAULTS.values():
            put(DEFAULT_MODEL_PATH, place)
            yield "done"
            spoil(place.with_suffix(suffix))
            yield "refused"
            put(RECIPE, place)
            yield "done"


def counted(port: int) -> Counter[str]:
    """Number of reloads so far, by result."""
    lines = exchange(port, "GET", "/metrics").body.decode().splitlines()
    said = dict(line.rsplit(" ", 1) for line in lines)
    names = {result: f'ext_classify_reloads_total{{result="{result}"}}' for result in ("done", "refused")}
    return Counter({result: int(float(said.get(name, 0))) for result, name in names.items()})


async def reload_each(service: "subprocess.Popen[bytes]", port: int, place: Path, times: int) -> Counter[str]:
    expected: Counter[str] = Counter(done=0, refused=0)
    for _, result in zip(range(times), networks(place), strict=False):
        expected[result] += 1
        service.send_signal(signal.SIGUSR1)
        await asyncio.to_thread(wait_until, lambda: counted(port).total() == expected.total())
        assert counted(port) == expected
    return expected


async def try_reloads(service: "subprocess.Popen[bytes]", port: int, place: Path, times: int) -> None:
    statuses: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        loads = [group.create_task(load(port, statuses, versions)) for _ in range(CALLERS)]
        expected = await reload_each(service, port, place, times)
        for task in loads:
            task.cancel()
    print(f"{times} reloads: {dict(expected)}")
    print(f"requests by status: {dict(statuses)}; rows: {versions.total()} classified, 0 failed")
    print(f"rows by version: {sorted(versions.values(), reverse=True)}")
    assert len(versions) == 2, "both networks must have served"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "m.h5"
        put(DEFAULT_MODEL_PATH, place)
        variables = {"EXT_CLASSIFY_MODEL_PATH": str(place), "EXT_CLASSIFY_CACHE_DIR": folder}
        with logging_service(Path(folder) / "log", **variables) as (service, port):
            wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
            uvloop.run(try_reloads(service, port, place, options.times))


if __name__ == "__main__":
    main()
