"""Classifies the rows of a request: fetches their images, and queues them for decoding and prediction."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, cast

from app.admission import PendingBody
from app.event_loop import BulkTurn, FairSlots
from app.images.allowlist import Fetcher
from app.images.source import Fetched, Remote, Row, StageFile, Url
from app.outcome import ClassifiedRows, ModelIdentity, Outcome, outcome_of_error
from app.settings import Settings
from app.snowflake.stage import MAX_STAGES_IN_BATCH, StageBatch, StageReader
from app.workers.protocol import Image, ServedModel, WaitingRow
from app.workers.queue import FEW_ROWS, QueuedRequest, RowQueue
from model.errors import InputError

# About half a millisecond of work on the event loop.
PIECE_ROWS = 256


def max_fetched_rows(settings: Settings) -> int:
    """The limit on rows that are being fetched or wait to be decoded: enough to keep all processes busy.

    Fetched images wait in memory until they are decoded, and a small body can name many large files.
    """
    return settings.max_concurrent_fetches + 2 * settings.classifiers


class Served(Protocol):
    """Knows the network that serves."""

    @property
    def model(self) -> ServedModel: ...


class Pipeline:
    """One for all requests of a process."""

    def __init__(
        self, served: Served, queue: RowQueue, fetcher: Fetcher, stages: StageReader, max_fetched_rows: int
    ) -> None:
        self._served = served
        self.queue = queue
        self.bulk_turn = BulkTurn()
        self._fetcher = fetcher
        self._stages = stages
        self._max_fetched_rows = max_fetched_rows
        self._fetched_rows = FairSlots(max_fetched_rows)
        # Small requests have slots of their own, so that they do not wait for large ones.
        self._fetched_rows_of_few = FairSlots(max(1, max_fetched_rows // 4))

    @property
    def model(self) -> ServedModel:
        """The network that serves now."""
        return self._served.model

    async def classify_rows(
        self, rows: Sequence[Row], pending: PendingBody | None = None, caller: str | None = None
    ) -> ClassifiedRows:
        """One outcome a row, in order. An error in one row does not affect the others.

        Once a row is answered, it drops its source: `pending` releases those bytes and takes the bytes of the
        evidence, for which it may raise Overloaded. Cancelling drops the rows that wait for a process.
        """
        held: list[int] = []
        remote: list[int] = []
        for place, row in enumerate(rows):
            (remote if row.is_remote else held).append(place)
        with self.queue.request(len(rows), len(remote), caller) as request:
            batch = _Batch(rows, [None] * len(rows), request, pending, caller)
            # They need no process, so they do not count towards the wait of other requests.
            request.mark_answered(sum(row.is_settled for row in rows))
            try:
                if remote:
                    await self._fetch_and_classify(batch, held, remote)
                else:
                    await self._classify_held(batch, held)
            finally:
                batch.pending = None  # a process may still answer rows of a request that has ended
            return ClassifiedRows(batch.outcomes, request.steps, request.statistics)

    async def _fetch_and_classify(self, batch: "_Batch", held: Sequence[int], remote: Sequence[int]) -> None:
        staged = self._stages.open_batch(
            source for place in remote if isinstance(source := batch.rows[place].source, StageFile)
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._classify_held(batch, held))
            for places in _grouped_by_stage(batch.rows, remote):
                remaining = iter(places)
                for _ in range(min(len(places), self._max_fetched_rows)):
                    group.create_task(self._fetch_and_classify_each(batch, remaining, staged))

    async def _classify_held(self, batch: "_Batch", places: Sequence[int]) -> None:
        """Classify the rows that hold their image, an error, or NULL."""
        answered: list[asyncio.Future[list[Outcome | None]]] = []
        async with self.bulk_turn.of_rows(len(places), batch.caller):
            for start in range(0, len(places), PIECE_ROWS):
                if start:
                    await asyncio.sleep(0)
                piece = places[start : start + PIECE_ROWS]
                answered.append(batch.classify([(place, self._held(batch, place)) for place in piece]))
        await (answered[0] if len(answered) == 1 else asyncio.gather(*answered))

    def _held(self, batch: "_Batch", place: int) -> Fetched:
        source = batch.rows[place].source
        if isinstance(source, Url | StageFile):
            raise TypeError(f"The row's image is not fetched: {source!r}")
        return batch.outcome_of(source, self.model.identity) if isinstance(source, InputError) else source

    async def _fetch_and_classify_each(
        self, batch: "_Batch", remaining: Iterator[int], staged: StageBatch
    ) -> None:
        """Process rows one after another; several such tasks share the iterator `remaining`."""
        slots = self._fetched_rows_of_few if len(batch.rows) <= FEW_ROWS else self._fetched_rows
        for place in remaining:
            source = cast(Remote, batch.rows[place].source)
            if isinstance(source, StageFile):
                await staged.settle([source])
            async with slots.of(batch.caller):
                # Otherwise thousands of rejected URLs would be one step of the event loop.
                await asyncio.sleep(0)
                fetched = await self._fetch(batch, source, staged)
                batch.request.mark_fetched(1)
                if not isinstance(fetched, Image):
                    batch.request.mark_answered(1)
                await batch.classify([(place, fetched)])

    async def _fetch(self, batch: "_Batch", source: Remote, staged: StageBatch) -> Fetched:
        started = perf_counter()
        try:
            if isinstance(source, StageFile):
                return await staged.fetch(source)
            return await self._fetcher.fetch(source)
        except InputError as error:
            return batch.outcome_of(error, self.model.identity)
        finally:
            ended = perf_counter()
            batch.request.steps.fetch.note(ended - started, started, ended)
            self.queue.capacity.record_fetched(ended - started)


@dataclass
class _Batch:
    """The rows of a request and their outcomes so far."""

    rows: Sequence[Row]
    outcomes: list[Outcome | None]
    request: QueuedRequest
    pending: PendingBody | None
    caller: str | None
    _errors: dict[tuple[str, str, bool, str], Outcome] = field(default_factory=dict)

    def outcome_of(self, error: InputError, model: ModelIdentity) -> Outcome:
        """Equal errors share one outcome: a small body can hold thousands of rows with the same error."""
        key = (error.code, error.message, error.retryable, model["version"])
        outcome = self._errors.get(key)
        if outcome is None:
            outcome = self._errors[key] = outcome_of_error(error, model)
        return outcome

    def classify(self, fetched: Iterable[tuple[int, Fetched]]) -> "asyncio.Future[list[Outcome | None]]":
        """Queue images, and note outcomes that are already known, by row index."""
        places: list[int] = []
        waiting: list[WaitingRow] = []
        for place, image in fetched:
            if isinstance(image, Image):
                places.append(place)
                waiting.append(WaitingRow(image, self.rows[place].evidence))
            else:
                self._answer(place, image)
        return self.request.classify(waiting, lambda number, outcome: self._answer(places[number], outcome))

    def _answer(self, place: int, outcome: Outcome | None) -> None:
        self.outcomes[place] = outcome
        source_bytes = self.rows[place].release_source()
        if self.pending is not None:
            self.pending.drop(source_bytes)
            if outcome is not None and outcome["evidence"] is not None:
                self.pending.take(len(outcome["evidence"]["heatmap_png"]))


def _grouped_by_stage(rows: Sequence[Row], places: Iterable[int]) -> Iterable[Sequence[int]]:
    """Indices of rows grouped by stage, so that no group waits for the URLs of another to be signed."""
    groups: dict[tuple[str, ...], list[int]] = {(): []}
    for place in places:
        source = rows[place].source
        stage = source.stage if isinstance(source, StageFile) else ()
        if stage not in groups and len(groups) > MAX_STAGES_IN_BATCH:
            stage = ()  # such rows fail at once; a group for each would start a task for each row
        groups.setdefault(stage, []).append(place)
    return groups.values()
