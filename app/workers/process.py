"""python -m app.workers.process: holds the network, and forks itself for each connection it is handed.

The service hands it one end of a socket for each classifier process that it wants. A fork shares the
network's memory and is ready at once; what it does with a hostile image, it does to itself alone.
"""

import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from app.workers.classify import Bounded, ImageClassifier
from app.workers.host import ProcessOptions
from app.workers.protocol import Answers, Greeting, ServedModel, WaitingRow, format_frame, read_rows
from app.workers.resource_limits import bound_memory, bounded_time, keep_libraries_from_stderr
from model.artifact import load_artifact
from model.engines import open_classifier
from model.errors import ModelError

# They are always busy under load; whoever answers HTTP has little to do, and is waited for.
_NICENESS = 5
# Nothing to read, and large.
_ARRAYS: Any = {"class_weights": True, "novelty": {"whitening", "class_means", "prototypes"}}


class Opening:
    """The network, opened before the first fork where it can live in several processes."""

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self._opened: ImageClassifier | ModelError | None = None
        if options.engine == "litert":  # TensorFlow has threads, which a fork loses
            self._opened = self._open()

    @property
    def has_failed(self) -> bool:
        """A fork could only repeat the refusal, so another process must read the network again."""
        return isinstance(self._opened, ModelError)

    def images(self) -> ImageClassifier:
        """Raises ArtifactError when the network cannot be trusted or served."""
        opened = self._opened or self._open()
        if isinstance(opened, ModelError):
            raise opened
        return opened

    def _open(self) -> ImageClassifier | ModelError:
        options = self.options
        try:
            artifact = load_artifact(options.model_path)
            classifier = open_classifier(artifact, options.engine, 1, options.cache_dir)
            return ImageClassifier(artifact, classifier, options.limits, options.image_statistics)
        except ModelError as error:
            return error


def fork_for_each(connections: socket.socket, opening: Opening) -> None:
    """Until the service has gone; nothing that was forked outlives it."""
    forked: set[int] = set()
    while True:
        order, handed, _, _ = socket.recv_fds(connections, 1, 1)
        _forget_ended(forked)
        if not order:
            break
        [descriptor] = handed
        with socket.socket(fileno=descriptor) as connection:
            try:
                pid = os.fork()
            except OSError as error:  # too many processes, or no memory: the service tries again later
                _refuse(connection, f"It cannot be forked: {error}.")
                continue
            if pid == 0:
                connections.close()
                _serve_and_exit(connection, opening)
        forked.add(pid)
        if opening.has_failed:
            return
    for pid in forked:
        os.kill(pid, signal.SIGKILL)


def serve_connection(connection: socket.socket, opening: Opening) -> None:
    """Say whether there is anything to serve with, then answer call after call."""
    options = opening.options
    try:
        images = opening.images()
    except ModelError as error:
        connection.sendall(format_frame(Greeting(refusal=str(error))))
    else:
        keep_libraries_from_stderr()
        bound_memory(options.max_image_memory_bytes)
        answer_calls(connection, images, partial(bounded_time, options.max_image_cpu_seconds))


def answer_calls(
    connection: socket.socket,
    images: ImageClassifier,
    bounded: Bounded = nullcontext,
) -> None:
    """Until the service closes the connection; each image within its bounds."""
    card = images.artifact.card.model_dump(mode="json", exclude=_ARRAYS)
    connection.sendall(format_frame(Greeting(ServedModel(images.model, card), pid=os.getpid())))
    with connection.makefile("rb") as calls:
        while rows := read_rows(calls):
            answers = _classify(images, rows, bounded)
            connection.sendall(format_frame(answers))
            del rows, answers  # images must not outlive their turn while the process waits for the next


def _classify(images: ImageClassifier, rows: Sequence[WaitingRow], bounded: Bounded) -> Answers:
    try:
        outcomes, spent, statistics = images.classify(
            [row.image for row in rows], [row.evidence for row in rows], bounded
        )
        return Answers(
            outcomes, statistics=statistics, decode_seconds=spent.decode, predict_seconds=spent.predict
        )
    except Exception as error:  # noqa: BLE001 - it is a row's failure, and the process goes on
        if len(rows) == 1:
            return Answers([None], failures={0: f"{type(error).__name__}: {error}"})
        return _join([_classify(images, [row], bounded) for row in rows])


def _join(answers: Sequence[Answers]) -> Answers:
    """Rows may be of several requests, and only those that fail by themselves are to blame."""
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


def _serve_and_exit(connection: socket.socket, opening: Opening) -> None:
    try:
        with suppress(EOFError, ConnectionError), connection:
            serve_connection(connection, opening)
    except BaseException:  # noqa: BLE001 - whose traceback is all that is left of it
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)  # what was registered for exit is the parent's


def _forget_ended(forked: set[int]) -> None:
    """Reap them, so that none of their numbers is killed when it is somebody else's."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            forked.discard(ended)


def main(descriptor: str, options: str) -> None:
    # The terminal and the supervisor tell everyone; the service decides when its processes end.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    gc.disable()  # until the network is there: a start makes hardly any garbage
    opening = Opening(ProcessOptions.model_validate_json(options))
    os.nice(_NICENESS)
    gc.freeze()  # a look at what is shared would copy it
    gc.enable()
    with socket.socket(fileno=int(descriptor)) as connections:
        fork_for_each(connections, opening)


if __name__ == "__main__":
    main(*sys.argv[1:])
