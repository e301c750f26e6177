"""Counts of rows by the size of their requests, from which the wait of one more request follows."""

# Requests are grouped by the power of two of their number of rows.
_SIZES = 64


class RowsBySize:
    """`request_rows` is the size of a request, `rows` says how many of its rows are meant."""

    def __init__(self) -> None:
        self._rows = [0] * _SIZES

    def add(self, request_rows: int, rows: int) -> None:
        """Or subtract, where `rows` is negative."""
        self._rows[request_rows.bit_length()] += rows

    @property
    def total(self) -> int:
        return sum(self._rows)

    def before(self, request_rows: int) -> int:
        """Rows that are served before the first row of one more request.

        All rows, or those of requests of its size and below twice, because it takes turns with the oldest.
        """
        return min(2 * sum(self._rows[: request_rows.bit_length() + 1]), self.total)

    def has_larger(self, request_rows: int) -> bool:
        """Whether there are rows of a request of a larger size."""
        return any(self._rows[request_rows.bit_length() + 1 :])
