"""The protocol between the service and a classifier process, and how the service detects a stalled process.

The service sends calls of rows; a process sends a greeting, and then answers. A process decodes untrusted
files and may be compromised, so the service reads its frames as JSON and never unpickles them.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import IO, Annotated, Any, NamedTuple, TypeAlias

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json

from app.images.source import Base64Text, HexText, InlineText
from app.outcome import ImageStatistics, ModelIdentity, Outcome
from model.defaults import Engine
from model.image_limits import ImageLimits

# The maximum time of a call relative to its CPU time, on a machine that has other work.
MAX_SECONDS_PER_CPU_SECOND = 6
# Checks run once a second. Even on a busy machine, a working process uses 10 ms of CPU time between so many.
STALLED_CHECKS = 5
STALLED_START_CHECKS = 10
STOPPED_CHECKS = 2
# A process may compile the network when it starts.
MAX_START_CHECKS = 300

_PROC = Path("/proc")


class ProcessOptions(BaseModel, frozen=True):
    """The network, and the limits on images."""

    model_path: Path
    engine: Engine
    cache_dir: Path
    limits: ImageLimits
    max_image_memory_bytes: int
    max_image_cpu_seconds: float
    image_statistics: bool


class ProcessStat(NamedTuple):
    pid: int
    state: str
    group_id: int
    ticks: int
    """CPU time of the process and of the children that it has waited for."""

    @property
    def is_stopped(self) -> bool:
        """By a signal such as SIGSTOP; not by a debugger."""
        return self.state == "T"


class StallWatch:
    """Counts consecutive checks between which a process has used no CPU time.

    It counts checks, not seconds, as a suspended machine suspends the processes too.
    """

    def __init__(self, stalled_checks: int, max_checks: float) -> None:
        self._stalled_checks = stalled_checks
        self._max_checks = max_checks
        self._checks = 0
        self._checks_without_progress = 0
        self._ticks: int | None = None

    def has_stalled(self, ticks: int | None) -> bool:
        """Check once; `ticks` is None where CPU time cannot be read."""
        self._checks += 1
        is_idle = ticks is not None and ticks == self._ticks
        self._checks_without_progress = self._checks_without_progress + 1 if is_idle else 0
        self._ticks = ticks
        return self._checks_without_progress >= self._stalled_checks or self._checks >= self._max_checks


def stat_of(pid: int) -> ProcessStat | None:
    """None when there is no such process, or no /proc."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    state, _, group_id, *others = fields.split()
    return ProcessStat(pid, state, int(group_id), sum(map(int, others[8:12])))


def stats_of_groups(group_ids: Collection[int]) -> Iterator[ProcessStat]:
    """Running members of process groups; none where there is no /proc."""
    with suppress(OSError):
        for path in _PROC.iterdir():
            stat = stat_of(int(path.name)) if path.name.isdigit() else None
            if stat is not None and stat.group_id in group_ids and stat.state != "Z":
                yield stat


Image: TypeAlias = bytes | InlineText
# NaN or a negative number would spoil the running means on which admission relies.
Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# The heatmaps of a call's images in the largest network's input are less than half of it.
MAX_FRAME_BYTES = 64 * 1024 * 1024

_COUNT = Struct("<I")
_ROW = Struct("<B?Q")  # kind, evidence requested, bytes
_LENGTH = Struct("<Q")
_BYTES, _BASE64, _HEX = range(3)


class WaitingRow(NamedTuple):
    """An image, and whether its outcome includes evidence."""

    image: Image
    evidence: bool

    @property
    def size_bytes(self) -> int:
        return len(self.image if isinstance(self.image, bytes) else self.image.text)


@dataclass(frozen=True)
class ServedModel:
    """The network that classifies."""

    identity: ModelIdentity
    card: dict[str, Any]
    """Without its arrays, which are large and not readable."""


@dataclass(frozen=True)
class Greeting:
    """The first frame of a process."""

    model: ServedModel | None = None
    refusal: str | None = None
    """Why it cannot classify; in place of a model."""
    pid: int | None = None
    """Its process id, by which the service checks its progress."""


@dataclass(frozen=True)
class Answers:
    """The answers to the rows of one call, in order."""

    outcomes: Sequence[Outcome | None]
    """None where the process failed."""
    failures: dict[int, str] = field(default_factory=dict)
    """The error by the place of such a row, for the log."""
    statistics: dict[int, ImageStatistics] = field(default_factory=dict)
    """By the place of a decoded image; empty unless requested."""
    decode_seconds: Seconds = 0.0
    predict_seconds: Seconds = 0.0


_GREETING = TypeAdapter(Greeting)
_ANSWERS = TypeAdapter(Answers)


def format_rows(rows: Sequence[WaitingRow]) -> list[bytes]:
    """A call, as buffers for `writelines`."""
    contents = [_content(row.image) for row in rows]
    heads = [
        _ROW.pack(kind, row.evidence, len(content))
        for row, (kind, content) in zip(rows, contents, strict=True)
    ]
    return [b"".join([_COUNT.pack(len(rows)), *heads]), *(content for _, content in contents)]


def read_rows(calls: IO[bytes]) -> list[WaitingRow]:
    """The next call; empty once the service has closed the connection. Raises EOFError within a call."""
    beginning = calls.read(_COUNT.size)
    if not beginning:
        return []
    [count] = _COUNT.unpack(beginning + _read(calls, _COUNT.size - len(beginning)))
    heads = [_ROW.unpack(_read(calls, _ROW.size)) for _ in range(count)]
    return [WaitingRow(_image(kind, _read(calls, size)), evidence) for kind, evidence, size in heads]


def format_frame(message: Greeting | Answers) -> bytes:
    content = to_json(message)
    return _LENGTH.pack(len(content)) + content


def parse_greeting(content: bytes) -> Greeting:
    """Raises ValueError for anything else."""
    return _GREETING.validate_json(content)


def parse_answers(content: bytes, rows: int) -> Answers:
    """Raises ValueError for anything but answers to that many rows."""
    answers = _ANSWERS.validate_json(content)
    if (count := len(answers.outcomes)) != rows:
        raise ValueError(f"There must be {rows} outcomes. Received: {count}.")
    return answers


class FrameReader:
    """Assembles frames from received pieces. Raises ValueError for a frame above the limit."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def read(self, piece: bytes) -> Iterator[bytes]:
        """Yield the contents of the frames that this piece completes."""
        self._pieces += piece
        while len(self._pieces) >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(self._pieces)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"A frame must have at most {MAX_FRAME_BYTES} bytes. Received: {length}.")
            end = _LENGTH.size + length
            if len(self._pieces) < end:
                return
            content = bytes(self._pieces[_LENGTH.size : end])
            del self._pieces[:end]
            yield content


def _content(image: Image) -> tuple[int, bytes]:
    if isinstance(image, bytes):
        return _BYTES, image
    return _BASE64 if isinstance(image, Base64Text) else _HEX, image.text


def _image(kind: int, content: bytes) -> Image:
    if kind == _BYTES:
        return content
    return (Base64Text if kind == _BASE64 else HexText)(content)


def _read(calls: IO[bytes], size: int) -> bytes:
    content = calls.read(size)
    if len(content) < size:
        raise EOFError
    return content
