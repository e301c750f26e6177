"""A client of the service: image files to Snowflake batches, outcomes to a table."""

import base64
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from app.command_line import CommandError

DEFAULT_URL = "http://127.0.0.1:8000"
BATCH_ROWS = 64
BATCH_BYTES = 16 * 1024 * 1024
TIMEOUT_SECONDS = 60.0
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


def classify_files(images: Sequence[Path], url: str) -> Iterator[dict[str, Any]]:
    """Outcomes in the order of `images`, asked for in batches as Snowflake would send them."""
    for batch in _batches(images):
        data = [[number, base64.b64encode(image).decode()] for number, image in enumerate(batch)]
        for _, outcome in _post_json(f"{url}/classify", {"data": data})["data"]:
            yield outcome


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


def _post_json(url: str, document: object) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"The service's URL must begin with http:// or https://. Received: {url}")
    body = json.dumps(document).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
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
