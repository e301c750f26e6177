"""Output of commands: plain text, or colours and progress bars from rich on a terminal."""

import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from app.outcome import Outcome

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
"""Adds a number of finished items to the progress."""

WIDEST_BAR = 24


Screen: TypeAlias = "PlainScreen | _RichScreen"


def open_screen(*, as_json: bool = False) -> Screen:
    """Return rich output on a terminal, if the terminal extra is installed; otherwise plain output."""
    return _RichScreen() if not as_json and sys.stdout.isatty() and _rich() else PlainScreen()


class PlainScreen:
    """Text without colours, for pipes, files, and installations without rich."""

    def line(self, text: str = "", style: str = "") -> None:  # noqa: ARG002 - plain output has no colours
        print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for cells in [columns, ["-" * width for width in widths], *rows]:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())

    def summary(self, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:  # noqa: ARG002
        """Print `text`; on a terminal, the table."""
        self.line(text)

    @contextmanager
    def progress(self, total: int | None, what: str) -> Iterator[Advance]:
        """Show a progress bar on stderr if it is a terminal and stdout is redirected."""
        if sys.stdout.isatty() or not sys.stderr.isatty() or not _rich():
            yield lambda _: None
            return
        with _bar(total, what, _rich_console(stderr=True)) as advance:
            yield advance


class _RichScreen:
    def __init__(self) -> None:
        self._console = _rich_console()

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - optional
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415 - no markup: file names can contain square brackets

        table = Table(box=SIMPLE_HEAD)
        for number, name in enumerate(columns):
            is_number = bool(rows) and all(_is_number(row[number]) for row in rows)
            table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def summary(self, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:  # noqa: ARG002
        self.table(columns, rows)

    @contextmanager
    def progress(self, total: int | None, what: str) -> Iterator[Advance]:
        """Show a progress bar below the printed lines."""
        with _bar(total, what, self._console) as advance:
            yield advance


@contextmanager
def _bar(total: int | None, what: str, console: "Console") -> Iterator[Advance]:
    from rich.progress import (  # noqa: PLC0415 - optional
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(WIDEST_BAR),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *([] if total is None else [TextColumn("left"), TimeRemainingColumn()]),
        console=console,
        transient=True,
        # Printed output goes to its own stream, not through the progress bar.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with shown as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def bar(share: float, width: int = WIDEST_BAR) -> str:
    """Return a bar of `share` (0 to 1) of `width` characters. Any share above 0 is visible."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[rest].strip()


def _rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _rich_console(*, stderr: bool = False) -> "Console":
    from rich.console import Console  # noqa: PLC0415 - optional

    return Console(stderr=stderr, highlight=False, emoji=False)  # `answer:label::string` is SQL


def _is_number(cell: str) -> bool:
    try:
        float(cell.removesuffix(" %").replace(",", ""))
    except ValueError:
        return False
    return True


# Labels with less confidence are marked for review, as in infra/snowflake/31_queries.sql.
UNSURE_BELOW = 0.9
_LABEL_WIDTH = 18
# A file's name could colour the terminal, break the line, or reverse its text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutcomeLines:
    """Prints a heading, then one line per outcome."""

    def __init__(self, screen: Screen, names: Sequence[str]) -> None:
        self._screen = screen
        short = {name: PurePath(name).name for name in names}
        has_twins = len(set(short.values())) < len(short)
        self._short = {name: _escaped(name if has_twins else short[name]) for name in names}
        self._width = max(map(len, ["image", *self._short.values()]))
        self._has_heading = False

    def show(self, name: str, outcome: Outcome) -> None:
        if not self._has_heading:
            self._screen.line(
                f"{'image':<{self._width}}  {'label':<{_LABEL_WIDTH}}  confidence, or what is wrong", "bold"
            )
            self._has_heading = True
        details, style = _details(outcome)
        line = f"{self._short[name]:<{self._width}}  {label_of(outcome):<{_LABEL_WIDTH}}  {details}"
        self._screen.line(line, style)


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class Tally:
    def __init__(self) -> None:
        self._confidences: dict[str, list[float]] = defaultdict(list)
        self.failed = 0
        self.models: dict[str, None] = {}
        """Name and version of each network that answered, in order."""

    def add(self, outcome: Outcome) -> None:
        if name := outcome["model"]["name"]:  # empty for a file that could not be read
            self.models[f"{name} {outcome['model']['version']}"] = None
        self._confidences[label_of(outcome)].append(outcome["confidence"] or 0.0)
        self.failed += outcome["error"] is not None

    @property
    def images(self) -> int:
        return sum(map(len, self._confidences.values()))

    def __str__(self) -> str:
        counts = sorted((label, len(of)) for label, of in self._confidences.items())
        return ", ".join(f"{count} {label}" for label, count in counts)

    def as_json(self) -> Mapping[str, Any]:
        counts = {label: len(of) for label, of in sorted(self._confidences.items())}
        return {"images": self.images, "failed": self.failed, "labels": counts, "models": list(self.models)}

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


def _details(outcome: Outcome) -> tuple[str, str]:
    """What follows the label, and the colour of the line."""
    if outcome["error"] is not None:
        return outcome["error"]["message"], "red"
    if outcome["abstained"]:
        return f"{outcome['reason']}, nearest {outcome['nearest_label']}", "yellow"
    confidence = outcome["confidence"] or 0.0
    return f"{confidence:.4f}", "green" if confidence >= UNSURE_BELOW else "yellow"
