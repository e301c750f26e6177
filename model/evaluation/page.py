"""The report's page: a verdict, a table of classes, the worst answers and the figures, in one HTML file."""

import base64
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from model.arrays import Floats, Ints, Mask, Pixels
from model.evaluation import plots
from model.training.folder import LabelledImages
from model.training.metrics import confusion_matrix

PAGE = "report.html"
MOST_WORST = 12
MOST_TAKEN_FOR = 3
MOST_WORST_DRAWN = 6
"""In worst.png, which fits a slide."""
_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_PICTURE_SIDE, _JPEG_QUALITY = 256, 80


@dataclass(frozen=True)
class Study:
    """Labelled images and a network's answers for them."""

    class_names: tuple[str, ...]
    data: LabelledImages
    data_dir: Path
    what: str
    """The images in words, such as "test images"."""
    probabilities: Floats
    """(n, k)."""
    abstained: Mask | None = None
    """(n,), or None if the network never abstains."""

    @property
    def predicted(self) -> Ints:
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def right(self) -> Mask:
        return np.asarray(self.predicted == self.data.labels)

    def worst(self, most: int) -> Ints:
        """Places of the images with the lowest probability of their true class, the lowest first."""
        of_label = self.probabilities[np.arange(len(self.data)), self.data.labels]
        return np.argsort(of_label, kind="stable")[:most]


class ClassRow(NamedTuple):
    """A class in the table; None where a cell has nothing to show."""

    name: str
    images: int
    right: int
    abstained: int | None
    precision: float | None
    recall: float | None
    taken_for: str | None


class Fact(NamedTuple):
    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    heading: str
    words: str
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """In CSS pixels, at which its text has the size that it was drawn for."""
        return round(Image.open(io.BytesIO(self.png)).width * plots.CSS_DPI / plots.DPI)


@dataclass(frozen=True)
class Page:
    """What a page says."""

    name: str
    """Of the network."""
    verdict: str
    study: Study
    heat_of: Callable[[int], Floats | None]
    """The evidence (h, w) for the answer to an image, by its place."""
    facts: Sequence[Fact]
    figures: Sequence[Drawn]
    origin: Sequence[Fact]
    command: str
    """That makes the report again; empty if no command made it."""


def write_page(page: Page, report_dir: Path) -> Path:
    """Write report.html and a PNG of each figure to a folder, and return the path of the page."""
    report_dir.mkdir(parents=True, exist_ok=True)
    for name, png in [*((figure.name, figure.png) for figure in page.figures), ("worst", _draw_worst(page))]:
        (report_dir / f"{name}.png").write_bytes(png)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        page=page,
        rows=class_rows(page.study),
        worst=[_picture(page, int(place), report_dir) for place in page.study.worst(MOST_WORST)],
        folder=Path.cwd(),
        written=datetime.now().astimezone(),
    )
    path = report_dir / PAGE
    path.write_text(text, encoding="utf-8", errors="replace")  # a file's name may be no valid text
    return path


def class_rows(study: Study) -> Iterator[ClassRow]:
    matrix = confusion_matrix(study.predicted, study.data.labels, len(study.class_names))
    for label, name in enumerate(study.class_names):
        images, answers = int(matrix[label].sum()), int(matrix[:, label].sum())
        right = int(matrix[label, label])
        others = np.where(np.arange(len(matrix)) == label, 0, matrix[label])
        most = [place for place in np.argsort(-others, kind="stable")[:MOST_TAKEN_FOR] if others[place]]
        abstained = None if study.abstained is None else study.abstained[study.data.labels == label]
        yield ClassRow(
            name,
            images,
            right,
            abstained=None if abstained is None else int(abstained.sum()),
            precision=right / answers if answers else None,
            recall=right / images if images else None,
            taken_for=", ".join(f"{study.class_names[place]} ({others[place]})" for place in most) or None,
        )


def _picture(page: Page, place: int, report_dir: Path) -> dict[str, object]:
    """What the template shows of an image."""
    study = page.study
    image, path = study.data.images[place], study.data.paths[place]
    answer, label = int(study.predicted[place]), int(study.data.labels[place])
    heat = page.heat_of(place)
    return {
        "name": Path(os.path.relpath(path, study.data_dir)).as_posix(),
        "href": quote(os.fsencode(Path(os.path.relpath(path, report_dir)).as_posix())),
        "is_right": answer == label,
        "abstained": study.abstained is not None and study.abstained[place],
        "answer": study.class_names[answer],
        "confidence": f"{study.probabilities[place, answer]:.1%}",
        "truth": study.class_names[label],
        "truth_confidence": f"{study.probabilities[place, label]:.1%}",
        "image": _jpeg(image),
        "evidence": None if heat is None else _jpeg(plots.overlaid(image, heat)),
    }


def _draw_worst(page: Page) -> bytes:
    study = page.study
    chosen = study.worst(MOST_WORST_DRAWN)
    titles = [
        f"{study.probabilities[place].max():.0%} {study.class_names[study.predicted[place]]}"
        + ("" if study.right[place] else f"\ntrue: {study.class_names[study.data.labels[place]]}")
        for place in chosen
    ]
    heats = [page.heat_of(int(place)) for place in chosen]
    return plots.mistakes(study.data.images[chosen], heats, titles)


def _jpeg(image: Pixels) -> str:
    """Base64 of a JPEG that bounds the page's size; a small image stays as large as it is."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()
