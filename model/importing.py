"""Make an artifact of a network that was trained elsewhere: read, describe, check, compile and save it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from model.arrays import ArrayJson, Floats
from model.artifact import (
    SUFFIXES,
    Artifact,
    ArtifactCard,
    WrittenArtifact,
    card_faults,
    card_path,
    golden_image,
    next_to_h5,
    save_card,
    sha256_of,
    write_compiled,
)
from model.compile import compile_with_stages
from model.contact_sheet import Candidate, ContactSheet, TrialImages, judge
from model.engines import LiteRtClassifier, Shape, verify_golden
from model.errors import ArtifactError
from model.image import Alpha, Fit, ImageSpec, Resample
from model.networks.files import OPERATION_LAYER, NetworkFile, inspect_network
from model.networks.network import (
    Network,
    Stages,
    activation_of,
    gives,
    last_layer,
    read_network,
    remove_activation,
    stages_of,
    with_stages,
)
from model.preprocessing import (
    LEAST_PROBABILITY,
    MULTI_LABEL,
    ONE_OUTPUT,
    PRESETS,
    Ending,
    Preprocessing,
    Preset,
)
from model.tensorflow_engine import with_golden_answer

_PROBES = 4
# Beyond those of images, because few logits of them all are between 0 and 1.
_PROBE_SCALES = (1, 20, 255, -255, 2000)
_SMALLEST_SPREAD = 1e-6
_MOST_DIFFERENCE = 1e-3
_PROCESSORS_DIFFER = 10  # times as much as the engines on one processor
_LONGEST_REASON = 300  # characters
_SCALING_LAYERS = ("Rescaling", "Normalization")
_ARITHMETIC = {"TrueDivide", "Divide", "Multiply", "Subtract", "Add"}
# As the configurations of layers that call TensorFlow name them.
_WRITTEN_ARITHMETIC = (
    "truediv",
    "subtract",
    "multiply",
    "bias_add",
    "'RealDiv'",
    "'Sub'",
    "'Mul'",
    "'BiasAdd'",
)
_TEACHABLE_MACHINE_SHAPE = (None, 224, 224, 3)

_Likely: TypeAlias = tuple[Candidate, str] | None
"""A preprocessing that the file makes likely, and why."""


@dataclass(frozen=True)
class Request:
    """What the user says about a network. None leaves a choice to what its file and the images show."""

    class_names: tuple[str, ...] = ()
    """Empty: the sorted names of the folders in `try_dir`."""
    preprocess: Preset | Preprocessing | None = None
    fit: Fit | None = None
    resample: Resample | None = None
    alpha: Alpha = "white"
    size: tuple[int, int] | None = None
    """(height, width), for a network of any size or with a flat input."""
    is_multi_label: bool = False
    try_dir: Path | None = None
    output: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Imported(WrittenArtifact):
    sheet: ContactSheet | None

    @property
    def table(self) -> list[tuple[str, ...]]:
        """Header and rows of the sheet; empty without images."""
        return [] if self.sheet is None else self.sheet.table()


@dataclass
class _Import:
    """The state of one import, filled step by step."""

    file: NetworkFile
    network: Network
    request: Request
    class_names: tuple[str, ...]
    ending: Ending
    outputs: Ending
    """What is left of the ending after a sigmoid has been removed."""
    spec: ImageSpec
    warnings: list[str] = field(default_factory=list)


def import_network(path: Path, request: Request) -> Imported:
    """Write the card and the compiled model of a network. Raises ArtifactError.

    Files are written only after the network has passed every check.
    """
    file = inspect_network(path)
    target = _target(path, request)
    network = read_network(file)
    class_names = request.class_names or _folder_names(request.try_dir)
    ending = find_ending(network, is_multi_label=request.is_multi_label)
    _refuse_other_outputs(network, class_names, ending)
    spec = image_spec_of(network.input_shape, request.size).model_copy(update={"alpha": request.alpha})
    outputs = remove_activation(network, ending)
    work = _Import(file, network, request, class_names, ending, outputs, spec)
    likely = _find_likely(work)
    sheet = _try(work, likely)
    chosen, reason = _choose(work, likely, sheet)
    _refuse_constant(work, chosen)
    card = _card_of(work, chosen, target, sheet, path)
    artifact = _save(work, card, path, target)
    if request.try_dir is not None:
        TrialImages.of(request.try_dir, class_names).save_samples(artifact)
    inside = sorted(set(file.layers) & {*_SCALING_LAYERS, "BatchNormalization", "TFOpLambda"})
    shapes = f"Input {_shape(network.input_shape)}, output {_shape(network.output_shape)}."
    findings = (
        f"Written by {file.writer}. {shapes}",
        f"Ending: {_ENDINGS[ending]}.",
        *([f"Inside: {', '.join(inside)}."] if inside else []),
        f"Preprocessing: {chosen.describe()}. {reason}",
        f"Classes: {', '.join(class_names)}.",
    )
    return Imported(artifact, findings, tuple(work.warnings), sheet)


def check_preprocessing(artifact: Artifact, try_dir: Path) -> Imported:
    """Try an artifact's preprocessing and others with images, and write the result to its card.

    Raises ArtifactError.
    """
    card, file = artifact.card, inspect_network(artifact.h5_path)
    network = read_network(file)
    stated = card.preprocessing or Preprocessing(scale=(card.scale,))
    request = Request(card.class_names, stated, card.image.fit, card.image.resample, try_dir=try_dir)
    outputs = remove_activation(network, card.ending)
    work = _Import(file, network, request, card.class_names, card.ending, outputs, card.image)
    sheet = _try(work, None)
    assert sheet is not None  # noqa: S101 - there is a folder
    chosen, reason = _choose(work, None, sheet)
    check = {"preprocessing_check": sheet.summary(chosen), "is_unchecked": bool(work.warnings)}
    artifact = save_card(artifact.h5_path, card.model_copy(update=check))
    return Imported(artifact, (reason,), tuple(work.warnings), sheet)


def image_spec_of(input_shape: Shape, size: tuple[int, int] | None) -> ImageSpec:
    """Height, width and channels of the images for an input of any layout. Raises ArtifactError."""
    height, width, channels = _image_shape(input_shape, size)
    if channels not in (1, 3) or height is None or width is None:
        raise ArtifactError(
            f"The network must take images with 1 or 3 channels. Received: input {_shape(input_shape)}."
        )
    if size not in (None, (height, width)):
        raise ArtifactError(f"--size must be the network's, {height}x{width}. Received: {size[0]}x{size[1]}.")
    return ImageSpec(height=height, width=width, channels=channels)  # type: ignore[arg-type]


def find_ending(network: Network, *, is_multi_label: bool) -> Ending:
    """What the outputs are, by the last activation, else by their values. Raises ArtifactError if refused."""
    activation, outputs = activation_of(last_layer(network)), network.outputs
    values = _probe_values(network)
    if activation == "softmax" or (outputs > 1 and _sum_to_one(values)):
        ending: Ending = "probabilities"
    else:
        in_range = activation in (None, "hard_sigmoid") and bool(((values >= 0) & (values <= 1)).all())
        if activation == "sigmoid" or in_range:
            ending = "sigmoid" if outputs == 1 else "sigmoids"
        else:
            ending = "logit" if outputs == 1 else "logits"
    if ending == "logits" and is_multi_label:
        return "multi_label_logits"
    if is_multi_label and ending not in MULTI_LABEL:
        raise ArtifactError(f"--multi-label needs independent outputs. Received: {_ENDINGS[ending]}.")
    if ending == "sigmoids" and not is_multi_label:
        raise ArtifactError(
            f"{outputs} sigmoids are independent: an image may have several labels or none. To serve the "
            "strongest as the label, with independent probabilities, add --multi-label."
        )
    return ending


_ENDINGS: dict[Ending, str] = {
    "probabilities": "softmax",
    "logits": "logits, to which a softmax is applied",
    "sigmoid": "one sigmoid, the probability of the second class",
    "logit": "one logit, of the second class",
    "sigmoids": "independent sigmoids (multi-label)",
    "multi_label_logits": "independent logits (multi-label), to which a sigmoid is applied",
}


def _target(path: Path, request: Request) -> Path:
    target = request.output or path
    if path.is_file() and path.suffix not in SUFFIXES and request.output is None:
        raise ArtifactError(
            f"A network's name must end in {', '.join(SUFFIXES)}. Received: {path}. "
            f"To serve a copy, add --output {path.stem}.h5"
        )
    if path.suffix in SUFFIXES and path.is_file() and target.suffix != path.suffix:
        raise ArtifactError(f"--output must have the suffix {path.suffix}. Received: {target}")
    if target.exists() and card_path(target).exists() and not request.force:
        raise ArtifactError(
            f"The network must have no card yet; replace it with --force. Received: {card_path(target)}"
        )
    return target


def _folder_names(try_dir: Path | None) -> tuple[str, ...]:
    names = () if try_dir is None else tuple(sorted(p.name for p in try_dir.iterdir() if p.is_dir()))
    if len(names) < 2:
        raise ArtifactError(
            "Class names are required, in the order of the outputs: --class-names a,b,c or @FILE."
        )
    return names


def _refuse_other_outputs(network: Network, class_names: tuple[str, ...], ending: Ending) -> None:
    if not gives(network.output_shape, network.outputs):
        raise ArtifactError(
            "The network must answer with a number for each class. "
            f"Received: output {_shape(network.output_shape)}, as of a network for segmentation or detection."
        )
    if network.outputs == 1 and ending not in ONE_OUTPUT:
        raise ArtifactError(
            "The network's answer must depend on the image. Received: a softmax over one output, which is "
            "always 1. Train it with a sigmoid, or with a softmax over two outputs."
        )
    needed = 2 if ending in ONE_OUTPUT else network.outputs
    if len(class_names) != needed:
        raise ArtifactError(
            f"There must be a name for each of the network's {needed} classes, in the order of its outputs. "
            f"Received: {len(class_names)} ({', '.join(class_names)})."
        )


def _image_shape(
    input_shape: Shape, size: tuple[int, int] | None
) -> tuple[int | None, int | None, int | None]:
    match input_shape[1:]:
        case (height, width, 1 | 3 as channels):
            pass
        case (1 | 3 as channels, height, width):
            pass
        case (height, width):
            channels = 1
        case (int(values),):
            return _flat_shape(values, size)
        case _:
            return None, None, None
    if (height is None or width is None) and size is None:
        raise ArtifactError(
            "The network must take images of a fixed size: give the size it was trained with, --size HxW."
        )
    return height or size[0], width or size[1], channels  # type: ignore[index]


def _flat_shape(values: int, size: tuple[int, int] | None) -> tuple[int | None, int | None, int | None]:
    """A flat input is a square image, grey if that is possible, unless a size is given."""
    for channels in (1, 3):
        side = round((values / channels) ** 0.5)
        height, width = size or (side, side)
        if height * width * channels == values:
            return height, width, channels
    return None, None, None


def _find_likely(work: _Import) -> _Likely:
    layers = work.file.layers
    inside = [name for name in layers if name in _SCALING_LAYERS]
    if not inside:
        inside = ["arithmetic on the input"] if _has_arithmetic(work.file) else []
    if inside:
        return Candidate.of("raw", work.spec), f"The network has {inside[0]} inside."
    if _is_teachable_machine(work.file, work.network):
        reason = "The file has the structure of Teachable Machine's export."
        return Candidate.of("teachable-machine", work.spec), reason
    return None


def _has_arithmetic(file: NetworkFile) -> bool:
    """Whether the first layers, before any with weights, compute with pixels."""
    early = file.layers[:8]
    weights = next((i for i, name in enumerate(early) if "Conv" in name or name == "Dense"), len(early))
    functions = str(file.config)[:20_000]
    calls = {"TFOpLambda", OPERATION_LAYER} & set(early[:weights]) and any(
        name in functions for name in _WRITTEN_ARITHMETIC
    )
    return bool(calls or _ARITHMETIC & set(early[:weights]))


def _is_teachable_machine(file: NetworkFile, network: Network) -> bool:
    """A Sequential of two Sequentials, of which the first holds a MobileNet."""
    if network.input_shape != _TEACHABLE_MACHINE_SHAPE or file.config.get("class_name") != "Sequential":
        return False
    own = file.config["config"]
    # Keras before 2.3 lists a Sequential's layers without its name.
    layers = own if isinstance(own, list) else own.get("layers", [])
    parts = [part.get("class_name") for part in layers]
    return parts.count("Sequential") == 2 and set(parts) <= {"Sequential", "InputLayer"}


def _try(work: _Import, likely: _Likely) -> ContactSheet | None:
    request = work.request
    if request.try_dir is None:
        return None
    images = TrialImages.of(request.try_dir, work.class_names)
    stated = _stated(work)
    # Teachable Machine's is `symmetric` with a crop, so that chance would decide between them.
    is_grey = work.spec.channels == 1
    names = [
        name
        for name, preset in PRESETS.items()
        if name != "teachable-machine" and not (is_grey and (len(preset.offset) > 1 or preset.order == "bgr"))
    ]
    candidates = [Candidate.of(name, work.spec) for name in names]
    more = filter(None, (stated, likely and likely[0]))
    fitted = [candidate.fitted(request.fit, request.resample) for candidate in (*candidates, *more)]
    return judge(
        images, list(dict.fromkeys(fitted)), lambda candidate: _predictor(work, candidate), work.network
    )


def _stated(work: _Import) -> Candidate | None:
    preprocess = work.request.preprocess
    if preprocess is None:
        return None
    candidate = (
        Candidate(preprocess.name or "as stated", preprocess, work.spec)
        if isinstance(preprocess, Preprocessing)
        else Candidate.of(preprocess, work.spec)
    )
    return candidate.fitted(work.request.fit, work.request.resample)


def _choose(work: _Import, likely: _Likely, sheet: ContactSheet | None) -> tuple[Candidate, str]:
    """The preprocessing to serve with, and the reason. Raises ArtifactError rather than guess."""
    request = work.request
    stated = _stated(work)
    if stated is not None:
        chosen, reason = stated, "As stated."
    elif likely is not None:
        chosen, reason = likely[0].fitted(request.fit, request.resample), likely[1]
    elif sheet is not None:
        chosen, reason = sheet.recommended(None), "The images decide."
    else:
        raise ArtifactError(
            "The file does not say how pixels were preprocessed. Say it, --preprocess "
            f"{'|'.join(PRESETS)}, or let images decide: --try DIR, with a folder for each class."
        )
    if sheet is None:
        work.warnings.append(_UNCHECKED)
        return chosen, reason
    best = sheet.recommended(chosen)
    if best != chosen and stated is None:
        return best, sheet.reason(best)
    if best != chosen:
        work.warnings.append(
            f"The images contradict --preprocess {chosen.name}: {sheet.reason(best)} "
            f"Import again with --preprocess {best.name} --force, unless you know better."
        )
    return chosen, f"{reason} {sheet.reason(chosen)}"


_UNCHECKED = (
    "No images checked the preprocessing; a wrong one gives wrong answers without an error. "
    "Check it: --try DIR, with a folder for each class."
)


def _predictor(work: _Import, candidate: Candidate) -> Any:
    card = _bare_card(work, candidate)
    if card.is_given_tflite:
        return LiteRtClassifier(work.file.path.read_bytes(), card.scale, 1, card).predict
    call = with_stages(work.network, stages_of(work.network, card, work.outputs))
    return tf.function(
        lambda pixels: call(tf.cast(pixels, tf.float32))["probabilities"],
        autograph=False,
        input_signature=[tf.TensorSpec((None, *work.spec.shape), tf.uint8)],
    )


def _refuse_constant(work: _Import, candidate: Candidate) -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (_PROBES, *work.spec.shape), dtype=np.uint8)
    plain = [np.full(work.spec.shape, value, np.uint8) for value in (0, 128, 255)]
    images = np.stack([*noise, *plain, golden_image(work.spec)])
    predict = _predictor(work, candidate)
    answers = np.concatenate([np.asarray(predict(image[np.newaxis])) for image in images])
    if not np.isfinite(answers).all():
        raise ArtifactError("The network must return finite probabilities. Received: NaN or infinity.")
    # Logarithms also tell sure answers apart.
    if float(np.ptp(np.log(np.maximum(answers, LEAST_PROBABILITY)), axis=0).max()) < _SMALLEST_SPREAD:
        raise ArtifactError(
            f"The network's answer must depend on the image. Received: always {answers[0].round(4)} "
            f"for {len(images)} images with preprocessing {candidate.describe()}. "
            + " ".join(warning for warning in work.warnings if warning != _UNCHECKED)
        )


def _bare_card(work: _Import, candidate: Candidate, sha256: str = "0" * 64) -> ArtifactCard:
    return ArtifactCard(
        class_names=work.class_names,
        image=candidate.spec,
        scale=1.0,
        sha256=sha256,
        preprocessing=candidate.preprocessing,
        ending=work.ending,
        is_given_tflite=work.file.reader == "tflite",
    )


def _card_of(
    work: _Import, candidate: Candidate, target: Path, sheet: ContactSheet | None, path: Path
) -> ArtifactCard:
    with card_faults(target):
        card = _bare_card(work, candidate, sha256_of(path))
        weights = work.network.class_weights
        if weights is not None and weights.shape[1] == 1 and len(work.class_names) == 2:
            weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        return ArtifactCard.model_validate(
            {
                **card.model_dump(),
                "class_weights": None if weights is None else ArrayJson.from_array(weights),
                "preprocessing_check": "no images" if sheet is None else sheet.summary(candidate),
                "is_unchecked": bool(work.warnings),
                "training": {"written_by": work.file.writer},
            }
        )


def _save(work: _Import, card: ArtifactCard, path: Path, target: Path) -> Artifact:
    if card.is_given_tflite:
        compiled = path.read_bytes()
        golden = verify_golden(LiteRtClassifier(compiled, card.scale, 1, card), card)
        card = card.model_copy(update={"golden_probabilities": tuple(golden.tolist())})
    else:
        stages = stages_of(work.network, card, work.outputs)
        card = with_golden_answer(card, work.network, stages)
        compiled = _compile(work.network, card, stages)
        card = _with_tolerance(card, compiled)
    if target != path:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, target)
    artifact = save_card(target, card)
    write_compiled(artifact, next_to_h5(artifact), compiled, {"tensorflow": tf.__version__})
    return artifact


def _compile(network: Network, card: ArtifactCard, stages: Stages | None) -> bytes:
    try:
        return compile_with_stages(network, card.image.shape, stages)
    # The converter raises many types of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise ArtifactError(f"The network must consist of operations that LiteRT has. {reason}") from error


def _with_tolerance(card: ArtifactCard, compiled: bytes) -> ArtifactCard:
    """Allow a deep network more in its self-test, by how far the engines differ on this processor.

    Raises ArtifactError if LiteRT computes something else than the network.
    """
    lenient = card.model_copy(update={"golden_tolerance": _MOST_DIFFERENCE})
    classifier = LiteRtClassifier(compiled, card.scale, 1)
    golden = golden_image(card.image)[np.newaxis]
    answer = classifier.predict(golden)
    classifier.predict(~golden)
    if not np.array_equal(classifier.predict(golden), answer, equal_nan=True):
        raise ArtifactError(
            "The network must answer an image the same after every other. Received: a network with a state, "
            "such as an LSTM layer's, which LiteRT keeps between images."
        )
    answer = verify_golden(classifier, lenient)
    difference = float(np.abs(answer - np.array(card.golden_probabilities)).max())
    return card.model_copy(
        update={"golden_tolerance": max(card.golden_tolerance, _PROCESSORS_DIFFER * difference)}
    )


def _probe_values(network: Network) -> Floats:
    """Outputs for noise at several scales, which reveal a softmax or sigmoid that no layer names."""
    shape = tuple(side or 64 for side in network.input_shape[1:])
    noise = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    try:
        answers = [network.call(tf.constant(noise * scale)) for scale in _PROBE_SCALES]
        rows = [np.asarray(answer["probabilities"], np.float32).reshape(1, -1) for answer in answers]
    # TensorFlow and LiteRT raise many types of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise ArtifactError(f"The network must run on a CPU. Received: {reason}") from error
    return np.concatenate([row for row in rows if np.isfinite(row).all()] or rows)


def _sum_to_one(values: Floats) -> bool:
    rounding = values.shape[1] / 512  # of quantised outputs
    return bool(np.allclose(values.sum(axis=1), 1, atol=1e-3 + rounding) and (values >= 0).all())


def _shape(shape: Sequence[int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in shape[1:])
