"""What a plan is made from, and the lines that it is made of."""

import math
from dataclasses import dataclass
from typing import Literal

from app.command_line import CommandError
from app.plan.prices import EXAMPLE_CREDIT_PRICE_USD, PROVIDERS, Terms


class PlanError(CommandError):
    """No plan can be made of what was given."""


@dataclass(frozen=True)
class Figure:
    """A line of a plan; `arithmetic` is how its value comes about, to be checked by hand."""

    key: str
    label: str
    value: float
    arithmetic: str


@dataclass(frozen=True)
class Measured:
    """What one instance does with images that need no fetching. Raises PlanError for what cannot be."""

    images_per_second: float
    cores: int
    image_bytes: int
    outcome_bytes: int = 500
    batch_overhead_seconds: float = 0.0
    """Of a batch's seconds, those that do not grow with its rows."""
    busy_batches: int = 2
    """Batches in flight that keep its cores busy."""
    cpu_seconds_per_image: float | None = None
    how: str = "as given"

    def __post_init__(self) -> None:
        _refuse("rate in images a second", self.images_per_second)
        _refuse("number of cores", self.cores)
        _refuse("size of an image in bytes", self.image_bytes)


@dataclass(frozen=True)
class Request:
    """What is to be planned. Raises PlanError for what cannot be."""

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
        _refuse("number of images", self.images)
        _refuse("deadline in minutes", self.deadline_minutes)
        _refuse("time to fetch in milliseconds", self.fetch_milliseconds, none_is_fine=True)
        _refuse("price of a credit", self.credit_price, none_is_fine=True)

    @property
    def terms(self) -> Terms:
        return PROVIDERS[self.provider]

    @property
    def in_warehouse(self) -> bool:
        """Whether a UDF does the work, which no gateway stands before."""
        return self.provider == "udf"

    @property
    def fetch_seconds(self) -> float:
        return self.fetch_milliseconds / 1000 if self.source == "url" else 0.0


def _refuse(name: str, value: float, *, none_is_fine: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not none_is_fine):
        rule = "must not be negative" if none_is_fine else "must be more than 0"
        raise PlanError(f"The {name} {rule}. Received: {value}.")


def show(number: float) -> str:
    """A number as a reader wants it: whole where it is large, three digits where it is not."""
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 0.001:
        return f"{number:.4f}".rstrip("0") if abs(number) < 1 else f"{number:.2f}"
    return f"{number:.2g}"
