"""Implementation of the commands evaluate and crossvalidate: a report, and tables."""

import sys
from collections.abc import Sequence
from pathlib import Path

from model.artifact import Artifact
from model.evaluation.crossvalidate import NETWORKS, cross_validate
from model.evaluation.leak import leak_table
from model.evaluation.report import Labelled, report_on
from model.evaluation.tables import tables
from model.training.folder import describe_folder, load_folder
from model.training.split import load_part


def report(
    artifact: Artifact, data_dir: Path, split: str, foreign_dirs: Sequence[Path], report_dir: Path
) -> Path:
    """Measure an artifact on a split of a folder, write its report and return the path of the page."""
    data = load_part(data_dir, split, artifact.card.class_names, artifact.card.image)
    return report_on(artifact, Labelled(data, data_dir, split), foreign_dirs, report_dir)


def crossvalidation(
    networks: Sequence[str], data_dir: Path, foreign_dirs: Sequence[Path], work_dir: Path
) -> str:
    """All tables, in Markdown. Raises DatasetError when a folder cannot be used."""
    spec, _ = NETWORKS[networks[0]]
    folder = load_folder(data_dir, spec)
    print(describe_folder(folder), file=sys.stderr)
    studied = [cross_validate(name, data_dir, foreign_dirs, work_dir) for name in networks]
    parts = list(tables(studied, folder.class_names))
    leak = leak_table(studied, folder, data_dir)
    if leak is not None:
        parts.insert(1, leak)
    return "\n\n".join(f"## {part}" for part in parts)
