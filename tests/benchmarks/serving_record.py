"""All results of a run, kept for each network, so that networks can be measured one by one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from tests.benchmarks.footprint import Memory
from tests.benchmarks.measurements import Measurements


class Footprint(NamedTuple):
    network: str
    contender: str
    version: str
    cold_start_seconds: tuple[float, ...]
    ready: Memory
    loaded: Memory
    """After all rounds."""


class LeftOut(NamedTuple):
    network: str
    contender: str
    reason: str


@dataclass
class Record:
    about: str
    """The machine and the images."""
    measurements: Measurements = field(default_factory=Measurements)
    footprints: list[Footprint] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    peak_rss_mb: dict[str, float] = field(default_factory=dict)
    """By network: of our service, with batches of 4,096 rows."""

    def add(self, other: "Record") -> None:
        self.measurements.measured += other.measurements.measured
        self.footprints += other.footprints
        self.left_out += other.left_out
        self.peak_rss_mb |= other.peak_rss_mb


_RECORD = TypeAdapter(Record)


def save(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_RECORD.dump_json(record))


def load(path: Path) -> Record | None:
    """None where there is none."""
    return _RECORD.validate_json(path.read_bytes()) if path.exists() else None
