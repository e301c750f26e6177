"""A stage's files to a table of outcomes: one shard of them, again and again until none is missing."""

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.client import classify_sources
from app.snowflake.answers_table import MAX_ROWS, AnswersTable, StagedFile

# So many batches at a time keep the service's cores busy while others are fetched or written down.
CONCURRENT_BATCHES = 6
REPORT_SECONDS = 10.0

Answered = list[tuple[StagedFile, dict[str, Any]]]


@dataclass
class Progress:
    """Of `files`, those that have an outcome now, and those that are to be tried again."""

    files: int
    stored: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.stored} of {self.files} files classified, {self.failed} to be tried again"


def rescore(table: AnswersTable, files: Sequence[StagedFile], url: str, batch_rows: int) -> Progress:
    """Classify the files and store their outcomes, but for those that may succeed another time.

    Raises ClientError when the service or Snowflake does not answer; what was stored stays.
    """
    progress = Progress(len(files))
    report = _Report(progress)
    for answered in _in_flight(files, url, batch_rows):
        final = [(file, outcome) for file, outcome in answered if not _may_succeed(outcome)]
        for start in range(0, len(final), MAX_ROWS):
            table.store(final[start : start + MAX_ROWS])
        progress.stored += len(final)
        progress.failed += len(answered) - len(final)
        report.tell()
    return progress


def _may_succeed(outcome: dict[str, Any]) -> bool:
    """Another time: its error is the network's or Snowflake's, and not the image's."""
    return bool(outcome["error"] and outcome["error"]["retryable"])


def _in_flight(files: Sequence[StagedFile], url: str, batch_rows: int) -> Iterator[Answered]:
    """What has been answered since the last time: as much as came while that was written down."""
    batches = (files[start : start + batch_rows] for start in range(0, len(files), batch_rows))
    with ThreadPoolExecutor(CONCURRENT_BATCHES) as threads:

        def begin(count: int) -> set[Future[Answered]]:
            return {threads.submit(_classify, batch, url) for batch in islice(batches, count)}

        running = begin(2 * CONCURRENT_BATCHES)
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= begin(len(done))
                yield [answer for future in done for answer in future.result()]
        finally:
            threads.shutdown(cancel_futures=True)


def _classify(files: Sequence[StagedFile], url: str) -> Answered:
    outcomes = classify_sources([file.file_url for file in files], url, batch_id=str(uuid.uuid4()))
    return list(zip(files, outcomes, strict=True))


class _Report:
    """A line now and then, for a job's log."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = self._told_at = time.monotonic()

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at < REPORT_SECONDS:
            return
        self._told_at = now
        rate = self._progress.stored / (now - self._began)
        print(f"{self._progress}; {rate:.0f} images/s", file=sys.stderr, flush=True)
