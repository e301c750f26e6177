"""The report of a network whose classes and files have hostile names, and the figures of its table."""

import os
import shlex
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

from app.cli.main import main
from model.compile import compile_artifact
from model.evaluation import plots
from model.evaluation.page import ClassRow, Page, Study, class_rows, write_page
from model.evaluation.report import answer_figures
from model.image import encode_png
from model.importing import import_network
from model.training.fit import save
from model.training.folder import LabelledImages
from tests.model.conftest import SPEC, random_images, tiny_network
from tests.model.kinds import KINDS

pytestmark = pytest.mark.slow

MOST_BYTES = 3_000_000
CLASS_NAMES = ("\"'>&amp;$x^2$", "<img src=x onerror=alert(1)>", "划痕 \u202eabc")
FILE_NAMES = (f"{'ü' * 100}.png", "a #1?b=100%.png", "<script>alert(2)<.png", os.fsdecode(b"\xff.png"))


class Parsed(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, attribute: str) -> list[str]:
        return [value for name, found in self.tags if name == tag and (value := found.get(attribute))]


def evaluate_hostile_names(folder: Path) -> Path:
    """Run `evaluate --report` and return the path of its page."""
    h5 = folder / "tiny.h5"
    compile_artifact(save(tiny_network(), h5, {"class_names": CLASS_NAMES, "image": SPEC}))
    images = iter(random_images(len(CLASS_NAMES) * len(FILE_NAMES)))
    for class_name in CLASS_NAMES:
        (folder / "data & more" / "test" / class_name).mkdir(parents=True)
        for name in FILE_NAMES:
            (folder / "data & more" / "test" / class_name / name).write_bytes(encode_png(next(images)))
    command = ["evaluate", "--data", str(folder / "data & more"), "--model", str(h5)]
    assert main([*command, "--report", str(folder / "report")]) == 0
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate_hostile_names(tmp_path_factory.mktemp("hostile"))


def study(labels: list[int], predicted: list[int], classes: int, abstained: list[int] | None = None) -> Study:
    probabilities = np.full((len(labels), classes), 0.1, np.float32)
    probabilities[np.arange(len(labels)), predicted] = 0.9
    paths = tuple(Path(f"data/{number}.png") for number in range(len(labels)))
    data = LabelledImages(np.zeros((len(labels), 8, 8, 1), np.uint8), np.array(labels), paths)
    mask = None if abstained is None else np.isin(np.arange(len(labels)), abstained)
    return Study(tuple("ABCD"[:classes]), data, Path("data"), "test images", probabilities, mask)


def test_figures_of_classes_are_those_computed_by_hand() -> None:
    rows = class_rows(study([0, 0, 0, 0, 0, 1, 1, 2], [0, 0, 2, 2, 1, 1, 2, 2], 4, abstained=[0, 2, 7]))
    assert list(rows) == [
        ClassRow("A", images=5, right=2, abstained=2, precision=1.0, recall=2 / 5, taken_for="C (2), B (1)"),
        ClassRow("B", images=2, right=1, abstained=0, precision=1 / 2, recall=1 / 2, taken_for="C (1)"),
        ClassRow("C", images=1, right=1, abstained=1, precision=1 / 4, recall=1.0, taken_for=None),
        ClassRow("D", images=0, right=0, abstained=0, precision=None, recall=None, taken_for=None),
    ]


@pytest.mark.parametrize(("abstained", "marks"), [(None, 0), ([], 0), ([0], 1), ([0, 1], 2)])
def test_worst_answers_say_on_which_the_network_abstains(
    abstained: list[int] | None, marks: int, tmp_path: Path
) -> None:
    found = study([0, 1], [0, 0], 2, abstained)
    page = Parsed(write_page(Page("n", "Verdict: none.", found, lambda _: None, [], [], [], ""), tmp_path))
    assert page.text.count("%, abstained") == marks
    assert ("gives these images no label" in page.text) == (abstained is not None)


def test_long_names_that_differ_late_stay_apart_in_the_confusion() -> None:
    long = [f"Surface defect at the edge of the strip, number {number}" for number in (1, 2)]
    first, second, short = plots.axis_labels([*long, "good"])
    assert (first[:12], second[:12], short) == ("1: Surface d", "2: Surface d", "good")
    assert max(len(first), len(second)) <= plots.LONGEST_NAME


def test_worst_answers_have_the_least_probability_of_their_true_class() -> None:
    found = study([0, 1, 0, 1], [0, 0, 0, 1], 2)
    found.probabilities[:] = [[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [0.8, 0.2]]
    assert found.worst(3).tolist() == [3, 1, 0]


def test_verdict_comes_before_every_figure(page: Path) -> None:
    text = Parsed(page).text
    places = [text.index(words) for words in ("Verdict: right on", "of 12 test images", "Classes", "Worst")]
    assert places == sorted(places)


def test_names_are_text_and_never_markup(page: Path) -> None:
    parsed = Parsed(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not [name for _, found in parsed.tags for name in found if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in parsed.values("img", "src"))
    for name in CLASS_NAMES:
        assert parsed.text.count(name) >= 2
    for name in FILE_NAMES[:3]:
        assert name in parsed.text


def test_links_lead_to_the_files(page: Path) -> None:
    links = [os.fsdecode(unquote_to_bytes(link)) for link in Parsed(page).values("a", "href")]
    files = [(page.parent / link).resolve() for link in links]
    assert all(file.is_file() for file in files)
    assert {file.name for file in files} > set(FILE_NAMES)
    assert set(files) > {file.resolve() for file in page.parent.glob("*.png")}


def test_report_says_how_to_make_it_again(page: Path) -> None:
    [line] = [line for line in Parsed(page).text.splitlines() if line.startswith("ext-classify ")]
    words = shlex.split(line)
    assert words[1:3] == ["evaluate", "--data"]
    assert words[-1] == str(page.parent)
    assert str(Path.cwd()) in Parsed(page).text


def test_page_needs_no_other_file_and_no_network(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert not {"link", "script", "iframe"} & {tag for tag, _ in Parsed(page).tags}


def test_page_of_many_large_images_is_small(tmp_path: Path) -> None:
    """Noise is what a JPEG shrinks least."""
    random = np.random.default_rng(0)
    classes, large = 40, random.integers(0, 256, (1, 700, 600, 3), dtype=np.uint8)
    labels = np.arange(1440) % classes
    paths = tuple(tmp_path / f"{'n' * 200}{number}.png" for number in range(1440))
    data = LabelledImages(np.broadcast_to(large, (1440, *large.shape[1:])), labels, paths)
    probabilities = random.dirichlet(np.ones(classes), 1440).astype(np.float32)
    names = tuple(f"{'class ' * 30}{number}" for number in range(classes))
    found = Study(names, data, tmp_path, "test images", probabilities)
    heat = random.random((700, 600), np.float32)
    figures = [*answer_figures(found)]
    page = write_page(Page("n", "Verdict: none.", found, lambda _: heat, [], figures, [], ""), tmp_path / "r")
    assert page.stat().st_size < MOST_BYTES
    assert Parsed(page).text.count(".png") > 12


@pytest.mark.parametrize("name", ["keras-saved-model", "tflite"])
def test_network_without_layers_has_a_report(name: str, tmp_path: Path) -> None:
    [kind] = [kind for kind in KINDS if kind.name == name]
    artifact = import_network(kind.write(tmp_path)[0], kind.request).artifact
    for class_name in artifact.card.class_names:
        (tmp_path / "data" / "test" / class_name).mkdir(parents=True)
        image = encode_png(random_images(1, artifact.card.image)[0])
        (tmp_path / "data" / "test" / class_name / "1.png").write_bytes(image)
    command = ["evaluate", "--data", str(tmp_path / "data"), "--model", str(artifact.h5_path)]
    assert main([*command, "--report", str(tmp_path / "report")]) == 0
    figures = {file.stem for file in (tmp_path / "report").glob("*.png")}
    assert figures == {"confusion", "reliability", "risk_coverage", "robustness", "worst"}
