"""Quantise a network to int8 with images of a folder, and measure the result on other images of it.

TensorFlow's quantiser records the range of every activation on the first images. Weights have a scale per
channel; activations, one per tensor. The input, the outputs and two parts of the graph stay float32: what
follows the last weights, because a quantised softmax has steps of 1/256, and the texture statistics that
novelty scores.
"""

import hashlib
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.lite.python.optimize.calibrator import Calibrator

from model.arrays import Floats, Ints, Pixels
from model.artifact import (
    Artifact,
    ArtifactCard,
    Float32,
    Int8,
    WrittenArtifact,
    golden_image,
    next_to_h5,
    save_card,
    write_compiled,
)
from model.compile import compile_with_stages
from model.contact_sheet import TrialImages
from model.engines import Answers, LiteRtClassifier, self_test, verify_golden
from model.errors import ArtifactError, DatasetError
from model.networks.network import open_network
from model.preprocessing import LEAST_PROBABILITY
from model.training.calibration import fit_temperature
from model.training.metrics import measure, reliability

LEAST_AGREEMENT = 0.995
GOLDEN_TOLERANCE = 0.05
"""Kernels of other processors round differently. Those that LiteRT has for one differ by up to 0.004."""
_MOST_FITTED, _MOST_MEASURED, _MOST_TIMED = 200, 1000, 100
_LEAST_IMAGES = 20
_SAME_CONFIDENCE = 1e-3
_WEIGHTED = {
    schema.BuiltinOperator.BATCH_MATMUL,
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
    schema.BuiltinOperator.TRANSPOSE_CONV,
}


class _Images(NamedTuple):
    """Images that the quantiser sees, others that are measured, and the labels of these, -1 if unknown."""

    fitted: Pixels
    measured: Pixels
    labels: Ints


def quantise(
    artifact: Artifact, images_dir: Path, least_agreement: float = LEAST_AGREEMENT
) -> WrittenArtifact:
    """Write the artifact's compiled model in int8, and its card with what has been measured.

    Raises ArtifactError, and writes nothing, if labels or abstention agree with those of float32 on a smaller
    share of held-out images than `least_agreement`; DatasetError for too few images.
    """
    card = artifact.card.float32
    if card.is_given_tflite:
        raise ArtifactError(
            "A .tflite is served as it is: quantise the network that it was converted from. "
            f"Received: {artifact.h5_path}"
        )
    images = _load(images_dir, card)
    float32 = _compile(artifact.h5_path, card)
    int8 = _quantise(float32, images.fitted, card.scale)
    reference = LiteRtClassifier(float32, card.scale, 1)
    temperature = _fit_temperature(card, images.fitted, reference, LiteRtClassifier(int8, card.scale, 1))
    if temperature != card.temperature:
        softened = card.model_copy(update={"temperature": temperature})
        int8 = _quantise(_compile(artifact.h5_path, softened), images.fitted, card.scale)
    classifier = LiteRtClassifier(int8, card.scale, 1)
    figures = _measure(card, images, reference, classifier) | {
        "bytes": {"float32": len(float32), "int8": len(int8)},
        "temperature": temperature,
    }
    findings, warnings = tuple(_findings(figures)), tuple(_warnings(figures, artifact.h5_path))
    _refuse_difference(figures, findings, least_agreement)
    quantised = _card_of(card, int8, classifier, figures)
    self_test(classifier, quantised)
    artifact = save_card(artifact.h5_path, quantised)
    write_compiled(artifact, next_to_h5(artifact), int8, {"tensorflow": tf.__version__})
    return WrittenArtifact(artifact, findings, warnings)


def _load(folder: Path, card: ArtifactCard) -> _Images:
    """If the folder has `test`, its images are measured and those of `train` and `valid` fitted."""
    others = [folder / name for name in ("train", "valid") if (folder / name).is_dir()]
    if others and (folder / "test").is_dir():
        share = _MOST_FITTED // len(others)
        pixels = np.concatenate([_decode(other, card, share)[0] for other in others])
        measured, labels = _decode(folder / "test", card, _MOST_MEASURED)
    else:
        every, labels = _decode(folder, card, _MOST_FITTED + _MOST_MEASURED)
        is_fitted = np.arange(len(every)) % max(2, -(-len(every) // _MOST_FITTED)) == 0
        pixels, measured = every[is_fitted], every[~is_fitted]
        labels = labels[~is_fitted]
    if len(pixels) + len(measured) < _LEAST_IMAGES:
        raise DatasetError(
            f"--images must be a folder of at least {_LEAST_IMAGES} images, best some hundred. "
            f"Received: {len(pixels) + len(measured)} in {folder}"
        )
    return _Images(pixels, measured, labels)


def _decode(folder: Path, card: ArtifactCard, most: int) -> tuple[Pixels, Ints]:
    return TrialImages.of(folder, card.class_names, "--images", most).decode(card.image)


def _compile(path: Path, card: ArtifactCard) -> bytes:
    network, stages = open_network(path, card)
    return compile_with_stages(network, card.image.shape, stages, splits_head=False)


def _quantise(float32: bytes, pixels: Pixels, scale: float) -> bytes:
    inputs = ([image[np.newaxis] * np.float32(scale)] for image in pixels)
    try:
        calibrated = Calibrator(float32).calibrate(lambda: inputs)
        return bytes(mlir_quantize(calibrated, denylisted_nodes=_kept_float(float32)))
    # The quantiser raises many types of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"The network must consist of operations that int8 has. {reason}") from error


def _kept_float(float32: bytes) -> list[str]:
    """Names of the operations that stay float32, each that of its first output."""
    model = schema.ModelT.InitFromPackedBuf(float32, 0)
    [graph] = model.subgraphs
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    outputs = {each.name: each.tensorIndex for each in model.signatureDefs[0].outputs}
    probabilities = outputs.get(b"probabilities", graph.outputs[0])
    makers = {int(tensor): operation for operation in graph.operators for tensor in operation.outputs}

    def makers_of(tensor: int, stops: set[int]) -> set[int]:
        found, waiting = set(), [tensor]
        while waiting:
            operation = makers.get(waiting.pop())
            if operation is None or codes[operation.opcodeIndex] in stops:
                continue
            if (first := int(operation.outputs[0])) not in found:
                found.add(first)
                waiting += map(int, operation.inputs)
        return found

    kept = makers_of(probabilities, _WEIGHTED)
    if b"embedding" in outputs:
        kept |= makers_of(outputs[b"embedding"], set()) - makers_of(probabilities, set())
    return [graph.tensors[tensor].name.decode() for tensor in sorted(kept)]


def _fit_temperature(
    card: ArtifactCard, pixels: Pixels, float32: LiteRtClassifier, int8: LiteRtClassifier
) -> float | None:
    """The temperature at which int8 is as confident, on average, as a float32 network that is calibrated."""
    if not card.is_calibrated or card.is_multi_label:
        return card.temperature
    target, probabilities = _mean_confidence(float32.predict(pixels)), int8.predict(pixels)
    if abs(_mean_confidence(probabilities) - target) < _SAME_CONFIDENCE:
        return card.temperature
    own = card.temperature or 1.0
    logits: Floats = np.log(np.maximum(probabilities, LEAST_PROBABILITY)) * np.float32(own)
    return fit_temperature(logits, target)


def _mean_confidence(probabilities: Floats) -> float:
    return float(probabilities.max(axis=1).mean())


def _measure(
    card: ArtifactCard, images: _Images, float32: LiteRtClassifier, int8: LiteRtClassifier
) -> dict[str, Any]:
    answers = {"float32": float32.answer(images.measured), "int8": int8.answer(images.measured)}
    before, after = (each.probabilities for each in answers.values())
    differences = np.abs(after - before).max(axis=1)
    same = before.argmax(axis=1) == after.argmax(axis=1)
    figures: dict[str, Any] = {
        "images": {"fitted": len(images.fitted), "held_out": len(images.measured)},
        "agreement": float(same.mean()),
        "probability_difference": {"mean": float(differences.mean()), "largest": float(differences.max())},
        "mean_confidence": {name: _mean_confidence(each.probabilities) for name, each in answers.items()},
        "cpu_ms": _cpu_ms({"float32": float32, "int8": int8}, images.measured[:_MOST_TIMED]),
    }
    embeddings = [each.embeddings for each in answers.values() if each.embeddings is not None]
    if card.novelty is not None and embeddings:
        abstained = [card.novelty.abstains(each) for each in embeddings]
        figures["abstained"] = dict(zip(answers, (float(each.mean()) for each in abstained), strict=True))
        figures["abstention_agreement"] = float((abstained[0] == abstained[1]).mean())
    return figures | _measure_labelled(card, answers, images.labels)


def _measure_labelled(card: ArtifactCard, answers: dict[str, Answers], labels: Ints) -> dict[str, Any]:
    known = labels >= 0
    if not known.any():
        return {}
    truth = labels[known]
    chosen = {name: each.probabilities[known] for name, each in answers.items()}
    accuracy = {name: measure(each, truth).accuracy for name, each in chosen.items()}
    errors = {name: reliability(each, truth).expected_calibration_error for name, each in chosen.items()}
    figures: dict[str, Any] = {"labelled": len(truth), "accuracy": accuracy}
    return figures if card.is_multi_label else figures | {"expected_calibration_error": errors}


def _cpu_ms(classifiers: dict[str, LiteRtClassifier], pixels: Pixels) -> dict[str, float]:
    """Median CPU time of an image; the networks take turns, so that other load affects both."""
    times: dict[str, list[float]] = {name: [] for name in classifiers}
    for image in pixels:
        for name, classifier in classifiers.items():
            start = time.process_time()
            classifier.predict(image[np.newaxis])
            times[name].append(time.process_time() - start)
    return {name: round(1000 * float(np.median(each)), 3) for name, each in times.items()}


def _card_of(
    card: ArtifactCard, int8: bytes, classifier: LiteRtClassifier, figures: dict[str, Any]
) -> ArtifactCard:
    golden = classifier.answer(golden_image(card.image)[np.newaxis])
    bare = card.model_copy(update={"golden_probabilities": None})
    changes: dict[str, Any] = {
        "temperature": figures["temperature"],
        "golden_probabilities": tuple(verify_golden(classifier, bare).tolist()),
        "golden_tolerance": GOLDEN_TOLERANCE,
        "int8": Int8(sha256=hashlib.sha256(int8).hexdigest(), float32=Float32.of(card)),
        "metrics": {**card.metrics, "int8": figures},
    }
    if card.novelty is not None and golden.embeddings is not None:
        changes["golden_novelty"] = float(card.novelty.score(golden.embeddings)[0])
    return card.model_copy(update=changes)


def _refuse_difference(figures: dict[str, Any], findings: Sequence[str], least: float) -> None:
    for name, what in (("agreement", "label"), ("abstention_agreement", "abstention")):
        if figures.get(name, 1.0) < least:
            raise ArtifactError(
                f"int8 must agree with float32 on the {what} of {least:.2%} of held-out images. Received: "
                f"{figures[name]:.2%}. {' '.join(findings)} Nothing was written. Quantise with more images, "
                "or accept this with --least-agreement."
            )


def _findings(figures: dict[str, Any]) -> Iterator[str]:
    images, difference = figures["images"], figures["probability_difference"]
    yield (
        f"Quantised on {images['fitted']} images. On {images['held_out']} others, the label is that of "
        f"float32 on {round(figures['agreement'] * images['held_out'])} ({figures['agreement']:.2%})."
    )
    yield f"Probabilities differ by {difference['mean']:.4f} on average, {difference['largest']:.4f} at most."
    for name, what in (
        ("accuracy", "Accuracy"),
        ("expected_calibration_error", "Expected calibration error"),
        ("mean_confidence", "Mean confidence"),
        ("abstained", "Abstention"),
    ):
        if name in figures:
            yield f"{what}: {figures[name]['float32']:.2%} in float32, {figures[name]['int8']:.2%} in int8."
    if "abstention_agreement" in figures:
        yield f"Abstention agrees on {figures['abstention_agreement']:.2%}."
    if figures["temperature"] is not None:
        yield f"Temperature {figures['temperature']:.3f}, fitted to the mean confidence of float32."
    cpu, size = figures["cpu_ms"], figures["bytes"]
    yield (
        f"CPU time of an image on this machine: {cpu['float32']:.2f} ms in float32, {cpu['int8']:.2f} ms in "
        f"int8 ({cpu['float32'] / cpu['int8']:.2f} times as fast); "
        f"file: {size['float32'] / 1e6:.2f} MB and {size['int8'] / 1e6:.2f} MB."
    )


def _warnings(figures: dict[str, Any], path: Path) -> Iterator[str]:
    cpu, held_out = figures["cpu_ms"], figures["images"]["held_out"]
    if cpu["int8"] >= cpu["float32"]:
        back = f"ext-classify compile --model {shlex.quote(str(path))}"
        yield f"float32 is faster on this machine. To return to it: {back}"
    if held_out < 1 / (1 - LEAST_AGREEMENT):
        yield f"{held_out} held-out images are too few to measure an agreement of {LEAST_AGREEMENT:.1%}."
