"""Outcomes in a file, one an image: CSV, JSON, JSON Lines or Parquet, by its name.

What is classified is noted in a journal beside the file, FILE.partial, and the file is written once all is
done: whoever was interrupted goes on, and the file is whole or not there. Run again, only what is missing,
has changed, or may turn out better is classified.
"""

import csv
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from typing import Any, Self

from app.client import ClientError
from app.outcome import Outcome

if sys.platform != "win32":
    import fcntl

Record = dict[str, Any]
"""An outcome, with the `image` and its `content`."""


class ResultFile:
    """Held, from `with` on, by one run at a time.

    Raises ClientError for a name that says no format, a file that holds something else, or one that another
    run writes to.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise ClientError(f"--out FILE must end in one of {', '.join(_FORMATS)}. Received: {path}")
        if path.suffix.lower() == ".parquet":
            _arrow("pyarrow")
        self.path = path
        self._read, self._write, self._keeps_heatmaps = _FORMATS[path.suffix.lower()]
        self._journal_path = path.with_name(f"{path.name}.partial")
        self.records: dict[str, Record] = {}

    def __enter__(self) -> Self:
        try:
            self._journal = self._journal_path.open("a+b")
        except OSError as error:
            raise ClientError(f"--out {self.path} cannot be written: {error.strerror}.") from None
        try:
            self._claim()
        except ClientError:
            self._journal.close()
            raise
        try:
            self.records = self._known()
        except ClientError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """What is in the journal stays there until the file is whole."""
        if self._journal.seek(0, SEEK_END) == 0:
            self._journal_path.unlink(missing_ok=True)
        self._journal.close()

    def has(self, image: str, content: str | None, model_version: str | None, *, evidence: bool) -> bool:
        """Whether an outcome is there that would be the same again.

        Where the version is unknown, the outcome of any network will do.
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
        """It is kept from then on."""
        record: Record = {"image": image, "content": content, **outcome}
        if record["evidence"] is not None and not self._keeps_heatmaps:
            record["evidence"] = {"box": record["evidence"]["box"]}
        self.records[image] = record
        self._journal.write(json.dumps(record).encode() + b"\n")
        self._journal.flush()

    def finish(self) -> None:
        """Write all, in place of what was there."""
        whole = self.path.with_name(f"{self.path.name}.new")
        self._write(whole, self.records.values())
        whole.replace(self.path)
        self._journal.truncate(0)

    def _claim(self) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClientError(f"Another run writes to {self.path}: wait, or name another file.") from None

    def _known(self) -> dict[str, Record]:
        records = {}
        if self.path.exists():
            try:
                records = {record["image"]: record for record in map(_checked, self._read(self.path))}
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ClientError(
                    f"{self.path} holds something else than outcomes ({type(error).__name__}): "
                    "name another file, or take it away."
                ) from None
        return records | self._noted()

    def _noted(self) -> dict[str, Record]:
        """Whoever was killed may have left half a line."""
        self._journal.seek(0)
        noted = {}
        lines = self._journal.read().split(b"\n")
        for line in lines:
            with suppress(ValueError, TypeError, KeyError):
                record = _checked(json.loads(line))
                noted[record["image"]] = record
        if lines[-1]:
            self._journal.write(b"\n")
        return noted


def _checked(record: Any) -> Record:
    """Raises TypeError or KeyError for what is no record."""
    if not isinstance(record, dict) or not isinstance(record["image"], str):
        raise TypeError
    for key in ("content", "evidence", "error", "confidence"):
        record[key]
    record["model"]["version"]
    return record


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _flag(text: str) -> bool:
    return text == "true"


# Each column of a table: what it holds of a record, and how it is read of a CSV's text.
_COLUMNS: dict[str, tuple[Callable[[Record], Any], Callable[[str], Any]]] = {
    "image": (lambda r: r["image"], str),
    "label": (lambda r: r["label"], str),
    "confidence": (lambda r: r["confidence"], float),
    "abstained": (lambda r: r["abstained"], _flag),
    "reason": (lambda r: r["reason"], str),
    "nearest_label": (lambda r: r["nearest_label"], str),
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
    """But for the heatmap, which no table holds. Raises KeyError for a row of something else."""
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
            writer.writerow([_text(c).lower() if isinstance(c, bool) else _text(c) for c in cells])


def _read_csv(path: Path) -> Iterator[Record]:
    """Raises ValueError for columns of somebody else's, which would be lost."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        if list(rows.fieldnames or ()) != list(_COLUMNS):
            raise ValueError
        for row in rows:
            yield _record_of({n: parse(row[n]) if row[n] else None for n, (_, parse) in _COLUMNS.items()})


def _write_json_lines(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _read_json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_json(path: Path, records: Iterable[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        before = "[\n"
        for record in records:
            file.write(before + json.dumps(record, ensure_ascii=False))
            before = ",\n"
        file.write("\n]\n" if before != "[\n" else "[]\n")


def _read_json(path: Path) -> Iterator[Record]:
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list):
        raise TypeError
    yield from records


def _write_parquet(path: Path, records: Iterable[Record]) -> None:
    arrow = _arrow("pyarrow")
    types = {"confidence": arrow.float64(), "abstained": arrow.bool_(), "error_retryable": arrow.bool_()}
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in _COLUMNS])
    table = arrow.Table.from_pylist([_row_of(record) for record in records], schema=schema)
    _arrow("pyarrow.parquet").write_table(table, path)


def _read_parquet(path: Path) -> Iterator[Record]:
    for row in _arrow("pyarrow.parquet").read_table(path).to_pylist():
        yield _record_of(row)


def _arrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ClientError("Parquet takes the terminal extra: make setup installs it.") from None


_Read = Callable[[Path], Iterator[Record]]
_Write = Callable[[Path, Iterable[Record]], None]
# And whether it has room for heatmaps.
_FORMATS: dict[str, tuple[_Read, _Write, bool]] = {
    ".csv": (_read_csv, _write_csv, False),
    ".json": (_read_json, _write_json, True),
    ".jsonl": (_read_json_lines, _write_json_lines, True),
    ".parquet": (_read_parquet, _write_parquet, False),
}
