"""The whole way of a batch: fetch → decode → predict → format, one outcome a row, in order."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.images.http import ImageFetcher
from app.images.source import Base64Text, Source, Url
from app.outcome import (
    EvidenceDetail,
    ModelIdentity,
    Outcome,
    detail_of_evidence,
    outcome_of_error,
    outcome_of_probabilities,
)
from app.row import Row
from model.artifact import Artifact
from model.errors import InputError
from model.evidence import against_the_others, find_evidence
from model.image import Decoded, decode_sized
from model.image_limits import ImageLimits
from model.novelty import reasons_to_abstain
from model.runtime import Classifier

# Rows that travel together: enough to pay for a thread's turn, few enough to share the cores evenly.
MICRO_BATCH_ROWS = 8

# An outcome that is already known, and NULL, keep their place through every step. Errors become outcomes
# where they are caught: an exception that is kept keeps the frames it passed, and their pixels, alive.
Fetched: TypeAlias = bytes | Base64Text | Outcome | None
Pixels: TypeAlias = Decoded | Outcome | None


@dataclass
class StepSeconds:
    """Time spent in each step, added up over rows that went side by side."""

    fetch: float = 0.0
    decode: float = 0.0
    predict: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """Everything a batch meets on its way, opened once at start."""

    artifact: Artifact
    classifier: Classifier
    limits: ImageLimits
    fetcher: ImageFetcher
    threads: ThreadPoolExecutor

    async def classify_rows(self, rows: Sequence[Row]) -> tuple[list[Outcome | None], StepSeconds]:
        """One outcome a row, in order, NULL for NULL; a bad row costs its neighbours nothing."""
        seconds = StepSeconds()
        async with asyncio.TaskGroup() as group:
            micro_batches = [
                group.create_task(self._classify_micro_batch(rows[i : i + MICRO_BATCH_ROWS], seconds))
                for i in range(0, len(rows), MICRO_BATCH_ROWS)
            ]
        return [outcome for task in micro_batches for outcome in task.result()], seconds

    async def _classify_micro_batch(self, rows: Sequence[Row], seconds: StepSeconds) -> list[Outcome | None]:
        fetched = await asyncio.gather(*(self._fetch(row.source, seconds) for row in rows))
        loop = asyncio.get_running_loop()
        outcomes, decode_seconds, predict_seconds = await loop.run_in_executor(
            self.threads, self._classify_fetched, fetched, [row.evidence for row in rows]
        )
        seconds.decode += decode_seconds
        seconds.predict += predict_seconds
        return outcomes

    async def _fetch(self, source: Source | InputError | None, seconds: StepSeconds) -> Fetched:
        if isinstance(source, InputError):
            return outcome_of_error(source, self.model)
        if not isinstance(source, Url):
            return source
        started = perf_counter()
        try:
            return await self.fetcher.fetch(source)
        except InputError as error:
            return outcome_of_error(error, self.model)
        finally:
            seconds.fetch += perf_counter() - started

    def _classify_fetched(
        self, fetched: Sequence[Fetched], evidence: Sequence[bool]
    ) -> tuple[list[Outcome | None], float, float]:
        started = perf_counter()
        decoded = [self._decode(image) for image in fetched]
        decode_ended = perf_counter()
        outcomes = self._predict(decoded, evidence)
        return outcomes, decode_ended - started, perf_counter() - decode_ended

    def _decode(self, image: Fetched) -> Pixels:
        try:
            if isinstance(image, Base64Text):
                image = image.decode(self.limits)
            if isinstance(image, bytes):
                return decode_sized(image, self.artifact.card.image, self.limits)
            return image
        except InputError as error:
            return outcome_of_error(error, self.model)

    def _predict(self, decoded: Sequence[Pixels], evidence: Sequence[bool]) -> list[Outcome | None]:
        """Outcomes in the place of images; those known already, and NULLs, stay where they are."""
        rows = [(row, wish) for row, wish in zip(decoded, evidence, strict=True) if isinstance(row, Decoded)]
        outcomes = iter(self._classify_images(*zip(*rows, strict=True)) if rows else ())
        return [next(outcomes) if isinstance(row, Decoded) else row for row in decoded]

    def _classify_images(self, images: Sequence[Decoded], explained: Sequence[bool]) -> list[Outcome]:
        card = self.artifact.card
        answers = self.classifier.answer(
            np.stack([image.pixels for image in images]), with_features=any(explained)
        )
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

    def _explain(
        self, features: NDArray[np.float32], class_index: int, image: Decoded
    ) -> EvidenceDetail | None:
        packed = self.artifact.card.class_weights
        if packed is None:
            return None
        weights = against_the_others(packed.unpack())[:, class_index]
        return detail_of_evidence(find_evidence(image.pixels, features, weights, image.source_size))

    @property
    def model(self) -> ModelIdentity:
        return ModelIdentity(name=self.artifact.name, version=self.artifact.version)
