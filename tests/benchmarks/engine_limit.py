"""The engine's maximum rate without a server: decode and predict the same files on all cores.

The faster of two forms is the limit: a process per core, or one process with a thread per core.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact, load_artifact
from model.defaults import usable_cores, user_cache_dir
from model.engines import Classifier, open_classifier
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits
from tests.benchmarks.window import quantile

Work = Literal[
    "decode", "decode and predict one", "decode and predict one, paused", "decode and predict some"
]
# Images per call: fewer leave the caches cold, more gain nothing.
SOME = 8
# As long as a lone client takes to send its next image. Caches and clocks do not keep up with a core at rest.
PAUSE_SECONDS = 0.001
_WARM_UPS = 4


class EngineReport(NamedTuple):
    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_image: float


class EngineLimit:
    def __init__(self, processes: Sequence[Connection], threads: Connection) -> None:
        self._processes = processes
        self._threads = threads

    def processes(self, work: Work, seconds: float) -> EngineReport:
        """A process a core, each with one thread."""
        return _measure(self._processes, work, seconds)

    def threads(self, work: Work, seconds: float) -> EngineReport:
        """One process, a thread a core."""
        return _measure([self._threads], work, seconds)

    def one_at_a_time(self, seconds: float, *, paused: bool = False) -> EngineReport:
        """One process, one thread: what one image takes, right after another or after a pause."""
        work: Work = "decode and predict one, paused" if paused else "decode and predict one"
        return _measure(self._processes[:1], work, seconds)


@contextmanager
def engine_limit(h5: Path, files: Sequence[bytes]) -> Iterator[EngineLimit]:
    """Warm processes that wait for work."""
    cores = usable_cores()
    spawn = multiprocessing.get_context("spawn")
    here: list[Connection] = []
    started = []
    for threads in [*[1] * cores, cores]:
        mine, theirs = spawn.Pipe()
        process = spawn.Process(target=_answer_orders, args=(theirs, h5, list(files), threads), daemon=True)
        process.start()
        here.append(mine)
        started.append(process)
    try:
        for connection in here:
            connection.recv()  # it is warm
        yield EngineLimit(here[:-1], here[-1])
    finally:
        for process in started:
            process.kill()
            process.join()


def engine_labels(h5: Path, files: Sequence[bytes]) -> list[str]:
    """The network's labels for `files`, without a server."""
    artifact = load_artifact(h5)
    spec, limits = artifact.card.image, ImageLimits()
    probabilities = _open(artifact, 1).predict(np.stack([decode(file, spec, limits) for file in files]))
    return [artifact.card.class_names[int(index)] for index in probabilities.argmax(axis=1)]


def _measure(connections: Sequence[Connection], work: Work, seconds: float) -> EngineReport:
    for connection in connections:
        connection.send((work, seconds))
    latencies, rate, cpu = [], 0.0, 0.0
    for connection in connections:
        own_latencies, own_seconds, own_cpu = connection.recv()
        latencies += own_latencies
        rate += len(own_latencies) / own_seconds
        cpu += own_cpu
    p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
    return EngineReport(rate, 1000 * (p50 or 0.0), 1000 * (p99 or 0.0), 1000 * cpu / len(latencies))


def _open(artifact: Artifact, interpreters: int) -> Classifier:
    return open_classifier(artifact, "litert", interpreters, user_cache_dir())


def _answer_orders(orders: Connection, h5: Path, files: list[bytes], threads: int) -> None:
    """Each order is (work, seconds), each answer (latencies, seconds, CPU seconds)."""
    artifact = load_artifact(h5)
    classifier = _open(artifact, threads)
    step = _Steps(classifier, artifact.card.image)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_WARM_UPS):
            list(pool.map(step.decode_and_predict, [files[:SOME]] * threads))
        orders.send("warm")
        while True:
            work, seconds = orders.recv()
            began, cpu_began = time.perf_counter(), time.process_time()
            loops = [
                pool.submit(_repeat, step, work, files[begin:] + files[:begin], seconds)
                for begin in range(0, len(files), -(-len(files) // threads))
            ]
            latencies = [latency for loop in loops for latency in loop.result()]
            orders.send((latencies, time.perf_counter() - began, time.process_time() - cpu_began))


class _Steps(NamedTuple):
    classifier: Classifier
    spec: ImageSpec

    def decode(self, files: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        return [decode(file, self.spec, ImageLimits()) for file in files]

    def decode_and_predict(self, files: Sequence[bytes]) -> None:
        self.classifier.answer(self.decode(files))


def _repeat(step: _Steps, work: Work, files: Sequence[bytes], seconds: float) -> list[float]:
    """The seconds that each image took, going round through `files`."""
    do = step.decode if work == "decode" else step.decode_and_predict
    rows = SOME if work == "decode and predict some" else 1
    latencies: list[float] = []
    began = now = time.perf_counter()
    while now - began < seconds:
        if work == "decode and predict one, paused":
            time.sleep(PAUSE_SECONDS)
            now = time.perf_counter()
        start = len(latencies) % (len(files) - rows + 1)
        do(files[start : start + rows])
        after = time.perf_counter()
        latencies += [(after - now) / rows] * rows
        now = after
    return latencies
