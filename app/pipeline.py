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
from app.outcome import ModelIdentity, Outcome, outcome_of_error, outcome_of_probabilities
from app.row import Row
from model.artifact import Artifact
from model.errors import InputError
from model.image import decode
from model.image_limits import ImageLimits
from model.runtime import Classifier

# Rows that travel together: enough to pay for a thread's turn, few enough to share the cores evenly.
MICRO_BATCH_ROWS = 8

Fetched: TypeAlias = bytes | Base64Text | InputError | None
Decoded: TypeAlias = NDArray[np.uint8] | InputError | None
Predicted: TypeAlias = NDArray[np.float32] | InputError | None


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
        started = perf_counter()
        fetched = await asyncio.gather(*(self._fetch(row.source) for row in rows))
        seconds.fetch += perf_counter() - started

        loop = asyncio.get_running_loop()
        predicted, decode_seconds, predict_seconds = await loop.run_in_executor(
            self.threads, self._decode_and_predict, fetched
        )
        seconds.decode += decode_seconds
        seconds.predict += predict_seconds
        return [self._format(row) for row in predicted]

    async def _fetch(self, source: Source | InputError | None) -> Fetched:
        if not isinstance(source, Url):
            return source
        try:
            return await self.fetcher.fetch(source)
        except InputError as error:
            return error

    def _decode_and_predict(self, fetched: Sequence[Fetched]) -> tuple[list[Predicted], float, float]:
        started = perf_counter()
        decoded = [self._decode(image) for image in fetched]
        decode_ended = perf_counter()
        predicted = self._predict(decoded)
        return predicted, decode_ended - started, perf_counter() - decode_ended

    def _decode(self, image: Fetched) -> Decoded:
        try:
            if isinstance(image, Base64Text):
                image = image.decode(self.limits)
            if isinstance(image, bytes):
                return decode(image, self.artifact.card.image, self.limits)
            return image
        except InputError as error:
            return error

    def _predict(self, decoded: Sequence[Decoded]) -> list[Predicted]:
        """Probabilities (k,) in the place of each image (h, w, c); errors and NULLs stay where they are."""
        images = [image for image in decoded if isinstance(image, np.ndarray)]
        if not images:
            return [row for row in decoded if not isinstance(row, np.ndarray)]
        probabilities = iter(self.classifier.predict(np.stack(images)))
        return [next(probabilities) if isinstance(row, np.ndarray) else row for row in decoded]

    def _format(self, predicted: Predicted) -> Outcome | None:
        if predicted is None:
            return None
        if isinstance(predicted, InputError):
            return outcome_of_error(predicted, self.model)
        return outcome_of_probabilities(predicted, self.artifact.card.class_names, self.model)

    @property
    def model(self) -> ModelIdentity:
        return ModelIdentity(name=self.artifact.name, version=self.artifact.version)
