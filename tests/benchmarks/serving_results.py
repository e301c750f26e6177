"""The files of a run's results."""

import sys
from pathlib import Path

from tests.benchmarks.goals import write_goals
from tests.benchmarks.measurements import write_csv
from tests.benchmarks.serving_plots import write_plots
from tests.benchmarks.serving_record import Record
from tests.benchmarks.serving_tables import write_summary, write_tables


def write_results(record: Record, folder: Path) -> None:
    """Tables, goals, the long table and plots."""
    write_tables(record, folder)
    write_goals(record, folder)
    _write_cells(record, folder)
    write_plots(record.measurements, record.about, folder)


def write_part(record: Record, folder: Path | None) -> None:
    """Summary, goals and the long table in `folder`; without one, all figures are printed only."""
    write_summary(record, folder)
    write_goals(record, folder)
    if folder is None:
        write_tables(record, None)
        write_csv(record.measurements, sys.stdout, record.about)
    else:
        _write_cells(record, folder)


def _write_cells(record: Record, folder: Path) -> None:
    with (folder / "serving_cells.csv").open("w", encoding="utf-8") as file:
        write_csv(record.measurements, file, record.about)
