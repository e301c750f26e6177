"""python -m app.workers.process: the fork server, and the classifier processes that it forks.

The fork server loads the network. For each socket that the service sends, it forks a classifier process,
which shares the network's memory and is ready at once. A hostile image crashes one process only. Processes
also enforce the limits on an image: a thread cannot be stopped within a decoder.
"""

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from app.workers.classify import ImageClassifier, Limits, unlimited
from app.workers.protocol import (
    MAX_SECONDS_PER_CPU_SECOND,
    Answers,
    Greeting,
    ProcessOptions,
    ServedModel,
    WaitingRow,
    format_frame,
    read_rows,
)
from model.artifact import load_artifact
from model.engines import open_classifier
from model.errors import ModelError
from model.native_log import without_native_log

# The service's event loop has little work, and everything waits for it.
_NICENESS = 5
# Large, and not readable.
_ARRAYS: Any = {"class_weights": True, "novelty": {"whitening", "class_means", "prototypes"}}
_MAX_OOM_SCORE = "1000"
# A call with a small image is received at once.
_RECEIVED_BYTES = 64 * 1024


class NetworkLoader:
    """Loads the network before the first fork if forks can share it, and otherwise in each of them."""

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self._loaded: ImageClassifier | ModelError | None = None
        if options.engine == "litert":  # TensorFlow has threads, which do not survive a fork
            self._loaded = self._load()

    @property
    def has_failed(self) -> bool:
        """Every fork would repeat the error, so that the service must start another fork server."""
        return isinstance(self._loaded, ModelError)

    def classifier(self) -> ImageClassifier:
        """Raises ArtifactError if the network is invalid."""
        loaded = self._loaded or self._load()
        if isinstance(loaded, ModelError):
            raise loaded
        return loaded

    def _load(self) -> ImageClassifier | ModelError:
        options = self.options
        try:
            artifact = load_artifact(options.model_path)
            with without_native_log():
                classifier = open_classifier(artifact, options.engine, 1, options.cache_dir)
            return ImageClassifier(artifact, classifier, options.limits, options.image_statistics)
        except ModelError as error:
            return error


def fork_for_each(connections: socket.socket, loader: NetworkLoader) -> None:
    """Fork a classifier process for each socket received, and kill them all once the service has gone."""
    forked: set[int] = set()
    while True:
        order, descriptors, _, _ = socket.recv_fds(connections, 1, 1)
        _reap(forked)
        if not order:
            break
        [descriptor] = descriptors
        with socket.socket(fileno=descriptor) as connection:
            try:
                pid = os.fork()
            except OSError as error:  # too many processes, or no memory: the service retries later
                _refuse(connection, f"It cannot be forked: {error}.")
                continue
            if pid == 0:
                connections.close()
                _serve_and_exit(connection, loader)
        forked.add(pid)
        if loader.has_failed:
            return
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def serve_connection(connection: socket.socket, loader: NetworkLoader) -> None:
    """Send the greeting, then answer one call after the other."""
    options = loader.options
    try:
        classifier = loader.classifier()
    except ModelError as error:
        connection.sendall(format_frame(Greeting(refusal=str(error))))
    else:
        redirect_library_stderr()
        limit_memory(options.max_image_memory_bytes)
        answer_calls(connection, classifier, partial(limited_time, options.max_image_cpu_seconds))


def answer_calls(
    connection: socket.socket,
    classifier: ImageClassifier,
    limited: Limits = unlimited,
) -> None:
    """Answer calls until the service closes the connection; images are handled within `limited()`."""
    card = classifier.artifact.card
    shown = {**card.model_dump(mode="json", exclude=_ARRAYS), "missing": card.missing}
    connection.sendall(format_frame(Greeting(ServedModel(classifier.identity, shown), pid=os.getpid())))
    with os.fdopen(connection.fileno(), "rb", _RECEIVED_BYTES, closefd=False) as calls:
        while rows := read_rows(calls):
            answers = _classify(classifier, rows, limited)
            connection.sendall(format_frame(answers))
            del rows, answers  # or they would stay in memory while the process waits for the next call


def _classify(classifier: ImageClassifier, rows: Sequence[WaitingRow], limited: Limits) -> Answers:
    try:
        outcomes, spent, statistics = classifier.classify(
            [row.image for row in rows], [row.evidence for row in rows], limited
        )
        return Answers(
            outcomes, statistics=statistics, decode_seconds=spent.decode, predict_seconds=spent.predict
        )
    except Exception as error:  # noqa: BLE001 - a row's failure, which must not end the process
        if len(rows) == 1:
            return Answers([None], failures={0: f"{type(error).__name__}: {error}"})
        return _join([_classify(classifier, [row], limited) for row in rows])


def _join(answers: Sequence[Answers]) -> Answers:
    """Join answers to single rows: rows may be of several requests, and only those that fail alone fail."""
    return Answers(
        [outcome for answer in answers for outcome in answer.outcomes],
        {place: text for place, answer in enumerate(answers) for text in answer.failures.values()},
        {place: image for place, answer in enumerate(answers) for image in answer.statistics.values()},
        sum(answer.decode_seconds for answer in answers),
        sum(answer.predict_seconds for answer in answers),
    )


def _refuse(connection: socket.socket, refusal: str) -> None:
    with suppress(OSError):
        connection.sendall(format_frame(Greeting(refusal=refusal)))


def _serve_and_exit(connection: socket.socket, loader: NetworkLoader) -> None:
    try:
        with suppress(EOFError, ConnectionError), connection:
            serve_connection(connection, loader)
    except BaseException:  # noqa: BLE001 - the process ends, and its traceback goes to the log
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)  # exit handlers are the fork server's


def _reap(forked: set[int]) -> None:
    """Reap ended processes and remove their ids, which may belong to other processes later."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            forked.discard(ended)


def limit_memory(max_bytes: int) -> None:
    """Limit further allocations of this process to `max_bytes`; beyond it they raise MemoryError.

    If the machine itself runs out of memory, the kernel kills this process first (proc(5), oom_score_adj),
    and no core dump writes its memory to disk. Only Linux tells how much memory a process already has.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_MAX_OOM_SCORE, encoding="ascii")
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextmanager
def limited_time(max_cpu_seconds: float) -> Iterator[Callable[[], None]]:
    """End this process by a signal if the body takes longer, as no signal handler runs within a decoder.

    Yields a function that starts the time again.
    """

    def start(cpu_seconds: float = max_cpu_seconds) -> None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS_PER_CPU_SECOND * cpu_seconds)

    start()
    try:
        yield start
    finally:
        start(0)


def redirect_library_stderr() -> None:
    """Redirect file descriptor 2 to /dev/null, except for Python's own messages.

    C libraries write the content of a client's broken file there, line after line.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def main(descriptor: str, options: str) -> None:
    # Terminals and supervisors signal the whole process group, and accepted rows must be answered.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.disable()  # loading the network produces hardly any garbage
    loader = NetworkLoader(ProcessOptions.model_validate_json(options))
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)  # a tenth of a classifier process's own memory
    os.nice(_NICENESS)
    gc.freeze()  # a collection would copy the memory that forks share
    gc.enable()
    with socket.socket(fileno=int(descriptor)) as connections:
        fork_for_each(connections, loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
