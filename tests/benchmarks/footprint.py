"""CPU time and memory of all processes of a server, from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Places behind the name in /proc/PID/stat.
_STATE, _PARENT, _SESSION, _USER_TICKS, _SYSTEM_TICKS, _START_TICKS = 0, 1, 3, 11, 12, 19


class Memory(NamedTuple):
    """In MB. RSS counts a page once for every process that shares it; PSS, once."""

    rss: float
    pss: float
    peak_rss: float


def server_processes(leader: int) -> list[int]:
    """The session that `leader` leads, and whatever descends from it."""
    found = {leader}
    stats = {pid: stat for pid in _all_pids() if (stat := _stat(pid))}
    while True:
        more = {
            pid for pid, stat in stats.items() if int(stat[_SESSION]) == leader or int(stat[_PARENT]) in found
        }
        if more <= found:
            return sorted(found)
        found |= more


class Instances:
    """The processes of a server, distinguished from later processes with the same id."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._started = {pid: _start_of(pid) for pid in server_processes(leader)}

    def still_running(self) -> list[int]:
        """These processes and their later children, without zombies."""
        joined = {pid: _start_of(pid) for pid in server_processes(self._leader) if pid not in self._started}
        self._started |= {pid: start for pid, start in joined.items() if start}
        return [pid for pid, start in self._started.items() if start and _start_of(pid) == start]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all their threads."""
    stats = filter(None, map(_stat, pids))
    return sum(int(stat[_USER_TICKS]) + int(stat[_SYSTEM_TICKS]) for stat in stats) / _TICKS_PER_SECOND


def memory(pids: Iterable[int]) -> Memory:
    pids = list(pids)
    return Memory(
        rss=sum(_megabytes(pid, "status", "VmRSS:") for pid in pids),
        pss=sum(_megabytes(pid, "smaps_rollup", "Pss:") for pid in pids),
        peak_rss=sum(_megabytes(pid, "status", "VmHWM:") for pid in pids),
    )


def _all_pids() -> Iterable[int]:
    return (int(entry) for entry in os.listdir(_PROC) if entry.isdigit())  # noqa: PTH208  (half the time)


def _stat(pid: int) -> list[str]:
    """Fields from the state on; empty for a process that is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return []


def _start_of(pid: int) -> str | None:
    """None for a process that is gone, or has ended."""
    stat = _stat(pid)
    return stat[_START_TICKS] if stat and stat[_STATE] != "Z" else None


def _megabytes(pid: int, page: str, name: str) -> float:
    try:
        lines = (_PROC / str(pid) / page).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
