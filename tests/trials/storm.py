"""python -m tests.trials.storm: fifty concurrent requests with one batch id, which is classified once."""

import argparse
import asyncio

import uvloop

from tests.benchmarks.images import as_jpeg, load_images
from tests.running import exchange, running_service
from tests.trials.caller import Batch, Caller, Tally, make_batches


async def send_at_once(port: int, batch: Batch, callers: int) -> Tally:
    """Raises AssertionError unless all get the same bytes."""
    tally = Tally()
    answers = await asyncio.gather(*(Caller(port, tally).send(batch) for _ in range(callers)))
    assert len(set(answers)) == 1
    return tally


def classified_rows(port: int) -> float:
    lines = exchange(port, "GET", "/metrics").body.decode().splitlines()
    counts = [line.rpartition(" ")[2] for line in lines if line.startswith("ext_classify_rows_total{")]
    return sum(map(float, counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--times", type=int, default=10)
    options = parser.parse_args()
    with running_service() as url:
        port = int(url.rpartition(":")[2])
        batches = make_batches(as_jpeg(load_images().files), options.rows, options.times)
        for number, batch in enumerate(batches, 1):
            tally = uvloop.run(send_at_once(port, batch, options.callers))
            assert classified_rows(port) == number * options.rows, "a batch was classified more than once"
            print(f"{options.callers} callers, {options.rows} rows: the same bytes; {dict(tally.statuses)}")


if __name__ == "__main__":
    main()
