"""The whole way of a batch: fetch → decode → predict → format, one outcome a row, in order."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

from app.image_classifier import Fetched, ImageClassifier, StepSeconds
from app.images.http import ImageFetcher
from app.images.source import Source, Url
from app.images.stage import StageBatch, StageReader
from app.images.stage_file import StageFile
from app.outcome import Outcome, outcome_of_error
from app.row import Row
from app.settings import Settings
from model.errors import InputError

# Rows that travel together: enough to pay for a thread's turn, few enough to share the cores evenly.
MICRO_BATCH_ROWS = 8


def limit_fetched_rows(settings: Settings) -> asyncio.Semaphore:
    """Turns of micro-batches that fetch: as many as keep fetches and threads busy.

    What is fetched waits in memory until it is decoded, and a small body can name many large files.
    """
    return asyncio.Semaphore(settings.max_concurrent_fetches // MICRO_BATCH_ROWS + 2 * settings.threads)


@dataclass(frozen=True)
class Pipeline:
    """Everything a batch meets on its way, opened once at start."""

    images: ImageClassifier
    fetcher: ImageFetcher
    stages: StageReader
    threads: ThreadPoolExecutor
    turns: asyncio.Semaphore

    async def classify_rows(self, rows: Sequence[Row]) -> tuple[list[Outcome | None], StepSeconds]:
        """One outcome a row, in order, NULL for NULL; a bad row costs its neighbours nothing."""
        seconds = StepSeconds()
        staged = self.stages.open_batch(row.source for row in rows if isinstance(row.source, StageFile))
        async with asyncio.TaskGroup() as group:
            micro_batches = [
                group.create_task(self._classify_micro_batch(rows[i : i + MICRO_BATCH_ROWS], staged, seconds))
                for i in range(0, len(rows), MICRO_BATCH_ROWS)
            ]
        return [outcome for task in micro_batches for outcome in task.result()], seconds

    async def _classify_micro_batch(
        self, rows: Sequence[Row], staged: StageBatch, seconds: StepSeconds
    ) -> list[Outcome | None]:
        fetches = any(isinstance(row.source, Url | StageFile) for row in rows)
        await staged.settle(row.source for row in rows if isinstance(row.source, StageFile))
        async with self.turns if fetches else nullcontext():
            return await self._fetch_and_classify(rows, staged, seconds)

    async def _fetch_and_classify(
        self, rows: Sequence[Row], staged: StageBatch, seconds: StepSeconds
    ) -> list[Outcome | None]:
        fetched = await asyncio.gather(*(self._fetch(row.source, staged, seconds) for row in rows))
        loop = asyncio.get_running_loop()
        outcomes, spent = await loop.run_in_executor(
            self.threads, self.images.classify, fetched, [row.evidence for row in rows]
        )
        seconds.decode += spent.decode
        seconds.predict += spent.predict
        return outcomes

    async def _fetch(
        self, source: Source | InputError | None, staged: StageBatch, seconds: StepSeconds
    ) -> Fetched:
        if isinstance(source, InputError):
            return outcome_of_error(source, self.images.model)
        if not isinstance(source, Url | StageFile):
            return source
        started = perf_counter()
        try:
            if isinstance(source, StageFile):
                return await staged.fetch(source)
            return await self.fetcher.fetch(source)
        except InputError as error:
            return outcome_of_error(error, self.images.model)
        finally:
            seconds.fetch += perf_counter() - started
