"""Classify images through a running service, in order."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.client import Client, Image
from app.image_sources import ImageSource, content_of
from app.outcome import ErrorDetail, ModelIdentity, Outcome, blank_outcome

# Error code for a local file that cannot be read; the client sends no request for it.
UNREADABLE_FILE = "unreadable_file"
_NO_MODEL = ModelIdentity(name="", version="")


@dataclass(frozen=True)
class Classified:
    source: ImageSource
    content: str | None
    outcome: Outcome


@dataclass(frozen=True)
class _Pending:
    source: ImageSource
    content: str | None
    outcome: Outcome | None = None
    """Set if the file could not be read; the service does not receive it."""


def classify_sources(
    client: Client, sources: Iterable[ImageSource], *, batch_rows: int, evidence: bool
) -> Iterator[Classified]:
    """Yield one outcome per source, in order; an unreadable file has an error. Raises ClientError."""
    pending: deque[_Pending] = deque()

    def images() -> Iterator[Image]:
        for source in sources:
            try:
                image = source.read()
            except OSError as error:
                pending.append(_Pending(source, None, _unreadable(error)))
                continue
            content = content_of(image) if isinstance(image, bytes) else source.etag
            pending.append(_Pending(source, content))
            yield image

    def unreadable_files() -> Iterator[Classified]:
        while pending and (outcome := pending[0].outcome) is not None:
            one = pending.popleft()
            yield Classified(one.source, one.content, outcome)

    for outcome in client.classify_all(images(), batch_rows=batch_rows, evidence=evidence):
        yield from unreadable_files()
        one = pending.popleft()
        yield Classified(one.source, one.content, outcome)
    yield from unreadable_files()


def _unreadable(error: OSError) -> Outcome:
    outcome = blank_outcome(_NO_MODEL)
    reason = error.strerror or type(error).__name__
    message = f"The file cannot be read: {reason}."
    outcome["error"] = ErrorDetail(code=UNREADABLE_FILE, message=message, retryable=True)
    return outcome
