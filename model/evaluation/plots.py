"""The report's figures; each function draws one and returns it as PNG."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

from model.arrays import Floats, Ints, Pixels
from model.training.metrics import Reliability, RiskCoverage

INK, GRID, BLUE, ORANGE, GREY = "#1f2933", "#d5dbe1", "#2166ac", "#d9730d", "#8a949e"
DPI, CSS_DPI = 192, 96
"""Sharp on a screen of two dots a CSS pixel, and on a slide."""
WIDTH = 7.2
"""Of a figure, in inches; text of 11 points then has 15 CSS pixels on the page."""
STYLE: Any = {  # Any, as matplotlib's type is a literal of all keys
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "font.size": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
MOST_NAMED_CLASSES = 40
LONGEST_NAME = 28


def mistakes(images: Pixels, heats: Sequence[Floats | None], titles: Sequence[str]) -> bytes:
    """Images for a slide; in a lower row, the same images under the evidence for their answers, if any."""
    rows = 1 if all(heat is None for heat in heats) else 2
    figure, axes = _figure(13.3, 0.6 + 2.2 * rows, rows, len(images))
    for axis in axes.flat:
        axis.axis("off")
    for column, (image, heat, title) in enumerate(zip(images, heats, titles, strict=True)):
        axes[0, column].set_title(_plain(title, 18), fontsize=13, loc="center")
        axes[0, column].imshow(_grey(image), cmap="gray", vmin=0, vmax=255)
        if heat is not None:
            axes[1, column].imshow(overlaid(image, heat))
    return _png(figure)


def overlaid(image: Pixels, heat: Floats) -> Pixels:
    """An image (h, w, c) in grey under its evidence (h, w), 0 to 1, in colours: (h, w, 3)."""
    colours = 255 * mpl.colormaps["inferno"](heat)[..., :3]
    mixed = 0.45 * image.mean(axis=2, keepdims=True) + 0.55 * colours
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def training_curves(loss: Sequence[float], accuracy: Sequence[float]) -> bytes:
    figure, axes = _figure(WIDTH, 2.9, 1, 2)
    epochs = np.arange(1, len(loss) + 1)
    for axis, values, name in ((axes[0, 0], loss, "loss"), (axes[0, 1], accuracy, "accuracy")):
        axis.plot(epochs, values, color=BLUE)
        axis.set_title(name)
        axis.set_xlabel("epoch")
    return _png(figure)


def confusion(matrix: Ints, class_names: Sequence[str]) -> bytes:
    """Rows are true classes; a cell's shade is its share of the row."""
    classes = len(class_names)
    side = min(2.6 + 0.6 * classes, 12)
    figure, axis = _axis(side, side)
    axis.grid(visible=False)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= MOST_NAMED_CLASSES:
        names = axis_labels(class_names)
        axis.set_xticks(range(classes), names, rotation=45, ha="right")
        axis.set_yticks(range(classes), names)
    axis.set_xlabel("answer")
    axis.set_ylabel("true class")
    if classes <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            shade = "white" if shares[row, column] > 0.5 else INK
            axis.text(column, row, str(count) if count else "·", ha="center", va="center", color=shade)
    return _png(figure)


def axis_labels(class_names: Sequence[str]) -> list[str]:
    """Names short enough for an axis; a shortened one has its number, as it may have lost what differs."""
    return [
        _plain(name if len(name) <= LONGEST_NAME else f"{number}: {name}", LONGEST_NAME, f"class {number}")
        for number, name in enumerate(class_names, 1)
    ]


def reliability_diagram(found: Reliability) -> bytes:
    figure, axis = _axis(5.4, 4.8)
    some = found.images > 0
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    area = 20 + 260 * found.images[some] / found.images.max()
    axis.scatter(
        found.confidence[some],
        found.accuracy[some],
        s=area,
        color=BLUE,
        alpha=0.75,
        label="answers of similar confidence,\nlarger: more of them",
    )
    axis.set(xlim=(0, 1.03), ylim=(0, 1.05), xlabel="confidence", ylabel="accuracy")
    axis.set_title(f"expected calibration error {found.expected_calibration_error:.2%}")
    axis.legend(loc="upper left", markerscale=0.5)
    return _png(figure)


def risk_coverage_curve(found: RiskCoverage) -> bytes:
    figure, axis = _axis(WIDTH, 3.6)
    axis.plot(100 * found.coverage, 100 * found.risk, color=BLUE, linewidth=2, clip_on=False)
    axis.set(
        xlim=(0, 100),
        ylim=(0, max(1.0, 110 * float(found.risk.max()))),
        xlabel="coverage: % of images, most confident first",
        ylabel="risk: % of them misclassified",
    )
    return _png(figure)


def novelty_histogram(scores: dict[str, Floats], threshold: float) -> bytes:
    """Histogram of scores by set of images, with the threshold; the first set is blue."""
    figure, axis = _axis(WIDTH, 3.6)
    most = max(float(np.quantile(values, 0.98)) for values in scores.values())
    bins = np.linspace(0, max(most, 2 * threshold), 50)
    shades = itertools.cycle([BLUE, ORANGE, *mpl.color_sequences["tab10"][2:]])
    for (name, values), shade in zip(scores.items(), shades, strict=False):
        weights = np.full(len(values), 1 / len(values))
        clipped = np.clip(values, 0, bins[-1])
        axis.hist(
            clipped, bins=bins, weights=weights, alpha=0.55, color=shade, label=_plain(name, LONGEST_NAME)
        )
    axis.axvline(threshold, color=INK, linestyle="--", linewidth=1)
    axis.text(threshold, axis.get_ylim()[1], " abstains →", va="top")
    axis.set(xlabel="novelty score", ylabel="share of images")
    axis.legend()
    return _png(figure)


def robustness_chart(accuracies: dict[tuple[str, str], float], clean: float) -> bytes:
    """A bar of accuracy per kind and severity, with a line at the accuracy on clean images."""
    figure, axis = _axis(WIDTH, 0.8 + 0.27 * len(accuracies))
    names = [f"{kind}, {severity}" for kind, severity in accuracies]
    places = np.arange(len(names))
    axis.barh(places, [100 * value for value in accuracies.values()], color=BLUE, height=0.7)
    axis.axvline(100 * clean, color=INK, linestyle="--", linewidth=1)
    for place, value in zip(places, accuracies.values(), strict=True):
        axis.text(100 * max(value, clean) + 0.5, place, f"{value:.1%}", va="center", fontsize=9)
    axis.set_yticks(places, names, fontsize=9)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set(xlim=(0, 108), xlabel="accuracy in % (dashed: clean images)")
    return _png(figure)


def _axis(width: float, height: float) -> tuple[Figure, Any]:
    figure, axes = _figure(width, height, 1, 1)
    return figure, axes[0, 0]


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plain(text: str, width: int, instead: str = "?") -> str:
    """Shorten lines, and escape what matplotlib would parse as mathematics.

    A line that its font cannot show, such as a Chinese name, becomes `instead`.
    """
    font = get_font(findfont(FontProperties()))
    lines = [line if len(line) <= width else f"{line[: width - 1]}…" for line in text.split("\n")]
    shown = [line if all(font.get_char_index(ord(sign)) for sign in line) else instead for line in lines]
    return "\n".join(shown).replace("$", r"\$")


def _grey(image: Pixels) -> Pixels:
    return image[..., 0] if image.shape[-1] == 1 else image
