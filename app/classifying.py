"""Images through a running service, each with its outcome, in their order."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.client import Client, Image
from app.image_sources import ImageSource, content_of
from app.outcome import ErrorDetail, ModelIdentity, Outcome, blank_outcome

# Of a file that this machine cannot read, so that the service was never asked.
UNREADABLE_FILE = "unreadable_file"
_NO_MODEL = ModelIdentity(name="", version="")


@dataclass(frozen=True)
class Classified:
    source: ImageSource
    content: str | None
    outcome: Outcome


@dataclass(frozen=True)
class _Asked:
    source: ImageSource
    content: str | None
    outcome: Outcome | None = None
    """There already, for nobody was asked."""


def classify_sources(
    client: Client, sources: Iterable[ImageSource], *, batch_rows: int, evidence: bool
) -> Iterator[Classified]:
    """A file that cannot be read is an outcome too. Raises ClientError."""
    asked: deque[_Asked] = deque()

    def images() -> Iterator[Image]:
        for source in sources:
            try:
                image = source.read()
            except OSError as error:
                asked.append(_Asked(source, None, _unreadable(error)))
                continue
            content = content_of(image) if isinstance(image, bytes) else source.etag
            asked.append(_Asked(source, content))
            yield image

    def answered_already() -> Iterator[Classified]:
        while asked and (outcome := asked[0].outcome) is not None:
            one = asked.popleft()
            yield Classified(one.source, one.content, outcome)

    for outcome in client.classify_all(images(), batch_rows=batch_rows, evidence=evidence):
        yield from answered_already()
        one = asked.popleft()
        yield Classified(one.source, one.content, outcome)
    yield from answered_already()


def _unreadable(error: OSError) -> Outcome:
    outcome = blank_outcome(_NO_MODEL)
    reason = error.strerror or type(error).__name__
    message = f"The file cannot be read: {reason}."
    outcome["error"] = ErrorDetail(code=UNREADABLE_FILE, message=message, retryable=True)
    return outcome
