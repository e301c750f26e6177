"""The report on an artifact: one self-contained HTML page, and its figures as PNG files."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.defaults import usable_cores, user_cache_dir
from model.engines import Answers, Classifier, open_classifier
from model.evaluation import plots
from model.evaluation.corruptions import corruptions
from model.evaluation.localisation import judge, read_boxes
from model.evaluation.out_of_distribution import out_of_distribution_sets
from model.evidence import Box, against_the_others, heat_of
from model.image import ImageSpec, decode_sized
from model.image_limits import ImageLimits
from model.networks.keras_model import layer_costs, load_network
from model.training.folder import LabelledImages, load_part
from model.training.metrics import confusion_matrix, measure, reliability, risk_coverage, wilson_interval

PAGE = "report.html"
_TRAINING_FACTS = {
    "parameters": "parameters",
    "macs": "multiply-accumulate operations per image",
    "temperature": "temperature of the softmax",
    "train_seconds": "training time in seconds",
}
_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_SAMPLES, _COLUMNS, _MISTAKES = 24, 8, 6


@dataclass(frozen=True)
class Studied:
    """An artifact, its outputs on labelled images, and its novelty scores on out-of-distribution images."""

    artifact: Artifact
    classifier: Classifier
    data: LabelledImages
    data_dir: Path
    split: str
    answers: Answers
    out_of_distribution: dict[str, NDArray[np.float32]]
    """Novelty scores (m,) by set of images."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        return np.asarray(self.answers.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.asarray(self.predicted == self.data.labels)


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


@dataclass(frozen=True)
class Labelled:
    """The images of a report: one split of a folder."""

    data: LabelledImages
    data_dir: Path
    split: str


def report(
    artifact: Artifact, data_dir: Path, split: str, out_of_distribution_dirs: Sequence[Path], report_dir: Path
) -> Path:
    """Measure an artifact on a split of a folder, write its report and return the path of the page."""
    data = load_part(data_dir, split, artifact.card.class_names, artifact.card.image)
    return report_on(artifact, Labelled(data, data_dir, split), out_of_distribution_dirs, report_dir)


def report_on(
    artifact: Artifact, given: Labelled, out_of_distribution_dirs: Sequence[Path], report_dir: Path
) -> Path:
    """Measure an artifact, write the page and its figures, and return the path of the page."""
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    studied = Studied(
        artifact=artifact,
        classifier=classifier,
        data=given.data,
        data_dir=given.data_dir,
        split=given.split,
        answers=classifier.answer(given.data.images, with_features=True),
        out_of_distribution=_novelty_scores(artifact, classifier, out_of_distribution_dirs),
    )
    return write_report(studied, report_dir)


def write_report(studied: Studied, report_dir: Path) -> Path:
    """Write report.html and one PNG per figure to a folder, and return the path of the page."""
    report_dir.mkdir(parents=True, exist_ok=True)
    figures = list(_figures(studied))
    for figure in figures:
        (report_dir / f"{figure.name}.png").write_bytes(figure.png)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    artifact = studied.artifact
    page = report_dir / PAGE
    page.write_text(
        template.render(
            title=f"{artifact.name}, measured on {len(studied.data)} {studied.split} images",
            subtitle=f"Version {artifact.version}, {', '.join(artifact.card.class_names)}.",
            facts=list(_facts(studied)),
            figures=figures,
        ),
        encoding="utf-8",
    )
    return page


def _facts(studied: Studied) -> Iterator[tuple[str, str]]:
    metrics = measure(studied.answers.probabilities, studied.data.labels)
    low, high = wilson_interval(metrics.correct, metrics.images)
    yield "correct", f"{metrics.correct} of {metrics.images}, {metrics.accuracy:.1%}"
    yield "95 % interval, for independent images", f"{low:.1%} to {high:.1%}"
    yield "cross-entropy", f"{metrics.loss:.4f}"
    card = studied.artifact.card
    if "verdict" in card.metrics:
        yield "verdict of training", card.metrics["verdict"].removeprefix("Verdict: ")
    training = card.training
    for name, words in _TRAINING_FACTS.items():
        if isinstance(training.get(name), int | float):
            yield words, f"{training[name]:,}"
    if (localised := _localisation(studied)) is not None:
        yield "strongest evidence inside an annotated box", localised[0]
        yield "median overlap with annotated boxes", localised[1]


def _figures(studied: Studied) -> Iterator[Drawn]:
    names = studied.artifact.card.class_names
    training = studied.artifact.card.training
    yield _samples(studied)
    if "loss_by_epoch" in training:
        curves = plots.training_curves(training["loss_by_epoch"], training["accuracy_by_epoch"])
        yield Drawn(
            "training", "Training", "On augmented images, which are harder than the originals.", curves
        )
    matrix = confusion_matrix(studied.predicted, studied.data.labels, len(names))
    words = "Rows are true classes, columns are predicted classes."
    yield Drawn("confusion", "Confusion", words, plots.confusion(matrix, names))
    found = reliability(studied.answers.probabilities, studied.data.labels)
    words = "Accuracy by confidence. Below the line, the network is overconfident; above it, underconfident."
    yield Drawn("reliability", "Reliability", words, plots.reliability_diagram(found))
    curve = risk_coverage(studied.answers.probabilities.max(axis=1), studied.right)
    words = "The error rate among the most confident share of the images."
    yield Drawn("risk_coverage", "Risk and coverage", words, plots.risk_coverage_curve(curve))
    yield from _novelty(studied)
    yield _robustness(studied)
    steps = layer_costs(load_network(studied.artifact.h5_path))
    if steps:
        words = "Every layer with weights, from input to output, with its cost."
        yield Drawn("architecture", "Architecture", words, plots.architecture(steps))
    yield _worst(studied)


def _samples(studied: Studied) -> Drawn:
    chosen = np.random.default_rng(0).permutation(len(studied.data))[:_SAMPLES]
    titles = [_caption(studied, place) for place in chosen]
    wrong = (~studied.right[chosen]).tolist()
    grid = plots.sample_grid(studied.data.images[chosen], titles, wrong, _COLUMNS)
    return Drawn("samples", "Samples", "A random sample; misclassified images have orange titles.", grid)


def _novelty(studied: Studied) -> Iterator[Drawn]:
    novelty, embeddings = studied.artifact.card.novelty, studied.answers.embeddings
    if novelty is None or embeddings is None:
        return
    scores = {f"{studied.split} images": novelty.score(embeddings), **studied.out_of_distribution}
    shares = ", ".join(f"{name} {(values > novelty.threshold).mean():.1%}" for name, values in scores.items())
    chart = plots.novelty_histogram(scores, novelty.threshold)
    yield Drawn("novelty", "Unfamiliar images", f"Abstained on: {shares}.", chart)


def _robustness(studied: Studied) -> Drawn:
    accuracies = {
        (kind, severity): float(
            (
                studied.classifier.predict(corrupt(studied.data.images)).argmax(axis=1) == studied.data.labels
            ).mean()
        )
        for kind, severities in corruptions().items()
        for severity, corrupt in severities.items()
    }
    chart = plots.robustness_chart(accuracies, float(studied.right.mean()))
    return Drawn("robustness", "Robustness", "Accuracy on corrupted images, without abstention.", chart)


def _worst(studied: Studied) -> Drawn:
    of_label = studied.answers.probabilities[np.arange(len(studied.data)), studied.data.labels]
    chosen = np.argsort(of_label, kind="stable")[:_MISTAKES]
    heats = [_heat(studied, int(place)) for place in chosen]
    titles = [_caption(studied, int(place)) for place in chosen]
    figure = plots.mistakes(studied.data.images[chosen], heats, titles)
    words = "Images with the lowest probability of their true class; below, the evidence for the prediction."
    return Drawn("worst", "Worst answers", words, figure)


def _heat(studied: Studied, place: int) -> NDArray[np.float32] | None:
    weights, features = studied.artifact.card.class_weights, studied.answers.features
    if weights is None or features is None:
        return None
    class_weights = against_the_others(weights.to_array())[:, studied.predicted[place]]
    return heat_of(studied.data.images[place], features[place], class_weights)


def _caption(studied: Studied, place: int) -> str:
    names = studied.artifact.card.class_names
    answer = f"{names[studied.predicted[place]]} {studied.answers.probabilities[place].max():.2f}"
    if studied.right[place]:
        return answer
    return f"{answer}\ntrue: {names[studied.data.labels[place]]}"


def _localisation(studied: Studied) -> tuple[str, str] | None:
    """Pointing accuracy and median overlap; None without a boxes.csv, or if the network shows no evidence."""
    card = studied.artifact.card
    boxes = read_boxes(studied.data_dir, card.class_names)
    if not boxes or card.class_weights is None or studied.answers.features is None:
        return None
    own = [
        _scaled([box for number, box in boxes.get(name, []) if number == label], path, card.image)
        for name, path, label in zip(
            (path.relative_to(studied.data_dir).as_posix() for path in studied.data.paths),
            studied.data.paths,
            studied.data.labels,
            strict=True,
        )
    ]
    weights = against_the_others(card.class_weights.to_array())
    found = judge(studied.data, studied.answers.features, weights, own)
    if found is None:
        return None
    return f"{found.pointing_accuracy:.1%} of {found.images}", f"{found.median_overlap:.2f}"


def _scaled(boxes: Sequence[Box], path: Path, spec: ImageSpec) -> list[Box]:
    """Convert boxes from pixels of a file to pixels of the network's input."""
    if not boxes:
        return []
    width, height = decode_sized(path.read_bytes(), spec, ImageLimits()).source_size
    across, down = spec.width / width, spec.height / height
    return [
        (round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down))
        for x0, y0, x1, y1 in boxes
    ]


def _novelty_scores(
    artifact: Artifact, classifier: Classifier, out_of_distribution_dirs: Sequence[Path]
) -> dict[str, NDArray[np.float32]]:
    novelty = artifact.card.novelty
    if novelty is None:
        return {}
    found = {}
    for name, images in out_of_distribution_sets(artifact.card.image, out_of_distribution_dirs).items():
        embeddings = classifier.answer(images).embeddings
        if embeddings is not None:
            found[name] = novelty.score(embeddings)
    return found
