"""From the bytes of images to outcomes: decode → predict → format, without I/O and event loop.

The service runs it in classifier processes, and the Python UDF inside a Snowflake warehouse.
"""

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.errors import PredictionFailed
from app.images.source import Base64Text, Fetched, HexText
from app.outcome import (
    CallSeconds,
    EvidenceDetail,
    ImageStatistics,
    ModelIdentity,
    Outcome,
    blank_outcome,
    outcome_of_error,
)
from model.artifact import Artifact
from model.engines import Classifier
from model.errors import InputError
from model.evidence import Evidence, against_the_others, find_evidence, occlusion_map
from model.image import Decoded, brightness_and_sharpness, decode_sized
from model.image_limits import ImageLimits, out_of_memory
from model.novelty import reasons_to_abstain

# Float32 probabilities carry about seven digits; engines agree to five.
_DECIMALS = 6

Pixels: TypeAlias = Decoded | Outcome | None
# A context that limits the time of what it contains; the function that it yields grants the whole time again.
Limits: TypeAlias = Callable[[], AbstractContextManager[Callable[[], None]]]


def unlimited() -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


class ClassifiedImages(NamedTuple):
    outcomes: list[Outcome | None]
    """One per image, in order."""
    spent: CallSeconds
    statistics: dict[int, ImageStatistics]
    """By the place of a decoded image; empty unless `measures`."""


@dataclass(frozen=True)
class ImageClassifier:
    """Safe to call from several threads at once."""

    artifact: Artifact
    classifier: Classifier
    limits: ImageLimits
    measures: bool = False
    """Whether to compute image statistics."""

    def classify(
        self, fetched: Sequence[Fetched], evidence: Sequence[bool], limited: Limits = unlimited
    ) -> ClassifiedImages:
        """Classify images; `evidence` states for which of them the outcome includes evidence.

        To decode an image may take the whole time of `limited()`, and so may the prediction of all.
        """
        started = perf_counter()
        decoded: list[Pixels] = []
        statistics: dict[int, ImageStatistics] = {}
        with limited() as restart:
            for place, image in enumerate(fetched):
                pixels = self._decode(image)
                decoded.append(pixels)
                if self.measures and isinstance(pixels, Decoded):
                    statistics[place] = ImageStatistics(*brightness_and_sharpness(pixels.pixels))
                restart()
            decode_ended = perf_counter()
            outcomes = self._predict(decoded, evidence)
        if self.artifact.card.shows_occlusion:
            self._occlude(decoded, outcomes, evidence, limited)
        spent = CallSeconds(decode_ended - started, perf_counter() - decode_ended)
        return ClassifiedImages(outcomes, spent, statistics)

    def _decode(self, image: Fetched) -> Pixels:
        try:
            if isinstance(image, Base64Text | HexText):
                image = image.decode(self.limits)
            if isinstance(image, bytes):
                return decode_sized(image, self.artifact.card.image, self.limits)
            return image
        except InputError as error:
            return outcome_of_error(error, self.model)
        except MemoryError:
            return outcome_of_error(out_of_memory(), self.model)

    def _predict(self, decoded: Sequence[Pixels], evidence: Sequence[bool]) -> list[Outcome | None]:
        """Replace decoded images by their outcomes. Known outcomes and NULLs keep their places."""
        rows = [pair for pair in zip(decoded, evidence, strict=True) if isinstance(pair[0], Decoded)]
        outcomes = iter(self._classify_decoded(*zip(*rows, strict=True)) if rows else ())
        return [next(outcomes) if isinstance(row, Decoded) else row for row in decoded]

    def _classify_decoded(self, images: Sequence[Decoded], explained: Sequence[bool]) -> list[Outcome]:
        card = self.artifact.card
        answers = self.classifier.answer([image.pixels for image in images], with_features=any(explained))
        reasons = reasons_to_abstain(card.novelty, answers.embeddings, len(images))
        outcomes = [
            outcome_of_probabilities(probabilities, card.class_names, self.model, reason)
            for probabilities, reason in zip(answers.probabilities, reasons, strict=True)
        ]
        for place, image in enumerate(images):
            if explained[place] and answers.features is not None and outcomes[place]["error"] is None:
                best = int(answers.probabilities[place].argmax())
                outcomes[place]["evidence"] = self._explain(answers.features[place], best, image)
        return outcomes

    def _occlude(
        self,
        decoded: Sequence[Pixels],
        outcomes: Sequence[Outcome | None],
        evidence: Sequence[bool],
        limited: Limits,
    ) -> None:
        """Add evidence by occlusion, each image within its own limit, as it takes many runs."""
        for image, outcome, is_explained in zip(decoded, outcomes, evidence, strict=True):
            if not is_explained or outcome is None or not isinstance(image, Decoded):
                continue
            label = outcome["label"] or outcome["nearest_label"]
            if label is not None:
                best = self.artifact.card.class_names.index(label)
                with limited():
                    features = occlusion_map(image.pixels, best, self.classifier.predict)
                    outcome["evidence"] = self._locate(features, np.ones(1, np.float32), image)

    def _explain(
        self, features: NDArray[np.float32], class_index: int, image: Decoded
    ) -> EvidenceDetail | None:
        card_weights = self.artifact.card.class_weights
        if card_weights is None:
            return None
        weights = against_the_others(card_weights.to_array())[:, class_index]
        return self._locate(features, weights, image)

    def _locate(
        self, features: NDArray[np.float32], weights: NDArray[np.float32], image: Decoded
    ) -> EvidenceDetail:
        frame = self.artifact.card.image.frame_size(image.source_size)
        return detail_of_evidence(find_evidence(image.pixels, features, weights, image.source_size, frame))

    @cached_property
    def model(self) -> ModelIdentity:
        """Identity in outcomes, which names what they lack."""
        missing = self.artifact.card.missing
        return ModelIdentity(**self.identity, missing=missing) if missing else self.identity

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(name=self.artifact.name, version=self.artifact.version)


def outcome_of_probabilities(
    probabilities: NDArray[np.float32],
    class_names: Sequence[str],
    model: ModelIdentity,
    reason: str | None = None,
) -> Outcome:
    """The outcome of a classified image; `probabilities` (k,) in the order of `class_names`.

    With a reason to abstain, `label` and `confidence` are null, so that `confidence > 0.9` selects no such
    image, and `nearest_label` and `nearest_confidence` are those of the most probable class.
    """
    values: list[float] = probabilities.tolist()
    if not all(map(math.isfinite, values)):
        failure = PredictionFailed("The network must return finite probabilities. Received: NaN or infinity.")
        return outcome_of_error(failure, model)
    rounded = [round(value, _DECIMALS) for value in values]
    best = values.index(max(values))
    outcome = blank_outcome(model)
    if reason is None:
        outcome["label"], outcome["confidence"] = class_names[best], rounded[best]
    else:
        outcome["nearest_label"], outcome["nearest_confidence"] = class_names[best], rounded[best]
    outcome["abstained"] = reason is not None
    outcome["reason"] = reason
    outcome["probabilities"] = dict(zip(class_names, rounded, strict=True))
    return outcome


def detail_of_evidence(evidence: Evidence) -> EvidenceDetail:
    return EvidenceDetail(box=evidence.box, heatmap_png=b64encode(evidence.heatmap_png).decode())
