"""Tells a process that hangs from one that works or waits for a core, by its CPU time.

A process that is stopped (SIGSTOP) or blocked in the kernel runs no timer of its own, so only another process
can notice. Source: proc(5). Other systems than Linux have no /proc, and only the limits on time hold there.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Once a second. Even on a busy machine, a process that works uses 10 ms of CPU time in so many.
STALLED_LOOKS = 5
STALLED_START_LOOKS = 10
STOPPED_LOOKS = 2
# To open a network may include compiling it.
MAX_START_LOOKS = 300

_PROC = Path("/proc")


class ProcessStat(NamedTuple):
    pid: int
    state: str
    group_id: int
    ticks: int
    """CPU time, of the process and of the children that it has waited for."""

    @property
    def is_stopped(self) -> bool:
        """By a signal such as SIGSTOP; not by a debugger."""
        return self.state == "T"


class StallWatch:
    """Counts consecutive looks at which a process has used no CPU time since the look before.

    Looks are counted, not seconds: a service that was suspended with its processes must not blame them.
    """

    def __init__(self, stalled_looks: int, max_looks: float) -> None:
        self._stalled_looks = stalled_looks
        self._max_looks = max_looks
        self._looks = 0
        self._looks_without_progress = 0
        self._ticks: int | None = None

    def has_stalled(self, ticks: int | None) -> bool:
        """Takes one look; `ticks` is None where CPU time cannot be read."""
        self._looks += 1
        is_still = ticks is not None and ticks == self._ticks
        self._looks_without_progress = self._looks_without_progress + 1 if is_still else 0
        self._ticks = ticks
        return self._looks_without_progress >= self._stalled_looks or self._looks >= self._max_looks


def stat_of(pid: int) -> ProcessStat | None:
    """None when there is no such process, or no /proc."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    state, _, group_id, *others = fields.split()
    return ProcessStat(pid, state, int(group_id), sum(map(int, others[8:12])))


def stats_of_groups(group_ids: Collection[int]) -> Iterator[ProcessStat]:
    """Living members of process groups; none where there is no /proc."""
    with suppress(OSError):
        for path in _PROC.iterdir():
            stat = stat_of(int(path.name)) if path.name.isdigit() else None
            if stat is not None and stat.group_id in group_ids and stat.state != "Z":
                yield stat
