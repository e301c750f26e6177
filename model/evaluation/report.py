"""Measure a network and write the report on it: train, evaluate and crossvalidate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Floats, Mask, Pixels
from model.artifact import Artifact
from model.defaults import usable_cores, user_cache_dir
from model.engines import Classifier, open_classifier
from model.evaluation import plots
from model.evaluation.crossvalidate import NETWORKS, Predictions
from model.evaluation.hard_images import DRAWN, corruptions, out_of_distribution_sets
from model.evaluation.page import Drawn, Fact, Page, Study, write_page
from model.evidence import against_the_others, heat_of
from model.training.fit import EPOCHS
from model.training.folder import Folder, LabelledImages
from model.training.metrics import (
    Unseen,
    confusion_matrix,
    measure,
    reliability,
    risk_coverage,
    verdict,
    wilson_interval,
)
from model.training.splits import FOLDS

_EPOCH = "In an epoch, the training shows each of its images once."
_TRAINING_FACTS = {
    "images": ("images", ""),
    "seed": ("seed", "The random numbers of the training follow from it."),
    "parameters": ("parameters", "Numbers that the network learns."),
    "macs": ("MACs", "Multiply-accumulate operations for an image: what an answer costs."),
    "temperature": ("temperature", "Divides the network's scores, so that confidence agrees with accuracy."),
    "train_seconds": ("training time", "In seconds."),
}


@dataclass(frozen=True)
class _Measured:
    """An artifact, its answers on labelled images, and its novelty scores on out-of-distribution images."""

    artifact: Artifact
    classifier: Classifier
    study: Study
    novelty: dict[str, Floats] = field(default_factory=dict)
    """Scores (m,) by set of images, the study's first; empty without a novelty detector."""

    def heat(self, image: Pixels, label: int) -> Floats | None:
        """Evidence (h, w) for a class in an image; None if the network shows none."""
        weights = self.artifact.card.class_weights
        if weights is None:
            return None
        features = self.classifier.answer(image[np.newaxis], with_features=True).features
        if features is None:
            return None
        return heat_of(image, features[0], against_the_others(weights.to_array())[:, label])


def report_on(  # noqa: PLR0913 - each is said by its name
    artifact: Artifact,
    data: LabelledImages,
    data_dir: Path,
    split: str,
    report_dir: Path,
    *,
    out_of_distribution_dirs: Sequence[Path] = (),
    command: str = "",
    of_training: str | None = None,
    folds: tuple[LabelledImages, Floats, Mask | None] | None = None,
) -> Path:
    """Measure an artifact on the `split` of a folder, and write the page, whose path is returned.

    The page names the `command` that makes it again, if any. `of_training` is the verdict of a training, in
    place of one on the given images; `folds` are its images, their probabilities (n, k) by folds and on which
    it abstained, if the given images are few.
    """
    measured = _measure(artifact, data, data_dir, split, out_of_distribution_dirs)
    study = measured.study
    if folds is not None:
        study = Study(study.class_names, folds[0], data_dir, f"images, by {FOLDS} folds", *folds[1:])
    page = Page(
        name=f"{artifact.name} {artifact.version}",
        verdict=of_training or _verdict(measured),
        study=study,
        heat_of=lambda place: measured.heat(study.data.images[place], int(study.predicted[place])),
        facts=[*_accuracy(study)],
        figures=[*answer_figures(study), *_network_figures(measured)],
        origin=[Fact("folder", str(data_dir.absolute())), *_training_facts(artifact.card.training)],
        command=command,
    )
    return write_page(page, report_dir)


def report_folds(
    result: Predictions, folder: Folder, data_dir: Path, report_dir: Path, command: str = ""
) -> Path:
    """Write the report on a cross-validated network, and return the path of the page."""
    abstained, how = None if result.novelty is None else result.novelty > 1, f"by {FOLDS} folds"
    study = Study(folder.class_names, folder.data, data_dir, f"images, {how}", result.clean, abstained)
    unseen, foreign = Unseen(result.labels, study.predicted, abstained, how), None
    epochs, groups = NETWORKS[result.network].knobs.epochs, len(np.unique(result.groups))
    figures = [*answer_figures(study)]
    if result.novelty is not None:
        foreign = np.concatenate([result.out_of_distribution[name] for name in DRAWN]) > 1
        figures.append(_novelty({"own images": result.novelty, **result.out_of_distribution}, 1.0))
    accuracies = {
        key: float((found.argmax(axis=1) == result.labels).mean()) for key, found in result.corrupted.items()
    }
    page = Page(
        name=f"the network {result.network}",
        verdict=verdict(unseen, foreign, folder.class_names, np.bincount(result.labels)),
        study=study,
        heat_of=lambda _: None,
        facts=[*_accuracy(study)],
        figures=[*figures, _robustness(accuracies, study)],
        origin=[
            Fact("folder", str(data_dir.absolute())),
            Fact("groups of images", f"{groups:,}", "Images of one piece. A group is in one fold."),
            Fact("epochs", str(epochs or f"{EPOCHS} or more"), _EPOCH),
            *_training_facts({"parameters": result.parameters, "macs": result.macs}),
        ],
        command=command,
    )
    return write_page(page, report_dir)


def _measure(
    artifact: Artifact, data: LabelledImages, data_dir: Path, split: str, foreign_dirs: Sequence[Path]
) -> _Measured:
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    answers = classifier.answer(data.images)
    study = Study(artifact.card.class_names, data, data_dir, f"{split} images", answers.probabilities)
    novelty, scores = artifact.card.novelty, {}
    if novelty is not None and answers.embeddings is not None:
        scores[study.what] = novelty.score(answers.embeddings)
        study = replace(study, abstained=scores[study.what] > novelty.threshold)
        for name, images in out_of_distribution_sets(artifact.card.image, foreign_dirs).items():
            embeddings = classifier.answer(images).embeddings
            if embeddings is not None:
                scores[name] = novelty.score(embeddings)
    return _Measured(artifact, classifier, study, scores)


def _verdict(measured: _Measured) -> str:
    """Verdict on a measurement of images that the network may know, and of classes of unknown sizes."""
    card, study = measured.artifact.card, measured.study
    foreign = None
    if card.novelty is not None and measured.novelty:
        foreign = np.concatenate([measured.novelty[name] for name in DRAWN]) > card.novelty.threshold
    answers = Unseen(study.data.labels, study.predicted, study.abstained, what=study.what)
    return verdict(answers, foreign, card.class_names, None)


def _accuracy(study: Study) -> Iterator[Fact]:
    metrics = measure(study.probabilities, study.data.labels)
    low, high = wilson_interval(metrics.correct, metrics.images)
    yield Fact("right", f"{metrics.correct} of {metrics.images}, {metrics.accuracy:.1%}", "The accuracy.")
    yield Fact(
        "95 % interval",
        f"{low:.1%} to {high:.1%}",
        "Contains the accuracy on all images of this kind in 95 of 100 such measurements, if the images are "
        "independent; crops of one photograph are not.",
    )
    yield Fact(
        "cross-entropy (loss)",
        f"{metrics.loss:.3f}",
        f"Punishes confidence in what is wrong. 0 is perfect; guessing {len(study.class_names)} classes "
        f"gives {np.log(len(study.class_names)):.2f}.",
    )


def _training_facts(training: dict[str, Any]) -> Iterator[Fact]:
    """What a card says of the training; nothing for an imported network."""
    epochs = training.get("finished_epochs", len(training.get("loss_by_epoch", ())))
    if epochs:
        best = f", of which number {training['best_epoch']} is kept" if "best_epoch" in training else ""
        yield Fact("epochs", f"{epochs}{best}", _EPOCH)
    elif training.get("network") == "frozen":
        yield Fact("epochs", "none", "The network is frozen: only its last layer is fitted, in one step.")
    for name, (words, meaning) in _TRAINING_FACTS.items():
        value = training.get(name)
        if isinstance(value, dict):
            yield Fact(words, ", ".join(f"{count} {split}" for split, count in value.items()), meaning)
        elif isinstance(value, int | float):
            yield Fact(words, f"{value:,}", meaning)


def answer_figures(study: Study) -> Iterator[Drawn]:
    names = study.class_names
    matrix = confusion_matrix(study.predicted, study.data.labels, len(names))
    words = (
        "Each row is a true class and each column an answer, in the order of the table above. Right answers "
        "are on the diagonal."
    )
    yield Drawn("confusion", "Confusion", words, plots.confusion(matrix, names))
    found = reliability(study.probabilities, study.data.labels)
    words = (
        "Whether to believe the confidence, which is the probability of the answer: of the answers with a "
        "confidence of 90 %, nine in ten should be right. Below the dashed line, the network is surer than "
        "it is right (overconfident); above it, less sure. The expected calibration error is the mean "
        "distance from the line."
    )
    yield Drawn("reliability", "Reliability", words, plots.reliability_diagram(found))
    curve = risk_coverage(study.probabilities.max(axis=1), study.right)
    words = (
        "What becomes of the errors if only the surest answers are used, and a person looks at the other "
        "images. Coverage is the share of images that are used, risk the share of these that are wrong."
    )
    yield Drawn("risk_coverage", "Risk and coverage", words, plots.risk_coverage_curve(curve))


def _network_figures(measured: _Measured) -> Iterator[Drawn]:
    card = measured.artifact.card
    if card.novelty is not None and measured.novelty:
        yield _novelty(measured.novelty, card.novelty.threshold)
    yield _robustness(_corrupted(measured), measured.study)
    if "loss_by_epoch" in card.training:
        curves = plots.training_curves(card.training["loss_by_epoch"], card.training["accuracy_by_epoch"])
        words = (
            "Loss and accuracy on the training images, by epoch. They are augmented (turned and disturbed at "
            "random), and so harder than the originals."
        )
        yield Drawn("training", "Training", words, curves)


def _novelty(scores: dict[str, Floats], threshold: float) -> Drawn:
    shares = ", ".join(f"{name} {(values > threshold).mean():.1%}" for name, values in scores.items())
    words = (
        "The novelty score says how unlike the training images an image is. Above the dashed threshold, the "
        f"network abstains: it gives no label. Abstained on: {shares}."
    )
    return Drawn("novelty", "Unfamiliar images", words, plots.novelty_histogram(scores, threshold))


def _corrupted(measured: _Measured) -> dict[tuple[str, str], float]:
    """Accuracy by kind and severity of corruption."""
    data = measured.study.data
    return {
        (kind, severity): float(
            (measured.classifier.predict(corrupt(data.images)).argmax(axis=1) == data.labels).mean()
        )
        for kind, severities in corruptions().items()
        for severity, corrupt in severities.items()
    }


def _robustness(accuracies: dict[tuple[str, str], float], study: Study) -> Drawn:
    words = (
        f"The accuracy on the {len(study.data)} {study.what}, after noise, blur and the like, if the network "
        "never abstained. The dashed line is its accuracy on the images as they are."
    )
    chart = plots.robustness_chart(accuracies, float(study.right.mean()))
    return Drawn("robustness", "Robustness", words, chart)
