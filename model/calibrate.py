"""Calibrate a network that was trained elsewhere: fit its temperature and its novelty detector, and measure.

Both are fitted to images that the network has not been trained on. A folder with its own split is fitted on
`valid` (novelty on `train` too) and measured on `test`. Any other folder is measured by five folds of whole
groups, each with a fit to the other four, and the artifact has the fit to all images.

Novelty scores the texture statistics of pretrained blocks, not the features of the network itself: layers
that are trained to tell classes apart discard what all classes share. With 12 random NEU images a class, a
detector on features abstains on 16 % to 82 % of 300 photographs of textures, one on the statistics on 99 %.
The statistics also need nothing of the network: a SavedModel has no features to read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.arrays import Floats, Ints, Mask, Pixels
from model.artifact import (
    Artifact,
    ArtifactCard,
    WrittenArtifact,
    golden_image,
    next_to_h5,
    save_card,
    write_compiled,
)
from model.compile import compile_artifact, compile_with_stages
from model.engines import Classifier, LiteRtClassifier, self_test, verify_golden
from model.errors import ArtifactError
from model.evaluation.hard_images import out_of_distribution_sets
from model.evidence import OCCLUSION_RUNS
from model.networks.network import open_network
from model.networks.pretrained_blocks import detector_network
from model.novelty import Novelty
from model.preprocessing import LEAST_PROBABILITY, softmax
from model.tensorflow_engine import BATCH_SIZE, TensorFlowClassifier, with_golden_answer
from model.training.augmentation import draw_negatives
from model.training.calibration import expected_accuracy, fit_novelty_and_scores, fit_temperature
from model.training.folder import FEW_IMAGES, load_folder
from model.training.metrics import measure, reliability, wilson_interval
from model.training.splits import assign_folds

MOST_ABSTENTION = 0.1
"""A detector that abstains on a larger share of held-out images of the classes is left out."""
MOST_FALSE_ABSTENTION = 0.05
_NEGATIVES, _LEAST_OF_NEGATIVES = 40, 0.05
WEAK_ABSTENTION = 0.5
"""Abstention on a smaller share of a set of foreign images causes a warning."""
_LEAST_SPREAD = 1e-4
"""Of logits. They have an error of 1e-5."""
_SOFT = 100.0
"""Temperature at which probabilities of logits some thousands apart do not underflow."""


@dataclass(frozen=True)
class _Part:
    """Which images (n,) a fit uses, and on which others it is measured."""

    temperature: Mask
    novelty: Mask
    measured: Mask


@dataclass(frozen=True)
class _Images:
    """Images (n, h, w, c) with labels (n,) in the order of the card's classes, and their groups (n,)."""

    pixels: Pixels
    labels: Ints
    groups: Ints
    parts: tuple[_Part, ...]
    """Those to measure; every image is measured at most once."""
    fitted: _Part
    """What the artifact is fitted to."""

    @property
    def held_out(self) -> Mask:
        return np.asarray(np.any([part.measured for part in self.parts], axis=0))


@dataclass(frozen=True)
class _Confidence:
    """A temperature, and the probabilities (m, k) of the m held-out images without and with one."""

    temperature: float | None
    before: Floats
    after: Floats


@dataclass(frozen=True)
class _Abstention:
    """A detector, and whether it abstains on each held-out image (m,) and on foreign images by set."""

    novelty: Novelty
    golden: float
    held_out: Mask
    foreign: dict[str, Mask]


def calibrate(artifact: Artifact, data_dir: Path, folders: Sequence[Path] = ()) -> WrittenArtifact:
    """Write the artifact's card and compiled model with a temperature, a detector and evidence.

    An earlier calibration is replaced. `folders` hold images of no class, on which abstention is measured
    only. Raises ArtifactError for a network that is calibrated already or of no use, DatasetError for images
    that cannot be used. Files are written only after the self-test has passed.
    """
    bare = _bare_card(artifact)
    images = _load_images(data_dir, bare)
    foreign = out_of_distribution_sets(bare.image, folders)
    logits = _logits_of(artifact, bare, images.pixels)
    _refuse_useless(logits[images.held_out], images.labels[images.held_out], bare)
    confidence = _fit_confidence(logits, images, bare)
    abstention = None if bare.is_given_tflite else _fit_abstention(images, foreign, bare)
    card = bare.model_copy(update=_card_parts(images, bare, confidence, abstention))
    calibrated = _save(artifact.h5_path, card)
    labels = images.labels[images.held_out]
    findings = _findings(labels, card, confidence, abstention)
    warnings = _warnings(images, card, confidence, abstention)
    return WrittenArtifact(calibrated, tuple(findings), tuple(warnings))


def _bare_card(artifact: Artifact) -> ArtifactCard:
    """The card without an earlier calibration. Raises ArtifactError for a network that `train` has made."""
    card = artifact.card.float32
    if card.is_calibrated and card.temperature is None:
        raise ArtifactError(
            "calibrate is for networks that were trained elsewhere; train calibrates its own. "
            f"Received: {artifact.h5_path}"
        )
    metrics = {name: value for name, value in card.metrics.items() if name != "calibration"}
    nothing = dict.fromkeys(("temperature", "novelty", "golden_novelty", "golden_probabilities"))
    return card.model_copy(update={**nothing, "shows_occlusion": False, "metrics": metrics})


def _load_images(data_dir: Path, card: ArtifactCard) -> _Images:
    folder = load_folder(data_dir, card.image, card.class_names)
    labels = folder.data.labels
    if folder.splits[0]:
        valid, test = folder.splits == "valid", folder.splits == "test"
        parts = [_Part(valid, ~test, test)]
        fitted = parts[0]
    else:
        folds = assign_folds(labels, folder.groups)
        parts = [_Part(folds != fold, folds != fold, folds == fold) for fold in np.unique(folds)]
        every = np.ones(len(labels), dtype=bool)
        fitted = _Part(every, every, ~every)
    return _Images(folder.data.images, labels, folder.groups, tuple(parts), fitted)


def _logits_of(artifact: Artifact, bare: ArtifactCard, pixels: Pixels) -> Floats:
    """Logits (n, k) up to a constant for each image, or logarithms of independent probabilities."""
    temperature = None if bare.is_multi_label else _SOFT
    card = bare.model_copy(update={"temperature": temperature})
    probabilities = _open(artifact.h5_path, card).predict(pixels)
    if not np.isfinite(probabilities).all():
        raise ArtifactError("The network must return finite probabilities. Received: NaN or infinity.")
    logarithms: Floats = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return logarithms * np.float32(temperature or 1)


def _open(path: Path, card: ArtifactCard) -> Classifier:
    if card.is_given_tflite:
        return LiteRtClassifier(path.read_bytes(), card.scale, 1, card)
    network, stages = open_network(path, card)
    return TensorFlowClassifier(network, card.scale, stages)


def _refuse_useless(logits: Floats, labels: Ints, card: ArtifactCard) -> None:
    """Raise ArtifactError if answers do not depend on the image or are no better than chance."""
    if float(np.ptp(logits, axis=0).max()) < _LEAST_SPREAD:
        answer = card.class_names[int(logits[0].argmax())]
        raise ArtifactError(
            f"The network's answer must depend on the image. Received: always {answer} with the same "
            f"probabilities, for {len(labels)} images."
        )
    right = int((logits.argmax(axis=1) == labels).sum())
    chance = np.bincount(labels).max()
    if right <= chance and wilson_interval(right, len(labels)).low <= 1 / len(card.class_names):
        raise ArtifactError(
            "The network must be right on more images than one that always gives the same answer, "
            f"{chance} of {len(labels)}. Received: {right}. Check the order of its class names and its "
            "preprocessing: ext-classify import FILE --try DIR --force"
        )


def _fit_confidence(logits: Floats, images: _Images, card: ArtifactCard) -> _Confidence:
    """The temperature, and its effect on held-out images; no temperature for independent outputs."""
    if card.is_multi_label:
        independent = np.exp(logits[images.held_out])
        return _Confidence(None, independent, independent)
    before, after = np.empty_like(logits), np.empty_like(logits)
    for part in images.parts:
        temperature = _fit_temperature(logits, images.labels, part)
        before[part.measured] = softmax(logits[part.measured])
        after[part.measured] = softmax(logits[part.measured] / temperature)
    temperature = _fit_temperature(logits, images.labels, images.fitted)
    return _Confidence(temperature, before[images.held_out], after[images.held_out])


def _fit_temperature(logits: Floats, labels: Ints, part: _Part) -> float:
    """A temperature of 1 unless another lowers the loss on the images that it is fitted to."""
    fitted, its_labels = logits[part.temperature], labels[part.temperature]
    temperature = fit_temperature(fitted, expected_accuracy(fitted, its_labels))
    losses = [measure(softmax(fitted / t), its_labels).loss for t in (temperature, 1.0)]
    return temperature if losses[0] < losses[1] else 1.0


def _fit_abstention(images: _Images, foreign: dict[str, Pixels], card: ArtifactCard) -> _Abstention:
    detector = detector_network(card.image)

    def describe(pixels: Pixels) -> Floats:
        batches = np.array_split(pixels, -(-len(pixels) // BATCH_SIZE))
        found = [detector(batch.astype(np.float32), training=False)["statistics"] for batch in batches]
        return np.concatenate([np.asarray(each) for each in found])

    described = describe(images.pixels)
    drawn = draw_negatives(_NEGATIVES, card.image.shape, np.random.default_rng(0)).astype(np.uint8)
    negatives = describe(drawn)
    abstained = np.zeros(len(images.labels), dtype=bool)
    for part in images.parts:
        novelty = _fit_novelty(described, negatives, images, part)
        abstained[part.measured] = novelty.abstains(described[part.measured])
    novelty = _fit_novelty(described, negatives, images, images.fitted)
    on_foreign = {name: novelty.abstains(describe(pixels)) for name, pixels in foreign.items()}
    [golden] = novelty.score(describe(golden_image(card.image)[np.newaxis]))
    return _Abstention(novelty, float(golden), abstained[images.held_out], on_foreign)


def _fit_novelty(described: Floats, negatives: Floats, images: _Images, part: _Part) -> Novelty:
    """A detector that abstains on FALSE_ABSTENTION of the classes' images.

    It abstains on up to MOST_FALSE_ABSTENTION if it needs that to abstain on synthetic negatives: of few,
    diverse images, one outlier sets the threshold.
    """
    chosen = part.novelty
    novelty, scores = fit_novelty_and_scores(described[chosen], images.labels[chosen], images.groups[chosen])
    needed = float(np.quantile(novelty.score(negatives), _LEAST_OF_NEGATIVES))
    least = float(np.quantile(scores, 1 - MOST_FALSE_ABSTENTION))
    threshold = max(least, min(novelty.threshold, needed))
    return novelty.model_copy(update={"embedding": "pretrained", "threshold": threshold})


def _card_parts(
    images: _Images, bare: ArtifactCard, confidence: _Confidence, abstention: _Abstention | None
) -> dict[str, Any]:
    labels = images.labels[images.held_out]
    parts: dict[str, Any] = {
        "temperature": confidence.temperature,
        "shows_occlusion": bare.class_weights is None,
    }
    figures: dict[str, Any] = {
        "images": {"fitted": int(images.fitted.temperature.sum()), "held_out": len(labels)},
        "measured_on": "test" if len(images.parts) == 1 else f"{len(images.parts)} folds",
        "accuracy": round(measure(confidence.before, labels).accuracy, 4),
        "evidence": "occlusion" if bare.class_weights is None else "class activation map",
    }
    if confidence.temperature is not None:
        both = {"before": confidence.before, "after": confidence.after}
        errors = {when: reliability(p, labels).expected_calibration_error for when, p in both.items()}
        figures["expected_calibration_error"] = {when: round(error, 4) for when, error in errors.items()}
        figures["mean_confidence"] = {when: round(float(p.max(axis=1).mean()), 4) for when, p in both.items()}
    if abstention is not None:
        sets = {"held_out": abstention.held_out, **abstention.foreign}
        figures["abstained"] = {name: round(float(each.mean()), 4) for name, each in sets.items()}
        if abstention.held_out.mean() <= MOST_ABSTENTION:
            parts |= {"novelty": abstention.novelty, "golden_novelty": abstention.golden}
    return {**parts, "metrics": {**bare.metrics, "calibration": figures}}


def _save(path: Path, card: ArtifactCard) -> Artifact:
    if card.is_given_tflite:
        golden = verify_golden(_open(path, card), card)
        artifact = save_card(path, card.model_copy(update={"golden_probabilities": tuple(golden.tolist())}))
        compile_artifact(artifact)  # writes a stamp for the new card
        return artifact
    network, stages = open_network(path, card)
    card = with_golden_answer(card, network, stages)
    compiled = compile_with_stages(network, card.image.shape, stages)
    self_test(LiteRtClassifier(compiled, card.scale, 1), card)
    artifact = save_card(path, card)
    write_compiled(artifact, next_to_h5(artifact), compiled, {"tensorflow": tf.__version__})
    return artifact


def _findings(
    labels: Ints, card: ArtifactCard, confidence: _Confidence, abstention: _Abstention | None
) -> Iterator[str]:
    figures = card.metrics["calibration"]
    right = measure(confidence.before, labels).correct
    low, high = wilson_interval(right, len(labels))
    yield f"Right on {right} of {len(labels)} held-out images (95 % interval {low:.0%} to {high:.0%})."
    if confidence.temperature is not None:
        means, errors = figures["mean_confidence"], figures["expected_calibration_error"]
        yield (
            f"Temperature {confidence.temperature:.2f}: mean confidence {means['before']:.1%} before, "
            f"{means['after']:.1%} after; expected calibration error {errors['before']:.1%} before, "
            f"{errors['after']:.1%} after."
        )
    if abstention is not None:
        sets = {"held-out images": abstention.held_out, **abstention.foreign}
        counts = ", ".join(f"{each.sum()} of {len(each)} {name}" for name, each in sets.items())
        yield f"Abstention: on {counts}."
    if card.shows_occlusion:
        yield f"Evidence: occlusion, which runs the network {OCCLUSION_RUNS + 1} times for an image."
    else:
        yield "Evidence: class activation map."


def _warnings(
    images: _Images, card: ArtifactCard, confidence: _Confidence, abstention: _Abstention | None
) -> Iterator[str]:
    labels = images.labels[images.held_out]
    counts = np.bincount(images.labels, minlength=len(card.class_names))
    named = zip(card.class_names, counts, strict=True)
    if few := ", ".join(f"{name} {count}" for name, count in named if count < FEW_IMAGES):
        yield f"Under {FEW_IMAGES} images a class, these figures are rough: {few}."
    if measure(confidence.before, labels).correct == len(labels):
        yield (
            "The network is right on every image. If it was trained on them, its confidence is too high and "
            "these figures say nothing: calibrate with images that it has not seen."
        )
    if card.is_multi_label:
        yield "Independent probabilities have no temperature: confidence is the network's own."
    if abstention is None:
        yield "A .tflite is served as it is, without abstention: import the file that it was converted from."
    elif card.novelty is None:
        yield (
            f"The service does not abstain: with these images, it would on {abstention.held_out.sum()} of "
            f"{len(abstention.held_out)} of your own. Calibrate with more images."
        )
    else:
        for name, each in abstention.foreign.items():
            if each.mean() < WEAK_ABSTENTION:
                yield f"It recognises few of these foreign images: {each.sum()} of {len(each)} {name}."
