"""ext-classify classify: image files through a running service, or a stage's files into a table."""

import argparse
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.client import (
    BATCH_ROWS,
    DEFAULT_URL,
    classify_files,
    classify_sources,
    find_images,
    model_version,
    print_outcomes,
)
from app.command_line import Add, CommandError, fail_when_stopped, parse_integer
from app.console_flags import add_connection, open_session
from app.own_service import own_service
from app.rescoring import rescore
from app.snowflake.answers_table import AnswersTable, Shard


def classify(
    paths: list[Path],
    url: str | None,
    api_key_file: Path | None,
    as_json: bool,
    stage: str | None,
    out: str | None,
    shard: Shard | None,
    batch_rows: int,
    connection: str | None,
    local: bool,
    port: int,
) -> None:
    api_key = None if api_key_file is None else api_key_file.read_text(encoding="utf-8").strip()
    if stage is None:
        if not paths or out or shard:
            raise CommandError(
                "classify needs PATHs, or --stage and --out, with --shard if it is one of several."
            )
        images = find_images(paths)
        outcomes = classify_files(images, url or DEFAULT_URL, api_key)
        print_outcomes(images, outcomes, as_json=as_json)
        return
    if paths or out is None:
        raise CommandError("--stage needs --out, the table for the outcomes, and no PATHs.")
    if local and url is None:
        raise CommandError("--local needs --url, the service that `ext-classify sql --serve` names.")
    fail_when_stopped()
    with open_session(connection, local, port) as console, _service(url) as service_url:
        table = AnswersTable(console, stage, out)
        table.create()
        part = shard or _shard_of_job()
        files = table.missing(part, model_version(service_url, api_key))

        def ask(sources: list[str], batch_id: str, given_up: threading.Event) -> list[dict[str, Any]]:
            return classify_sources(
                sources, service_url, batch_id=batch_id, api_key=api_key, given_up=given_up
            )

        progress = rescore(table, files, ask, batch_rows)
    known = "" if progress.stored or progress.failed else "; all had an outcome of this network"
    print(f"Shard {part.index} of {part.count}: {progress}{known}.")
    if progress.failed:
        raise CommandError(
            f"{progress.failed} files are not classified yet ({progress.failure}). "
            "Mend that, then run it again."
        )


@contextmanager
def _service(url: str | None) -> Iterator[str]:
    """One of our own, which ends with the command, unless one is named."""
    if url is not None:
        yield url.rstrip("/")
        return
    with own_service() as (own_url, _):
        yield own_url


def add_commands(add: Add) -> None:
    command = add("classify", classify, "classify image files, or a stage's files into a table")
    command.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="images, or folders of them")
    command.add_argument("--url", help=f"the service (default {DEFAULT_URL}; with --stage, one of its own)")
    command.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds the key of a service that wants one"
    )
    command.add_argument("--json", action="store_true", dest="as_json", help="one outcome a line")
    command.add_argument("--stage", help="db.schema.stage, whose files are to be classified into --out")
    command.add_argument("--out", metavar="TABLE", help="made if it is not there; what it has is left out")
    command.add_argument(
        "--shard",
        type=_parse_shard,
        metavar="I/N",
        help="one of N parts of the files, from 0 (default: the job's own in Snowpark, else all)",
    )
    command.add_argument(
        "--batch-rows", type=_parse_rows, default=BATCH_ROWS, help="files a request (default %(default)s)"
    )
    add_connection(command)


def _parse_rows(text: str) -> int:
    return parse_integer(text, 1, 4096)


def _parse_shard(text: str) -> Shard:
    """Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N, with I from 0 to N - 1. Received: {text}")
    return Shard(int(match[1]), int(match[2]))


def _shard_of_job() -> Shard:
    """Source: Snowflake documentation, EXECUTE JOB SERVICE: the variables that tell replicas apart."""
    index, count = os.environ.get("SNOWFLAKE_JOB_INDEX", "0"), os.environ.get("SNOWFLAKE_JOBS_COUNT", "1")
    try:
        return _parse_shard(f"{index}/{count}")
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"SNOWFLAKE_JOB_INDEX/SNOWFLAKE_JOBS_COUNT {error}") from None
