"""Outcomes in readable form: one line per image, and a summary."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from app.outcome import Outcome
from app.terminal import Screen, bar, style_of

# Labels with less confidence are marked for review, as in infra/snowflake/31_queries.sql.
UNSURE_BELOW = 0.9
_LABEL_WIDTH = 18


class OutcomeLines:
    """Prints a heading, then one line per outcome."""

    def __init__(self, screen: Screen, names: Sequence[str]) -> None:
        self._screen = screen
        self._short = _short_names(names)
        self._width = max(map(len, ["image", *self._short.values()]))
        self._has_heading = False

    def show(self, name: str, outcome: Outcome) -> None:
        if not self._has_heading:
            self._screen.line(
                f"{'image':<{self._width}}  {'label':<{_LABEL_WIDTH}}  confidence, or what is wrong", "bold"
            )
            self._has_heading = True
        line = f"{self._short[name]:<{self._width}}  {label_of(outcome):<{_LABEL_WIDTH}}  {_details(outcome)}"
        self._screen.line(line, _style(outcome))


class Tally:
    """Counts outcomes and confidences per label."""

    def __init__(self) -> None:
        self._confidences: dict[str, list[float]] = defaultdict(list)
        self.failed = 0

    def add(self, outcome: Outcome) -> None:
        self._confidences[label_of(outcome)].append(_confidence(outcome))
        self.failed += outcome["error"] is not None

    @property
    def images(self) -> int:
        return sum(map(len, self._confidences.values()))

    def __str__(self) -> str:
        counts = sorted((label, len(of)) for label, of in self._confidences.items())
        return ", ".join(f"{count} {label}" for label, count in counts)

    def as_json(self) -> Mapping[str, Any]:
        counts = {label: len(of) for label, of in sorted(self._confidences.items())}
        return {"images": self.images, "failed": self.failed, "labels": counts}

    def rows(self) -> Iterator[list[str]]:
        """Rows of label, count, share as a bar, and mean confidence: most frequent first, errors last."""
        labels = sorted(
            self._confidences,
            key=lambda label: (label.startswith("("), -len(self._confidences[label]), label),
        )
        for label in labels:
            of = self._confidences[label]
            mean = f"{sum(of) / len(of):.4f}" if not label.startswith("(") else ""
            yield [label, str(len(of)), bar(len(of) / self.images), mean]


def label_of(outcome: Outcome) -> str:
    """Return the label, or the reason in parentheses why there is none."""
    if outcome["error"] is not None:
        return f"({outcome['error']['code']})"
    return "(abstained)" if outcome["abstained"] else str(outcome["label"])


def _details(outcome: Outcome) -> str:
    if outcome["error"] is not None:
        return outcome["error"]["message"]
    if outcome["abstained"]:
        return f"{outcome['reason']}, nearest {outcome['nearest_label']}"
    return f"{outcome['confidence']:.4f}"


def _confidence(outcome: Outcome) -> float:
    return outcome["confidence"] or 0.0


def _style(outcome: Outcome) -> str:
    unsure = outcome["abstained"] or _confidence(outcome) < UNSURE_BELOW
    return style_of(failed=outcome["error"] is not None, unsure=unsure)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Map paths to file names, or to themselves if two files have the same name."""
    short = {name: PurePath(name).name for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}
