"""Draw the figures of the last run again: python -m tests.benchmarks.serving_plots."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from model.evaluation.plots import INK
from model.evaluation.plots import STYLE as PAGE_STYLE
from tests.benchmarks.cells import OURS, PUBLISHED, closed_cells, open_loop
from tests.benchmarks.measurements import Measurements, median, read_csv
from tests.benchmarks.serving_tables import compared_cells, cpu_ms, faster_engine
from tests.benchmarks.tables import RESULTS

GREY = "#6b7580"
_GRAPHS = ("", " (rewritten)")
# Mostly Okabe and Ito's palette, for colour-blind readers; our lines are also thicker.
COLOURS = {
    OURS: "#0072b2",
    "FastAPI + onnxruntime": "#e69f00",
    "FastAPI + onnxruntime (rewritten)": "#f0e442",
    "FastAPI + TensorFlow": "#d55e00",
    "FastAPI + LiteRT": "#332288",
    "FastAPI + LiteRT (our decoder)": "#882255",
    "FastAPI + OpenVINO": "#117733",
    **{f"LitServe + onnxruntime{graph}": "#cc79a7" for graph in _GRAPHS},
    **{f"BentoML + onnxruntime{graph}": "#009e73" for graph in _GRAPHS},
    **{f"PyTriton + onnxruntime{graph}": "#56b4e9" for graph in _GRAPHS},
    PUBLISHED: INK,
}
MARKERS = dict(zip(COLOURS, "oDds*ph^^vvPPX", strict=True))
STYLE: Any = {**PAGE_STYLE, "axes.titlesize": 10, "savefig.dpi": 200}
WIDTH_INCHES = 9.0
BATCH_ROWS = (1, 16, 64, 512)


def write_plots(measurements: Measurements, about: str, folder: Path) -> None:
    drawings = {
        "serving_throughput": (
            _throughput,
            4.3,
            "Images a second by rows in a request, at the load that suits each",
        ),
        "serving_latency": (_latency, 4.3, "Latency of requests of one row: p50 (filled) to p99 (hollow)"),
        "serving_cpu": (_cpu, 3.1, "CPU milliseconds an image, in requests of 64 rows"),
    }
    for name, (draw, height, title) in drawings.items():
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor="white")
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
            figure.supxlabel(about, x=0.01, ha="left", fontsize=7, color=GREY)
            axes = figure.subplots(1, len(measurements.networks), squeeze=False)[0]
            for axis, network in zip(axes, measurements.networks, strict=True):
                axis.set_title(network)
                draw(axis, measurements, network)
            figure.savefig(folder / f"{name}.png")


def _servers(measurements: Measurements, network: str) -> list[str]:
    measured = measurements.contenders(network)
    return [name for name in COLOURS if name in measured]


def _throughput(axis: Axes, measurements: Measurements, network: str) -> None:
    ends: list[tuple[float, str]] = []
    for name in _servers(measurements, network):
        points = [
            (place, median(rates))
            for place, rows in enumerate(BATCH_ROWS)
            if (rates := measurements.best_rates(network, name, compared_cells(name, "snowflake", rows)))
        ]
        if points:
            axis.plot(*zip(*points, strict=True), **_line_style(name))
            ends.append((points[-1][1], name))
    limit = faster_engine(measurements, network)
    if limit is not None:
        rate = median(measurements.best_rates(network, limit, closed_cells("snowflake", 64)))
        axis.plot([-0.15, len(BATCH_ROWS) - 1], [rate, rate], color=GREY, dashes=(5, 3), linewidth=1.2)
        axis.annotate(
            "engine alone", (0, rate), xytext=(0, 3), textcoords="offset points", color=GREY, fontsize=8
        )
    axis.set_xticks(range(len(BATCH_ROWS)), [str(rows) for rows in BATCH_ROWS])
    axis.set_xlim(-0.15, len(BATCH_ROWS) + 0.75)
    axis.set_ylim(bottom=0, top=axis.get_ylim()[1] * 1.05)
    axis.set_xlabel("rows in a request", x=0.33)
    _label_ends(axis, ends)


def _line_style(name: str) -> dict[str, Any]:
    return {
        "color": COLOURS[name],
        "marker": MARKERS[name],
        "markersize": 6 if name == OURS else 4.5,
        "linewidth": 2.6 if name == OURS else 1.4,
        "zorder": 4 if name == OURS else 3,
    }


def _label_ends(axis: Axes, ends: Sequence[tuple[float, str]]) -> None:
    """Names next to the lines' ends."""
    names = [name for _, name in sorted(ends)]
    heights = _moved_apart(sorted(height for height, _ in ends), 0.062 * axis.get_ylim()[1])
    for height, name in zip(heights, names, strict=True):
        axis.annotate(
            name,
            (len(BATCH_ROWS) - 0.88, height),
            color=COLOURS[name],
            fontsize=8,
            fontweight="bold" if name == OURS else "normal",
            va="center",
        )


def _moved_apart(heights: Sequence[float], least: float) -> list[float]:
    """Ascending heights, at least `least` apart; labels that would overlap spread around their middle."""
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _bottom(clusters[-1], least) - _top(clusters[-2], least) < least:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_bottom(cluster, least) + least * place for cluster in clusters for place in range(len(cluster))]


def _bottom(cluster: Sequence[float], least: float) -> float:
    return max(0.0, sum(cluster) / len(cluster) - least * (len(cluster) - 1) / 2)


def _top(cluster: Sequence[float], least: float) -> float:
    return _bottom(cluster, least) + least * (len(cluster) - 1)


def _latency(axis: Axes, measurements: Measurements, network: str) -> None:
    loads = {
        "1 connection": closed_cells("snowflake", 1)[0],
        "open loop, 50 % of\nits greatest rate": open_loop("snowflake", 1, 0.5),
        "open loop, 150 %": open_loop("snowflake", 1, 1.5),
    }
    names = [name for name in _servers(measurements, network) if name != PUBLISHED]
    step = 0.8 / max(len(names), 1)
    for place, cell in enumerate(loads.values()):
        for turn, name in enumerate(names):
            p50 = measurements.by_round(network, name, cell, "p50_ms")
            p99 = measurements.by_round(network, name, cell, "p99_ms")
            if p50 and p99:
                x = place - 0.4 + step * (turn + 0.5)
                _draw_span(axis, x, median(p50), median(p99), name)
    handles = [
        Line2D([], [], color=COLOURS[n], marker=MARKERS[n], markersize=5.5, linewidth=0) for n in names
    ]
    axis.set_xlim(-0.5, len(loads) - 0.5)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("ms")
    axis.set_xticks(range(len(loads)), list(loads))
    axis.grid(visible=False, axis="x")
    axis.legend(handles, names, fontsize=7.5, loc="upper left", handletextpad=0.3, labelspacing=0.3)


def _draw_span(axis: Axes, x: float, low: float, high: float, name: str) -> None:
    """A line with a filled mark below and a hollow one above."""
    colour, marker = COLOURS[name], MARKERS[name]
    axis.plot([x, x], [low, high], color=colour, linewidth=2.6 if name == OURS else 1.4)
    axis.plot(x, high, color=colour, marker=marker, markersize=5, markerfacecolor="white", linestyle="none")
    axis.plot(x, low, color=colour, marker=marker, markersize=5.5, linestyle="none")


def _cpu(axis: Axes, measurements: Measurements, network: str) -> None:
    spent = {
        name: median(found)
        for name in _servers(measurements, network)
        if (found := cpu_ms(measurements, network, name))
    }
    limit = faster_engine(measurements, network)
    if limit is not None and (found := cpu_ms(measurements, network, limit)):
        spent["engine alone"] = median(found)
    order = sorted(spent, key=spent.__getitem__, reverse=True)
    # The published recipe takes a hundred times as much: its bar leaves the plot.
    edge = 1.3 * max((value for name, value in spent.items() if name != PUBLISHED), default=1.0)
    for place, name in enumerate(order):
        leaves = spent[name] > edge
        axis.barh(place, min(spent[name], edge), color=COLOURS.get(name, GREY), height=0.68)
        axis.annotate(
            f"{spent[name]:.3g}" + (" →" if leaves else ""),
            (min(spent[name], edge), place),
            xytext=(-4 if leaves else 3, 0),
            textcoords="offset points",
            color="white" if leaves else INK,
            ha="right" if leaves else "left",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(order)), order)
    for text in axis.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() == OURS else "normal")
    axis.set_xlim(0, edge)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where serving_cells.csv is")
    folder = parser.parse_args().folder
    measurements, about = read_csv(folder / "serving_cells.csv")
    write_plots(measurements, about, folder)


if __name__ == "__main__":
    main()
