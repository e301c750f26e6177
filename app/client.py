"""A client of the service: image files to Snowflake batches, outcomes to a table."""

import base64
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from app.command_line import CommandError
from app.snowflake.wire import BATCH_ID_HEADER

DEFAULT_URL = "http://127.0.0.1:8000"
BATCH_ROWS = 64
BATCH_BYTES = 16 * 1024 * 1024
TIMEOUT_SECONDS = 60.0
# A batch that was answered 202 is asked for so often.
POLL_SECONDS = 1.0
# So long, a service that is busy, or being replaced, is waited for.
PATIENCE_SECONDS = 300.0
LONGEST_PAUSE_SECONDS = 10.0
_RETRYABLE = frozenset({429, 500, 502, 503, 504})
API_KEY_HEADER = "X-API-Key"
IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})


class ClientError(CommandError):
    """The service cannot be reached, or refuses the whole request."""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the image files in the folders named, but for hidden ones, in sorted order."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ClientError(f"There is no {path}.")
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if _is_image(file))
        else:
            found.append(path)
    if not found:
        raise ClientError(f"There are no images in {', '.join(map(str, paths))}.")
    return found


def _is_image(path: Path) -> bool:
    is_hidden = path.name.startswith(".")  # such as those that macOS leaves beside images
    return not is_hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def classify_files(images: Sequence[Path], url: str, api_key: str | None = None) -> Iterator[dict[str, Any]]:
    """Outcomes in the order of `images`, asked for in batches as Snowflake would send them."""
    for batch in _batches(images):
        data = [[number, base64.b64encode(image).decode()] for number, image in enumerate(batch)]
        for _, outcome in _post_json(f"{url}/classify", {"data": data}, api_key)["data"]:
            yield outcome


def classify_sources(
    sources: Sequence[str],
    url: str,
    *,
    batch_id: str,
    api_key: str | None = None,
    given_up: threading.Event | None = None,
) -> list[dict[str, Any]]:
    """Outcomes in the order of `sources`, in one batch, as Snowflake would send it and ask for it.

    Under its id, so that a repeated one is not classified twice; patient with a service that is busy or
    begins anew, until `given_up`. Raises ClientError.
    """
    given_up = given_up or threading.Event()
    document = {"data": [[number, source] for number, source in enumerate(sources)]}
    body = json.dumps(document).encode()
    headers = {BATCH_ID_HEADER: batch_id} | _credentials(api_key)
    post = urllib.request.Request(
        f"{_checked(url)}/classify", body, headers | {"Content-Type": "application/json"}
    )
    poll = urllib.request.Request(post.full_url, headers=headers)
    request, give_up_at, failures = post, time.monotonic() + PATIENCE_SECONDS, 0
    while True:
        try:
            status, answer = _exchange(request)
            if status == HTTPStatus.OK:
                return _outcomes_of(answer, len(sources), url)
            # It is begun, and is to be asked for.
            request, give_up_at, failures, pause = poll, time.monotonic() + PATIENCE_SECONDS, 0, POLL_SECONDS
        except _Unanswered as error:
            request = post  # whoever had promised the answer may be gone
            failures += 1
            pause = error.retry_after_seconds or min(0.1 * 2 ** min(failures, 16), LONGEST_PAUSE_SECONDS)
            if time.monotonic() + pause > give_up_at or given_up.is_set():
                raise ClientError(str(error)) from None
        given_up.wait(random.uniform(pause / 2, pause))  # noqa: S311 - no secret


def model_version(url: str, api_key: str | None = None) -> str:
    """Of the network that serves. Raises ClientError."""
    try:
        request = urllib.request.Request(f"{_checked(url)}/readyz", headers=_credentials(api_key))
        _, answer = _exchange(request)
        version: str = answer["model"]["version"]
        return version
    except _Unanswered as error:
        raise ClientError(str(error)) from None


def _credentials(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {API_KEY_HEADER: api_key}


def _outcomes_of(answer: Any, rows: int, url: str) -> list[dict[str, Any]]:
    """Raises ClientError for what is no answer to so many rows."""
    try:
        outcomes = [outcome for number, outcome in sorted(answer["data"], key=lambda row: int(row[0]))]
    except (TypeError, KeyError, ValueError):
        outcomes = []
    if len(outcomes) != rows:
        raise ClientError(f"{url} answered with something other than {rows} outcomes.")
    return outcomes


def print_outcomes(images: Sequence[Path], outcomes: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    """One line an image, as a table with label counts below it, or as JSON."""
    if as_json:
        for image, outcome in zip(images, outcomes, strict=True):
            print(json.dumps({"image": str(image), **outcome}, ensure_ascii=False))
        return
    names = _short_names(images)
    width = max(map(len, ["image", *names]))
    counts: Counter[str] = Counter()
    for name, outcome in zip(names, outcomes, strict=True):
        if not counts:
            print(f"{'image':<{width}}  {'label':<18}  confidence")
        counts[_label(outcome)] += 1
        print(f"{name:<{width}}  {_label(outcome):<18}  {_confidence(outcome)}")
    print("\n" + ", ".join(f"{count} {label}" for label, count in sorted(counts.items())))


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=TIMEOUT_SECONDS):
            return True
    except (OSError, HTTPException):
        return False


def _batches(images: Sequence[Path]) -> Iterator[list[bytes]]:
    """The contents of `images`, as many at a time as rows and bytes allow."""
    batch: list[bytes] = []
    for image in images:
        content = image.read_bytes()
        if batch and (len(batch) == BATCH_ROWS or sum(map(len, batch)) + len(content) > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(content)
    yield batch


def _short_names(images: Sequence[Path]) -> list[str]:
    names = [image.name for image in images]
    return names if len(set(names)) == len(names) else [str(image) for image in images]


class _Unanswered(Exception):
    """What may be answered another time."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def _exchange(request: urllib.request.Request) -> tuple[int, Any]:
    """The status, 200 or 202, and the document. Raises _Unanswered, or ClientError for good."""
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        message = f"{url} answered {error.code}: {error.read(500).decode(errors='replace')}"
        is_unknown_batch = error.code == HTTPStatus.NOT_FOUND and request.get_method() == "GET"
        if error.code not in _RETRYABLE and not is_unknown_batch:
            raise ClientError(message) from None
        asked_for = error.headers.get("Retry-After", "")
        raise _Unanswered(message, float(asked_for) if asked_for.isdecimal() else None) from None
    except (OSError, ValueError, HTTPException) as error:
        raise _Unanswered(f"{url} does not answer ({error})") from None


def _checked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"The service's URL must begin with http:// or https://. Received: {url}")
    return url


def _post_json(url: str, document: object, api_key: str | None) -> Any:
    body = json.dumps(document).encode()
    try:
        headers = {"Content-Type": "application/json"} | _credentials(api_key)
        request = urllib.request.Request(_checked(url), body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ClientError(f"{url} answered {error.code}: {error.read(500).decode()}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise ClientError(f"{url} does not answer ({error}); start it with: ext-classify serve") from None


def _label(outcome: dict[str, Any]) -> str:
    if outcome["abstained"]:
        return "(abstained)"
    return str(outcome["label"] or outcome["error"]["code"])


def _confidence(outcome: dict[str, Any]) -> str:
    if outcome["abstained"]:
        return f"{outcome['reason']}, nearest {outcome['nearest_label']}"
    return str((outcome["error"] or {}).get("message") or f"{outcome['confidence']:.4f}")
