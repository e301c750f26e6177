"""The results of tests.trials.scale: a table, and a plot of rows per second."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from model.evaluation.plots import STYLE
from tests.benchmarks.tables import machine

RESULTS = Path(__file__).parent / "results"
COLOUR = "#0072b2"


class Event(NamedTuple):
    """`at` is in seconds since the epoch."""

    at: float
    text: str


class Query(NamedTuple):
    """`calls` counts calls, retries and polls; `moments` are times and the rows answered by then."""

    rows: int
    seconds: float
    calls: str
    statuses: Counter[str]
    moments: Sequence[tuple[str, int]]


def write_report(query: Query, events: Sequence[Event]) -> None:
    RESULTS.mkdir(exist_ok=True)
    statuses = ", ".join(f"{count:,} x {status}" for status, count in query.statuses.most_common())
    table = (
        "| | |\n|---|---|\n"
        f"| rows | {query.rows:,}, each answered once |\n"
        f"| on the client's way | {query.calls} |\n"
        f"| seconds | {query.seconds:.0f} |\n"
        f"| rows a second | {query.rows / query.seconds:.0f}, all that happened included |\n"
        f"| answers by nginx | {statuses} |\n"
        f"| what happened | {', '.join(event.text for event in events)} |\n"
        f"| machine | {machine()} |\n"
    )
    (RESULTS / "scale.md").write_text(table, encoding="utf-8")
    print(table)
    _draw(query.moments, events)


def _draw(moments: Sequence[tuple[str, int]], events: Sequence[Event]) -> None:
    by_second: Counter[int] = Counter()
    for moment, rows in moments:
        by_second[round(datetime.fromisoformat(moment).timestamp())] += rows
    first, last = min(by_second), max(by_second)
    seconds = list(range(first, last + 1))
    style: Any = STYLE
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        axes.step([s - first for s in seconds], [by_second[s] for s in seconds], color=COLOUR, where="post")
        top = max(by_second.values())
        for number, event in enumerate(events):
            axes.axvline(event.at - first, color="#6b7580", linewidth=0.8, linestyle=":")
            axes.text(
                event.at - first, top * (1.02 + 0.07 * (number % 3)), event.text, fontsize=7, ha="center"
            )
        axes.set_ylim(0, top * 1.25)
        axes.set_xlabel("seconds")
        axes.set_ylabel("rows answered a second")
        figure.savefig(RESULTS / "scale.png", dpi=200)
