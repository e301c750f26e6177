"""Outcomes in a file, one an image: CSV, JSON, JSON Lines or Parquet, by its name.

What is classified is noted in a journal beside the file, FILE.partial, and the file is written once all is
done: whoever was interrupted goes on, and the file is whole or not there. Run again, only what is missing,
has changed, or may turn out better is classified.
"""

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.client import ClientError
from app.outcome import Outcome

Record = dict[str, Any]
"""An outcome, with the `image` and its `content`."""

Add = Callable[[str, str | None, Outcome], None]
"""An image's name, content and outcome."""


class ResultFile:
    """Raises ClientError for a name that says no format, or a file that holds something else."""

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise ClientError(f"--out FILE must end in one of {', '.join(_FORMATS)}. Received: {path}")
        self.path = path
        self._read, self._write = _FORMATS[path.suffix.lower()]
        self._journal_path = path.with_name(f"{path.name}.partial")
        self.records = self._known()

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

    @contextmanager
    def journal(self) -> Iterator[Add]:
        """To add outcomes, which are kept from then on."""
        with self._journal_path.open("a", encoding="utf-8") as journal:

            def add(image: str, content: str | None, outcome: Outcome) -> None:
                record: Record = {"image": image, "content": content, **outcome}
                self.records[image] = record
                journal.write(json.dumps(record, ensure_ascii=False) + "\n")
                journal.flush()

            yield add

    def finish(self) -> None:
        """Write all, in place of what was there."""
        whole = self.path.with_name(f"{self.path.name}.new")
        self._write(whole, self.records.values())
        whole.replace(self.path)
        self._journal_path.unlink(missing_ok=True)

    def _known(self) -> dict[str, Record]:
        records = {}
        if self.path.exists():
            try:
                records = {record["image"]: record for record in self._read(self.path)}
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise ClientError(
                    f"{self.path} holds something else than outcomes ({type(error).__name__}): "
                    "name another file, or take it away."
                ) from None
        if self._journal_path.exists():
            records |= {record["image"]: record for record in _read_journal(self._journal_path)}
        return records


def _read_journal(path: Path) -> Iterator[Record]:
    """Whoever was killed may have left half a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


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
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, strict=True):
            yield _record_of({n: parse(row[n]) if row[n] else None for n, (_, parse) in _COLUMNS.items()})


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
    yield from json.loads(path.read_text(encoding="utf-8"))


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


_FORMATS: dict[str, tuple[Callable[[Path], Iterator[Record]], Callable[[Path, Iterable[Record]], None]]] = {
    ".csv": (_read_csv, _write_csv),
    ".json": (_read_json, _write_json),
    ".jsonl": (_read_json_lines, _write_json_lines),
    ".parquet": (_read_parquet, _write_parquet),
}
