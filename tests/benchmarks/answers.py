"""Check what a server answered: one label for each image, and no error."""

import json
import re
from typing import Any

from tests.benchmarks.contenders import Form

# Servers format outcomes differently; each row contains one of these exactly once.
_MARKERS = (b'"label"', b'\\"label\\"', b'"class"', b'"confidence"')
_LABEL_KEYS = ("label", "nearest_label", "class", "predicted_class", "prediction")
_ERROR = re.compile(rb'"error\\?": ?[^n ]')


class WrongAnswer(Exception):
    """An answer with status 200 that does not hold the labels asked for."""


class AnswerCheck:
    """Reads the first answer whole, and counts in those after it: the load process must stay cheap."""

    def __init__(self, form: Form, rows: int) -> None:
        self._form = form
        self._rows = rows
        self._marker: bytes | None = None

    def require_labels(self, body: bytes, *, whole: bool) -> None:
        """Raises WrongAnswer. `whole` is for the first answer of a connection."""
        if whole or self._marker is None:
            self._read(body)
        elif body.count(self._marker) != self._rows or _ERROR.search(body):
            raise WrongAnswer(f"The answer must hold {self._rows} labels. Received: {_excerpt(body)}")

    def _read(self, body: bytes) -> None:
        labels = labels_in(self._form, body)
        if len(labels) != self._rows:
            raise WrongAnswer(f"The answer must hold {self._rows} labels. Received: {len(labels)}.")
        self._marker = next((marker for marker in _MARKERS if body.count(marker) == self._rows), None)


def labels_in(form: Form, body: bytes) -> list[str]:
    """One label an image, in the order of the images. Raises WrongAnswer."""
    try:
        document = json.loads(body)
        return list(map(_label, _outcomes(form, document)))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise WrongAnswer(
            f"The answer must be of the form {form} ({type(error).__name__}). Received: {_excerpt(body)}"
        ) from None


def _outcomes(form: Form, document: Any) -> list[Any]:
    match form:
        case "snowflake":
            numbers = [row[0] for row in document["data"]]
            if numbers != list(range(len(numbers))):
                raise WrongAnswer(f"Rows must keep their numbers and order. Received: {numbers[:8]}.")
            return [row[1] for row in document["data"]]
        case "multipart":
            return list(document["results"]) if "results" in document else [document]
        case "image":
            return [document]
        case "v2":
            [labels] = [tensor["data"] for tensor in document["outputs"] if tensor["datatype"] == "BYTES"]
            return list(labels)


def _label(outcome: Any) -> str:
    if isinstance(outcome, str):
        return _label(json.loads(outcome)) if outcome.startswith("{") else _require_label(outcome)
    if outcome.get("error"):
        raise WrongAnswer(f"No image may fail. Received: {outcome['error']}")
    return _require_label(next(filter(None, (outcome.get(key) for key in _LABEL_KEYS)), None))


def _require_label(label: object) -> str:
    if not isinstance(label, str) or not label or label.startswith("error"):
        raise WrongAnswer(f"Every image must have a label. Received: {label!r}.")
    return label


def _excerpt(body: bytes) -> str:
    return body[:160].decode(errors="replace")
