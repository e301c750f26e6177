"""A file of outcomes, one per image: CSV, JSON, JSON Lines or Parquet, by its suffix.

A run appends outcomes to a journal, FILE.partial, and writes FILE when all images are done, so that FILE is
always complete. A run after an interruption continues from the journal. A repeated run classifies only images
that are missing, have changed, failed with a retryable error, or were classified by another model version.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from typing import Any, Self

from app.cli.command_line import needs_extra
from app.client import ClientError
from app.errors import UsageError
from app.outcome import Outcome

if sys.platform != "win32":
    import fcntl

Record = dict[str, Any]
"""An outcome, with `image` (its name) and `content` (its SHA-256 or etag)."""


class ResultFile:
    """A context manager that locks the file for one run at a time.

    Raises ClientError for an unknown suffix, for a file that does not hold outcomes, and for a file that
    another run has locked.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise UsageError(f"--out FILE must end in one of {', '.join(_FORMATS)}. Received: {path}")
        if path.suffix.lower() == ".parquet":
            _arrow()
        self.path = path
        self._read, self._write, self._keeps_heatmaps = _FORMATS[path.suffix.lower()]
        self._journal_path = path.with_name(f"{path.name}.partial")
        self.records: dict[str, Record] = {}

    def __enter__(self) -> Self:
        try:
            self._journal = self._journal_path.open("a+b")
        except OSError as error:
            raise ClientError(f"cannot write --out {self.path}: {error.strerror}.") from None
        try:
            self._lock()
        except ClientError:
            self._journal.close()
            raise
        try:
            self.records = self._load()
        except ClientError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the journal if it is empty; otherwise keep it for the next run."""
        if self._journal.seek(0, SEEK_END) == 0:
            self._journal_path.unlink(missing_ok=True)
        self._journal.close()

    def has(self, image: str, content: str | None, model_version: str | None, *, evidence: bool) -> bool:
        """Whether the stored outcome is still valid for this image and model version.

        A `model_version` of None, where the version is unknown, matches every version.
        """
        known = self.records.get(image)
        if known is None or known["content"] != content or (known["error"] or {}).get("retryable"):
            return False
        if model_version is not None and known["model"]["version"] != model_version:
            return False
        return not evidence or known["evidence"] is not None or known["error"] is not None

    def has_failed(self, image: str) -> bool:
        return self.records[image]["error"] is not None

    def add(self, image: str, content: str | None, outcome: Outcome) -> None:
        """Add an outcome, and append it to the journal."""
        record: Record = {"image": image, "content": content, **outcome}
        if record["evidence"] is not None and not self._keeps_heatmaps:
            record["evidence"] = {"box": record["evidence"]["box"]}
        self.records[image] = record
        self._journal.write(json.dumps(record).encode() + b"\n")
        self._journal.flush()

    def finish(self) -> None:
        """Replace the file with all outcomes, and empty the journal."""
        replacement = self.path.with_name(f"{self.path.name}.new")
        self._write(replacement, self.records.values())
        replacement.replace(self.path)
        self._journal.truncate(0)

    def _lock(self) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClientError(
                    f"Another run has locked {self.path}: wait for it, or use another file."
                ) from None

    def _load(self) -> dict[str, Record]:
        records = {}
        if self.path.exists():
            try:
                records = {record["image"]: record for record in map(_checked, self._read(self.path))}
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ClientError(
                    f"--out must be a file of outcomes, or a new file. Received: {self.path} "
                    f"({type(error).__name__}); use another name, or delete the file."
                ) from None
        return records | self._load_journal()

    def _load_journal(self) -> dict[str, Record]:
        """Return the journal's records. Skips an incomplete last line, which a killed run leaves."""
        self._journal.seek(0)
        records = {}
        lines = self._journal.read().split(b"\n")
        for line in lines:
            with suppress(ValueError, TypeError, KeyError):
                record = _checked(json.loads(line))
                records[record["image"]] = record
        if lines[-1]:
            self._journal.write(b"\n")
        return records


def _checked(record: Any) -> Record:
    """Return `record` unchanged. Raises TypeError or KeyError if it is not a record."""
    if not isinstance(record, dict) or not isinstance(record["image"], str):
        raise TypeError
    for key in ("content", "evidence", "error", "confidence", "nearest_confidence"):
        record[key]
    record["model"]["version"]
    return record


# Spreadsheets treat text that begins with these characters as a formula, unless a quote precedes it.
_FORMULA = re.compile(r"\A'('*[=+\-@\t\r])")


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(f"'{text}") else text


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _flag(text: str) -> bool:
    return text == "true"


# For each column: the function that takes its value from a record, and the one that parses it from CSV text.
_COLUMNS: dict[str, tuple[Callable[[Record], Any], Callable[[str], Any]]] = {
    "image": (lambda r: r["image"], str),
    "label": (lambda r: r["label"], str),
    "confidence": (lambda r: r["confidence"], float),
    "abstained": (lambda r: r["abstained"], _flag),
    "reason": (lambda r: r["reason"], str),
    "nearest_label": (lambda r: r["nearest_label"], str),
    "nearest_confidence": (lambda r: r["nearest_confidence"], float),
    "probabilities": (lambda r: _json(r["probabilities"]), str),
    "box": (lambda r: _json((r["evidence"] or {}).get("box")), str),
    "model_name": (lambda r: (r["model"] or {}).get("name"), str),
    "model_version": (lambda r: (r["model"] or {}).get("version"), str),
    "error_code": (lambda r: (r["error"] or {}).get("code"), str),
    "error_message": (lambda r: (r["error"] or {}).get("message"), str),
    "error_retryable": (lambda r: (r["error"] or {}).get("retryable"), _flag),
    "content": (lambda r: r["content"], str),
}


def _row_of(record: Record) -> dict[str, Any]:
    return {name: pick(record) for name, (pick, _) in _COLUMNS.items()}


def _record_of(row: Mapping[str, Any]) -> Record:
    """Return the record of a table row, without the heatmap. Raises KeyError if a column is missing."""
    error = {key: row[f"error_{key}"] for key in ("code", "message", "retryable")}
    return {
        "image": row["image"],
        "content": row["content"],
        "label": row["label"],
        "confidence": row["confidence"],
        "probabilities": row["probabilities"] and json.loads(row["probabilities"]),
        "abstained": row["abstained"],
        "reason": row["reason"],
        "nearest_label": row["nearest_label"],
        "nearest_confidence": row["nearest_confidence"],
        "evidence": {"box": json.loads(row["box"])} if row["box"] else None,
        "model": {"name": row["model_name"], "version": row["model_version"]},
        "error": error if row["error_code"] else None,
    }


def _write_csv(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for record in records:
            cells = _row_of(record).values()
            writer.writerow([str(c).lower() if isinstance(c, bool) else _cell(c) for c in cells])


def _read_csv(path: Path) -> Iterator[Record]:
    """Raises ValueError for unknown columns, because rewriting the file would lose them."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        if list(rows.fieldnames or ()) != list(_COLUMNS):
            raise ValueError
        for row in rows:
            cells = {name: _FORMULA.sub(r"\1", row[name]) for name in _COLUMNS}
            yield _record_of({n: parse(cells[n]) if cells[n] else None for n, (_, parse) in _COLUMNS.items()})


def _write_json_lines(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _read_json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_json(path: Path, records: Iterable[Record]) -> None:
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _read_json(path: Path) -> Iterator[Record]:
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list):
        raise TypeError
    yield from records


def _write_parquet(path: Path, records: Iterable[Record]) -> None:
    pa, parquet = _arrow()
    types = {
        **dict.fromkeys(("confidence", "nearest_confidence"), pa.float64()),
        **dict.fromkeys(("abstained", "error_retryable"), pa.bool_()),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in _COLUMNS])
    table = pa.Table.from_pylist([_row_of(record) for record in records], schema=schema)
    parquet.write_table(table, path)


def _read_parquet(path: Path) -> Iterator[Record]:
    _, parquet = _arrow()
    for row in parquet.read_table(path).to_pylist():
        yield _record_of(row)


def _arrow() -> tuple[Any, Any]:
    """Pyarrow and pyarrow.parquet, which have no types."""
    with needs_extra("terminal"):
        import pyarrow as pa  # noqa: PLC0415 - optional
        from pyarrow import parquet  # noqa: PLC0415
    return pa, parquet


_Read = Callable[[Path], Iterator[Record]]
_Write = Callable[[Path, Iterable[Record]], None]
# Reader, writer, and whether the format stores heatmaps.
_FORMATS: dict[str, tuple[_Read, _Write, bool]] = {
    ".csv": (_read_csv, _write_csv, False),
    ".json": (_read_json, _write_json, True),
    ".jsonl": (_read_json_lines, _write_json_lines, True),
    ".parquet": (_read_parquet, _write_parquet, False),
}
