"""All that a run found."""

from dataclasses import dataclass, field
from typing import NamedTuple

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
