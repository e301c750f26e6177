"""Handler of the Python function inside a warehouse: a batch of rows in, an outcome a row.

Source: Snowflake documentation, "Vectorized Python UDFs" and "Reading files and assets". Its stage also
holds a zip of app and model, whose outcomes are those of the service.
"""
# ruff: noqa: INP001 - Snowflake imports it by its name alone

import os
import sys
from importlib.util import find_spec
from io import RawIOBase
from pathlib import Path
from typing import Any

from app.images.source import Fetched
from model.defaults import Engine

# The directory of imports may be no place to lock a file in. HDF5 reads this when it is first loaded.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")

import pandas as pd
from pydantic_core import from_json
from snowflake.snowpark.files import SnowflakeFile

from app.errors import FetchFailed, ScopedUrlNotReadable
from app.images.source import Row, StageFile, Url
from app.outcome import outcome_of_error
from app.snowflake.wire import format_rows, parse_rows
from app.workers.classify import ImageClassifier
from model.artifact import load_artifact
from model.engines import open_classifier
from model.errors import ImageTooLarge, InputError
from model.image_limits import ImageLimits

# A batch may take 180 seconds, and holds its images in memory, 20 MB each at most.
MAX_BATCH_ROWS = 32
_STAND_IN = (
    "SnowflakeFile must be the warehouse's own. Received: the stand-in of PyPI's package "
    "snowflake-snowpark-python, which reads no scoped URLs. Create the function with "
    "ARTIFACT_REPOSITORY = snowflake.snowpark.anaconda_shared_repository and the packages that "
    "14_warehouse_functions.sql names for TensorFlow."
)
CACHE_DIR = Path("/tmp/ext-classify")  # noqa: S108 - the only place that a function may write to


def _load() -> ImageClassifier:
    [h5_path] = Path(sys._xoptions["snowflake_import_directory"]).glob("*.h5")  # noqa: SLF001
    artifact = load_artifact(h5_path)
    engine: Engine = "litert" if find_spec("ai_edge_litert") else "tensorflow"
    # One thread: for concurrent batches, Snowflake starts more processes.
    return ImageClassifier(artifact, open_classifier(artifact, engine, 1, CACHE_DIR), ImageLimits())


# Once a process: Snowflake gives a module more time to load than a batch to run.
_CLASSIFIER = _load()


def classify(batch: pd.DataFrame) -> list[Any]:
    """An outcome a row, None for NULL. Columns: 0 is the source, 1, if there is one, the options."""
    columns = [batch[name].astype(object) for name in batch.columns]
    known = [column.where(column.notna(), None).tolist() for column in columns]
    data = [[number, *row] for number, row in enumerate(zip(*known, strict=True))]
    rows = parse_rows(data)
    fetched = [_fetch(row, source) for row, source in zip(rows, known[0], strict=True)]
    outcomes = _CLASSIFIER.classify(fetched, [row.evidence for row in rows]).outcomes
    return [outcome for _, outcome in from_json(format_rows(zip(rows, outcomes, strict=True)))]


def _fetch(row: Row, source: str) -> Fetched:
    try:
        # Scoped URLs, which only the caller can read, are read as the caller here.
        if isinstance(row.source, Url | StageFile | ScopedUrlNotReadable):
            return _read(source)
    except InputError as error:
        return outcome_of_error(error, _CLASSIFIER.model)
    if isinstance(row.source, InputError):
        return outcome_of_error(row.source, _CLASSIFIER.model)
    return row.source


def _read(scoped_url: str) -> bytes:
    limit = _CLASSIFIER.limits.max_image_bytes
    try:
        with SnowflakeFile.open(scoped_url, "rb") as file:
            content = _read_up_to(file, limit + 1)
    # Snowflake does not say what it raises for files that are gone, or not the caller's.
    except Exception as error:
        if _is_stand_in(error):
            raise FetchFailed(_STAND_IN) from error
        raise FetchFailed(
            "A staged file must be there and be named by a scoped URL of the last day: pass "
            f"BUILD_SCOPED_FILE_URL(@stage, relative_path). Received: {type(error).__name__}."
        ) from error
    if len(content) > limit:
        raise ImageTooLarge(f"An image must have at most {limit} bytes. Received: more than that.")
    return content


def _is_stand_in(error: Exception) -> bool:
    """Whether SnowflakeFile is the one of PyPI's snowflake-snowpark-python, for tests on a laptop.

    It refuses every https URL. Source: its module, snowflake/snowpark/files.py, version 1.56.0.
    """
    return isinstance(error, ValueError) and "not yet supported" in str(error)


def _read_up_to(file: RawIOBase, limit: int) -> bytes:
    """A raw file may give less than it is asked for."""
    content = bytearray()
    while len(content) < limit and (chunk := file.read(limit - len(content))):
        content += chunk
    return bytes(content)


classify._sf_vectorized_input = pd.DataFrame  # type: ignore[attr-defined]  # noqa: SLF001
classify._sf_max_batch_size = MAX_BATCH_ROWS  # type: ignore[attr-defined]  # noqa: SLF001
