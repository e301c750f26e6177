"""The outcome of each kind of source in each state: `python -m tests.contract.source_table` prints the table.

A service classifies the sources and reads the stages of the emulator.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import snowflake.connector

from app.emulator import LocalServer
from app.names import quote_string
from tests.conftest import SAMPLES
from tests.running import running_service

STATES = ("ok", "missing", "forbidden", "expired", "too large", "not an image")
MAX_IMAGE_BYTES = 100_000
ENVIRONMENT = {"EXT_CLASSIFY_MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES)}

_STAGED = {
    "ok": "Scratches",
    "missing": "file_missing",
    "forbidden": "stage_not_authorized",
    "too large": "image_too_large",
    "not an image": "unsupported_format",
}
_INLINE = {"ok": "Scratches", "too large": "image_too_large", "not an image": "unsupported_format"}
# The label or the error code; a state that does not apply to a kind is omitted.
CELLS: dict[str, dict[str, str]] = {
    "stage-file URL": _STAGED,
    "stage path": _STAGED,
    "pre-signed URL": _STAGED | {"forbidden": "access_denied", "expired": "url_expired"},
    "scoped URL": dict.fromkeys(("ok", "missing", "too large", "not an image"), "scoped_url_not_readable"),
    "inline base64": _INLINE,
    "inline hex": _INLINE,
    "stage-file URL, encrypted by clients": _STAGED,
    "stage path, encrypted by clients": _STAGED,
    "pre-signed URL, encrypted by clients": {
        "ok": "client_side_encrypted",
        "missing": "file_missing",
        "too large": "client_side_encrypted",
        "not an image": "client_side_encrypted",
    },
}
FILES = {
    "ok": (SAMPLES / "scratches.png").read_bytes(),
    "too large": (SAMPLES / "scratches.png").read_bytes().ljust(MAX_IMAGE_BYTES + 100, b"\0"),
    "not an image": b"RIFF" + bytes(4) + b"an HTML page",
}
PRESIGNED = "GET_PRESIGNED_URL"
FILE_URL = "BUILD_STAGE_FILE_URL"
SCOPED = "BUILD_SCOPED_FILE_URL"


def make_sources(server: LocalServer) -> dict[tuple[str, str], str]:
    """A source for each (kind, state); waits two seconds until the expired URL has expired."""
    with snowflake.connector.connect(**server.connect_arguments) as connection, connection.cursor() as cursor:
        _make_stages(cursor)
        sources = {
            (kind, state): _source(cursor, kind, state) for kind, states in CELLS.items() for state in states
        }
    time.sleep(2)
    return sources


def _make_stages(cursor: Any) -> None:
    cursor.execute("CREATE OR REPLACE STAGE steel ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    cursor.execute("CREATE OR REPLACE STAGE sealed")
    with tempfile.TemporaryDirectory() as folder:
        for state, content in FILES.items():
            path = Path(folder) / f"{state}.png"
            path.write_bytes(content)
            for stage in ("steel", "sealed"):
                cursor.execute(f"PUT {quote_string(f'file://{path}')} @{stage}/2026 AUTO_COMPRESS = FALSE")


def _source(cursor: Any, kind: str, state: str) -> str:
    kind, _, encrypted = kind.partition(", ")
    stage = "sealed" if encrypted else "steel"
    name = f"2026/{state}.png"
    if kind == "inline base64":
        return base64.b64encode(FILES[state]).decode()
    if kind == "inline hex":
        return FILES[state].hex().upper()
    if kind == "stage path":
        return f"@local.public.{'forbidden' if state == 'forbidden' else stage}/{name}"
    if kind == "stage-file URL":
        url = _evaluate(cursor, f"{FILE_URL}(@{stage}, '{name}')")
        return url.replace(f"/{stage.upper()}/", "/FORBIDDEN/") if state == "forbidden" else url
    if kind == "scoped URL":
        return _evaluate(cursor, f"{SCOPED}(@{stage}, '{name}')")
    seconds = 1 if state == "expired" else 600
    url = _evaluate(cursor, f"{PRESIGNED}(@{stage}, '{name}', {seconds})")
    return f"{url}0" if state == "forbidden" else url


def _evaluate(cursor: Any, expression: str) -> str:
    answer: str = cursor.execute(f"SELECT {expression}").fetchone()[0]
    return answer


def classify(service: str, sources: list[Any], *, timeout_seconds: float = 120) -> list[Any]:
    """The outcomes of a batch in Snowflake's format; retries on 429 and checks the order of the rows."""
    rows = [[number, source] for number, source in enumerate(sources)]
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = httpx.post(f"{service}/classify", json={"data": rows}, timeout=timeout_seconds)
        if answer.status_code != 429 or time.monotonic() > deadline:
            break
        time.sleep(float(answer.headers["Retry-After"]))
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [number for number, _ in data] == list(range(len(sources)))
    return [outcome for _, outcome in data]


def answer_of(outcome: Any) -> str | None:
    """The label or the error code; None for NULL."""
    if outcome is None:
        return None
    answer: str = outcome["error"]["code"] if outcome["error"] else outcome["label"]
    return answer


def main() -> None:
    with LocalServer() as server:
        sources = make_sources(server)
        with running_service(**server.service_environment | ENVIRONMENT) as service:
            answers = map(answer_of, classify(service, list(sources.values())))
            found = dict(zip(sources, answers, strict=True))
    lines = [["source", *STATES], ["---"] * (len(STATES) + 1)]
    lines += [[kind, *(found.get((kind, state), "") for state in STATES)] for kind in CELLS]
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
