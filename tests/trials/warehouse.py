"""python -m tests.trials.warehouse: the query of an XL warehouse, 900 callers; every row is answered once."""

import argparse
import asyncio
import json
import time
from collections import Counter

import uvloop

from tests.benchmarks.images import as_jpeg, load_images
from tests.running import running_service
from tests.trials.caller import Batch, Caller, Tally, make_batches


async def run_query(port: int, batches: list[Batch], callers: int) -> tuple[Tally, float]:
    """Each caller takes the next batch when its own is answered. Raises AssertionError for a wrong answer."""
    tally, remaining = Tally(), iter(batches)
    answered: Counter[str] = Counter()
    began = time.perf_counter()

    async def call() -> None:
        caller = Caller(port, tally)
        for batch in remaining:
            answer = json.loads(await caller.send(batch))
            assert [number for number, _ in answer["data"]] == list(range(batch.rows))
            assert all(outcome["error"] is None for _, outcome in answer["data"])
            answered[batch.batch_id] += 1
        caller.close()

    await asyncio.gather(*(call() for _ in range(callers)))
    assert answered == Counter(batch.batch_id for batch in batches)
    return tally, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=900)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batches", type=int, default=1800)
    options = parser.parse_args()
    images = as_jpeg(load_images().files)
    batches = list(make_batches(images, options.rows, options.batches))
    with running_service() as url:
        port = int(url.rpartition(":")[2])
        alone, alone_seconds = uvloop.run(run_query(port, list(make_batches(images, options.rows, 100)), 8))
        tally, seconds = uvloop.run(run_query(port, batches, options.callers))
    rate, peak = tally.answered_rows / seconds, alone.answered_rows / alone_seconds
    refusals = sorted(tally.refusal_seconds)
    print(f"{options.callers} callers, {options.batches} batches of {options.rows} rows: each answered once")
    print(f"{rate:.0f} rows/s, {rate / peak:.0%} of what 8 callers get ({peak:.0f})")
    print(f"answers: {dict(tally.statuses)}")
    if refusals:
        print(
            f"refused within {1000 * refusals[len(refusals) // 2]:.1f} ms (median), "
            f"{1000 * refusals[int(0.99 * len(refusals))]:.1f} ms (p99)"
        )


if __name__ == "__main__":
    main()
