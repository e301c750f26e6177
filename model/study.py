"""What evaluate and crossvalidate do: measure, and put what was measured into words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.artifact import Artifact
from model.compiled import user_cache_dir
from model.crossvalidate import NETWORKS, cross_validate
from model.dataset import load_split
from model.evaluate import answer_all
from model.folder import load_folder
from model.foreign import foreign_sets
from model.leak import leak_table
from model.report import Studied, write_report
from model.runtime import Classifier, open_classifier, usable_cores
from model.tables import tables


def report(
    artifact: Artifact, data_dir: Path, split: str, foreign_dirs: Sequence[Path], report_dir: Path
) -> Path:
    """Measure an artifact on a split and write its report; the page."""
    card = artifact.card
    data = load_split(data_dir, split, card.class_names, card.image)
    classifier = open_classifier(artifact, "litert", usable_cores(), user_cache_dir())
    studied = Studied(
        artifact=artifact,
        classifier=classifier,
        data=data,
        data_dir=data_dir,
        split=split,
        answers=answer_all(classifier, data.images),
        foreign=_foreign_scores(artifact, classifier, foreign_dirs),
    )
    return write_report(studied, report_dir)


def crossvalidation(
    networks: Sequence[str], data_dir: Path, foreign_dirs: Sequence[Path], work_dir: Path
) -> str:
    """All tables, in Markdown. Raises DatasetError when a folder cannot be used."""
    studied = [cross_validate(name, data_dir, foreign_dirs, work_dir) for name in networks]
    spec, _ = NETWORKS[networks[0]]
    folder = load_folder(data_dir, spec)
    parts = list(tables(studied, folder.class_names))
    if folder.splits[0]:
        parts.insert(1, leak_table(studied, folder))
    return "\n\n".join(parts)


def _foreign_scores(
    artifact: Artifact, classifier: Classifier, foreign_dirs: Sequence[Path]
) -> dict[str, NDArray[np.float32]]:
    novelty = artifact.card.novelty
    if novelty is None:
        return {}
    found = {}
    for name, images in foreign_sets(artifact.card.image, foreign_dirs).items():
        embeddings = answer_all(classifier, images).embeddings
        if embeddings is not None:
            found[name] = novelty.score(embeddings)
    return found
