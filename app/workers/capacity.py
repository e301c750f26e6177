"""How long a row takes of this service, measured as it goes: what may still be let in follows from it."""

# The latest so many rows count, so that an hour of small images does not hide a minute of large ones.
_ROWS_REMEMBERED = 500


class Capacity:
    """Of so many classifier processes and concurrent fetches."""

    def __init__(self, classifiers: int, max_concurrent_fetches: int) -> None:
        self.classifiers = classifiers
        self._max_concurrent_fetches = max_concurrent_fetches
        self._classify_seconds = _MeanOfLatest()
        self._fetch_seconds = _MeanOfLatest()

    @property
    def classify_seconds(self) -> float:
        """That a process takes for a row; 0 at first."""
        return self._classify_seconds.mean

    @property
    def classified_row_seconds(self) -> float:
        """From one row to the next while all processes are busy; 0 at first."""
        return self._classify_seconds.mean / self.classifiers

    @property
    def fetched_row_seconds(self) -> float:
        """From one row to the next while as many are fetched as may be; 0 at first."""
        return self._fetch_seconds.mean / self._max_concurrent_fetches

    @property
    def row_seconds(self) -> float:
        """From one row to the next while all that classify, or all that fetch, are busy; 0 at first."""
        return max(self.classified_row_seconds, self.fetched_row_seconds)

    def note_classified(self, rows: int, seconds: float, failed_rows: int = 0) -> None:
        """Rows that a process has decoded and predicted, one after the other, in so many seconds.

        Rows that fail count only where a row takes as long as one that is classified. Most fail in a few
        microseconds, and would hide what an image costs.
        """
        if seconds < rows * self._classify_seconds.mean:
            rows -= failed_rows
        self._classify_seconds.add(rows, seconds)

    def note_fetched(self, seconds: float) -> None:
        """One row, whether or not there was an image."""
        self._fetch_seconds.add(1, seconds)


class _MeanOfLatest:
    """Every value counts alike until there are many, then the latest count most."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._count = 0

    def add(self, count: int, total: float) -> None:
        if count:
            self._count = min(self._count + count, _ROWS_REMEMBERED)
            weight = min(1.0, count / self._count)
            self.mean += weight * (total / count - self.mean)
