"""Measures a service in a closed loop of batches, for a few seconds.

Generating the load takes CPU time too: on the service's own machine, it lowers the measured rate.
"""

import base64
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

from app.cli.plan.sizing import Measured
from app.client import Client, ClientError, Image

CONCURRENCY = (1, 2, 4, 8, 16)
ROUNDS, ROUND_SECONDS = 3, 0.5
# Limits of one measured batch, so that slow models and large photographs also take seconds only.
MAX_ROWS, MAX_BATCH_SECONDS, MAX_BODY_BYTES = 64, 0.5, 8_000_000
# After this time, no higher concurrency is tried.
BUDGET_SECONDS = 15.0
# The minimum gain of a higher concurrency; less is noise.
GAIN = 1.05


def measure(client: Client, images: Sequence[bytes], cores: int, *, evidence: bool = False) -> Measured:
    """Measure the client's service, which has `cores` cores. Raises ClientError, also for invalid images."""
    started = time.perf_counter()
    outcomes = list(client.classify_all(images, evidence=evidence))
    seconds_of_one = (time.perf_counter() - started) / len(images)
    for error in filter(None, (outcome["error"] for outcome in outcomes)):  # it would take less time
        raise ClientError(f"Images to measure with must be classified. Received: {error['code']}.")
    rates = _rates(client, _batch_of(images, seconds_of_one), evidence=evidence)
    best = max(rates.values())
    return Measured(
        images_per_second=best,
        cores=cores,
        image_bytes=round(statistics.mean(map(len, images))),
        outcome_bytes=max(len(json.dumps(outcome)) for outcome in outcomes),
        busy_batches=next(concurrency for concurrency, rate in rates.items() if rate * GAIN >= best),
    )


def _batch_of(images: Sequence[bytes], seconds_of_one: float) -> list[Image]:
    """The largest power of two of rows within the limits of time and bytes."""
    sources = [base64.b64encode(image).decode() for image in images]
    in_body = MAX_BODY_BYTES // (max(map(len, sources)) + 1)
    most = max(1, min(MAX_ROWS, int(MAX_BATCH_SECONDS / seconds_of_one), in_body))
    return list(islice(cycle(sources), 2 ** (most.bit_length() - 1)))


def _rates(client: Client, batch: Sequence[Image], *, evidence: bool) -> dict[int, float]:
    """Images per second by increasing concurrency, until the rate stops growing."""
    started = time.perf_counter()
    rates: dict[int, float] = {}
    for concurrency in CONCURRENCY:
        before = max(rates.values(), default=0.0)
        rates[concurrency] = _rate(client, batch, concurrency, evidence=evidence)
        if rates[concurrency] <= before * GAIN or time.perf_counter() - started > BUDGET_SECONDS:
            break
    return rates


def _rate(client: Client, batch: Sequence[Image], concurrency: int, *, evidence: bool) -> float:
    """Images per second, the median of the rounds."""

    def classify_for_a_round(_: int) -> int:
        until = time.perf_counter() + ROUND_SECONDS
        images = 0
        while not images or time.perf_counter() < until:
            images += len(client.classify_batch(batch, evidence=evidence))
        return images

    rates = []
    with ThreadPoolExecutor(concurrency) as threads:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            images = sum(threads.map(classify_for_a_round, range(concurrency)))
            rates.append(images / (time.perf_counter() - started))
    return statistics.median(rates)
