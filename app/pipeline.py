"""The whole way of a batch: fetch → decode → predict → format, one outcome a row, in order."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

from app.classifiers.frames import Image, ServedModel, WaitingRow
from app.images.fetcher import Fetcher
from app.images.source import Remote, Url
from app.images.stage import StageBatch, StageReader
from app.images.stage_file import StageFile
from app.outcome import Outcome, outcome_of_error
from app.row import Fetched, Row
from app.row_queue import FEW_ROWS, QueuedRequest, RowQueue
from app.settings import Settings
from app.steps import Step, Steps
from app.summary import ImageStatistics
from model.errors import InputError


def max_fetched_rows(settings: Settings) -> int:
    """Rows that are being fetched or wait to be decoded: as many as keep fetches and processes busy.

    What is fetched waits in memory until it is decoded, and a small body can name many large files.
    """
    return settings.max_concurrent_fetches + 2 * settings.classifiers


class Served(Protocol):
    """Whoever knows which network answers."""

    @property
    def model(self) -> ServedModel: ...


class ClassifiedRows(NamedTuple):
    """What became of a batch."""

    outcomes: list[Outcome | None]
    """One a row, in order, NULL for NULL."""
    steps: Steps
    statistics: Sequence[ImageStatistics]
    """Of its images, in no order; none unless they are measured."""


class Pipeline:
    """Everything a batch meets on its way, opened once at start."""

    def __init__(
        self,
        served: Served,
        queue: RowQueue,
        fetcher: Fetcher,
        stages: StageReader,
        max_fetched_rows: int,
    ) -> None:
        self._served = served
        self.queue = queue
        self._fetcher = fetcher
        self._stages = stages
        self._max_fetched_rows = max_fetched_rows
        self._fetched_rows = asyncio.Semaphore(max_fetched_rows)
        # Small requests have places of their own, and wait for no large ones.
        self._fetched_rows_of_few = asyncio.Semaphore(max(1, max_fetched_rows // 4))

    @property
    def model(self) -> ServedModel:
        """The network that answers now."""
        return self._served.model

    async def classify_rows(self, rows: Sequence[Row]) -> ClassifiedRows:
        """A bad row costs its neighbours nothing.

        When this is cancelled, rows that wait for a process are dropped.
        """
        with self.queue.request(len(rows)) as request:
            batch = _Batch(rows, [None] * len(rows), request)
            remote = {
                place: row.source for place, row in enumerate(rows) if isinstance(row.source, Url | StageFile)
            }
            if remote:
                await self._fetch_and_classify(batch, remote)
            else:
                await self._classify_held(batch)
            return ClassifiedRows(batch.outcomes, request.steps, request.statistics)

    async def _fetch_and_classify(self, batch: "_Batch", remote: Mapping[int, Remote]) -> None:
        staged = self._stages.open_batch(file for file in remote.values() if isinstance(file, StageFile))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._classify_held(batch))
            for places in _grouped_by_stage(remote):
                remaining = iter(places.items())
                for _ in range(min(len(places), self._max_fetched_rows)):
                    group.create_task(self._fetch_and_classify_each(batch, remaining, staged))

    async def _classify_held(self, batch: "_Batch") -> None:
        """The rows that hold their image, an error, or NULL."""
        held: dict[int, Fetched] = {
            place: outcome_of_error(row.source, self.model.identity)
            if isinstance(row.source, InputError)
            else row.source
            for place, row in enumerate(batch.rows)
            if not isinstance(row.source, Url | StageFile)
        }
        self.queue.capacity.note_fetched(len(held), 0.0)
        await batch.classify(held)

    async def _fetch_and_classify_each(
        self, batch: "_Batch", remaining: Iterator[tuple[int, Remote]], staged: StageBatch
    ) -> None:
        """One after the other, beside others that take from the same rows."""
        for place, source in remaining:
            if isinstance(source, StageFile):
                await staged.settle([source])
            async with self._fetched_rows_of_few if len(batch.rows) <= FEW_ROWS else self._fetched_rows:
                await batch.classify({place: await self._fetch(source, staged, batch.request.steps.fetch)})

    async def _fetch(self, source: Remote, staged: StageBatch, step: Step) -> Fetched:
        started = perf_counter()
        try:
            if isinstance(source, StageFile):
                return await staged.fetch(source)
            return await self._fetcher.fetch(source)
        except InputError as error:
            return outcome_of_error(error, self.model.identity)
        finally:
            ended = perf_counter()
            step.note(ended - started, started, ended)
            self.queue.capacity.note_fetched(1, ended - started)


@dataclass(frozen=True)
class _Batch:
    """The rows of a request, and the outcomes that there are."""

    rows: Sequence[Row]
    outcomes: list[Outcome | None]
    request: QueuedRequest

    async def classify(self, images: Mapping[int, Fetched]) -> None:
        """Images by their place among the rows; their outcomes, and those known already, take it."""
        waiting: dict[int, WaitingRow] = {}
        for place, image in images.items():
            if isinstance(image, Image):
                waiting[place] = WaitingRow(image, self.rows[place].evidence)
            else:
                self.outcomes[place] = image
        self.request.note_answered(len(images) - len(waiting))
        outcomes = await self.request.classify(list(waiting.values()))
        for place, outcome in zip(waiting, outcomes, strict=True):
            self.outcomes[place] = outcome


def _grouped_by_stage(remote: Mapping[int, Remote]) -> Iterable[Mapping[int, Remote]]:
    """Groups of which none waits until the stage of another is signed."""
    groups: dict[tuple[str, ...], dict[int, Remote]] = defaultdict(dict)
    for place, source in remote.items():
        groups[source.stage if isinstance(source, StageFile) else ()][place] = source
    return groups.values()
