"""The input of a plan (measurement and request), and the figures in its output."""

import math
from dataclasses import dataclass
from typing import Literal

from app.cli.plan.prices import EXAMPLE_CREDIT_PRICE_USD, PROVIDERS, Terms
from app.errors import CommandError


class PlanError(CommandError):
    """No plan is possible for this input."""


@dataclass(frozen=True)
class Figure:
    """A line of a plan; `arithmetic` shows how its value is calculated."""

    key: str
    label: str
    value: float
    arithmetic: str


@dataclass(frozen=True)
class Measured:
    """What one instance does with images that need no fetching. Raises PlanError for invalid values."""

    images_per_second: float
    cores: int
    image_bytes: int
    outcome_bytes: int = 500
    batch_overhead_seconds: float = 0.0
    """The part of a batch's seconds that does not depend on its rows."""
    busy_batches: int = 2
    """Concurrent batches that keep its cores busy."""
    cpu_seconds_per_image: float | None = None
    how: str = "given"

    def __post_init__(self) -> None:
        _require_positive("rate in images a second", self.images_per_second)
        _require_positive("number of cores", self.cores)
        _require_positive("size of an image in bytes", self.image_bytes)


@dataclass(frozen=True)
class Request:
    """What to plan for. Raises PlanError for invalid values."""

    images: int = 1_000_000
    deadline_minutes: float = 60.0
    provider: str = "aws"
    """A key of PROVIDERS."""
    source: Literal["url", "base64"] = "url"
    fetch_milliseconds: float = 100.0
    warehouse: str = "XS"
    credit_price: float = EXAMPLE_CREDIT_PRICE_USD
    max_concurrent_fetches: int = 64
    evidence: bool = False
    max_rows: int = 4096

    def __post_init__(self) -> None:
        _require_positive("number of images", self.images)
        _require_positive("deadline in minutes", self.deadline_minutes)
        _require_positive("time to fetch in milliseconds", self.fetch_milliseconds, allow_zero=True)
        _require_positive("price of a credit", self.credit_price, allow_zero=True)

    @property
    def terms(self) -> Terms:
        return PROVIDERS[self.provider]

    @property
    def in_warehouse(self) -> bool:
        """Whether a UDF classifies inside the warehouse, without a gateway."""
        return self.provider == "udf"

    @property
    def fetch_seconds(self) -> float:
        return self.fetch_milliseconds / 1000 if self.source == "url" else 0.0


def _require_positive(name: str, value: float, *, allow_zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not allow_zero):
        rule = "must not be negative" if allow_zero else "must be more than 0"
        raise PlanError(f"The {name} {rule}. Received: {value}.")


def show(number: float) -> str:
    """Format a number for people: whole if large, about three digits if small."""
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 0.001:
        return f"{number:.4f}".rstrip("0") if abs(number) < 1 else f"{number:.2f}"
    return f"{number:.2g}"
