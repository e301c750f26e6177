"""A client of the service: image files to Snowflake batches, outcomes to a table."""

import base64
import json
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000"
BATCH_ROWS = 64
TIMEOUT_SECONDS = 60.0
IMAGE_SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})


class ClientError(Exception):
    """The service cannot be reached, or refuses the whole request."""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the image files in the folders named, in sorted order."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ClientError(f"There is no {path}.")
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise ClientError(f"There are no images in {', '.join(map(str, paths))}.")
    return found


def classify_files(images: Sequence[Path], url: str) -> Iterator[dict[str, Any]]:
    """Outcomes in the order of `images`, asked for in batches as Snowflake would send them."""
    for start in range(0, len(images), BATCH_ROWS):
        rows = [
            [number, base64.b64encode(path.read_bytes()).decode()]
            for number, path in enumerate(images[start : start + BATCH_ROWS])
        ]
        answer = _post_json(f"{url}/classify", {"data": rows})
        yield from (outcome for _, outcome in answer["data"])


def print_outcomes(images: Sequence[Path], outcomes: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    """One line an image, as a table with label counts below it, or as JSON."""
    if as_json:
        for image, outcome in zip(images, outcomes, strict=True):
            print(json.dumps({"image": str(image), **outcome}, ensure_ascii=False))
        return
    width = max(len("image"), *(len(image.name) for image in images))
    print(f"{'image':<{width}}  {'label':<16}  confidence")
    counts: Counter[str] = Counter()
    for image, outcome in zip(images, outcomes, strict=True):
        counts[_label(outcome)] += 1
        print(f"{image.name:<{width}}  {_label(outcome):<16}  {_confidence(outcome)}")
    print("\n" + ", ".join(f"{count} {label}" for label, count in sorted(counts.items())))


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=TIMEOUT_SECONDS):
            return True
    except OSError:
        return False


def _post_json(url: str, document: object) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ClientError(f"The service's URL must begin with http:// or https://. Received: {url}")
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise ClientError(f"{url} answered {error.code}: {error.read(500).decode()}") from None
    except OSError as error:
        raise ClientError(f"{url} does not answer ({error}); start it with: ext-classify serve") from None


def _label(outcome: dict[str, Any]) -> str:
    return str(outcome["label"] or (outcome["error"] or {}).get("code", "abstained"))


def _confidence(outcome: dict[str, Any]) -> str:
    return str((outcome["error"] or {}).get("message") or f"{outcome['confidence']:.4f}")
