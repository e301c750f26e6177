"""ext-classify classify: classify images and show their outcomes, or write them to a file or a table.

Both ways classify their sources with the same client: PATHs, whose outcomes go to the terminal or to a file,
and a shard of the files of a stage, whose outcomes go to a table.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from itertools import tee
from pathlib import Path

from app.cli.answers_table import AnswersTable, Shard, store_outcomes
from app.cli.command_line import Add, add_json, fail_when_stopped, integer, read_api_key
from app.cli.result_file import ResultFile
from app.cli.service_process import (
    INTERACTIVE_PATIENCE_SECONDS,
    add_model,
    find_service,
    named_or_own_service,
)
from app.cli.sql import add_connection, local_service, open_session
from app.cli.terminal import OutcomeLines, Screen, Tally, open_screen
from app.client import BATCH_ROWS, DEFAULT_URL, Client, ClientError, Image
from app.errors import CommandError, Incomplete, UsageError
from app.images.files import describe_skipped, find_images, is_named_as_image
from app.names import directory_of, parse_full_location, quote_identifier
from app.outcome import Outcome, failed_outcome
from app.provisioning.user_session import UserSession

# Error code for a local file that cannot be read; the client sends no request for it.
UNREADABLE_FILE = "unreadable_file"
# Keep the service busy while the table stores outcomes.
STAGE_CONCURRENT_BATCHES = 8
_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class ImageSource:
    """An image to classify. `name` identifies it in the results; staged files have no `path`."""

    name: str
    path: Path | None = None
    etag: str | None = None

    def read(self) -> bytes | str:
        """Return the bytes of a local file, or the staged path that the service reads. Raises OSError."""
        return self.name if self.path is None else self.path.read_bytes()

    def content(self) -> str | None:
        """Return the SHA-256 of a local file, or the etag of a staged file. Raises OSError."""
        return self.etag if self.path is None else content_of(self.path.read_bytes())


def content_of(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def classify(
    paths: list[str],
    url: str | None,
    model: Path | None,
    api_key_file: Path | None,
    as_json: bool,
    evidence: bool,
    stage: str | None,
    out: str | None,
    shard: Shard | None,
    batch_rows: int,
    connection: str | None,
    local: bool,
    port: int,
) -> None:
    """Raises Incomplete if any image failed."""

    def open_user_session() -> UserSession:
        return open_session(connection, local, port)

    fail_when_stopped()
    api_key = read_api_key(api_key_file)
    # The emulator's service alone can read its stages.
    is_emulated = local and url is None and model is None
    if stage is None:
        if not paths or shard:
            raise UsageError("classify needs PATHs, or --stage and --out, which also allow --shard.")
        sources = find_sources(paths, open_user_session)
        if is_emulated and any(path.startswith("@") for path in paths):
            url = local_service(port)
        if skipped := describe_skipped([Path(path) for path in paths if not path.startswith("@")]):
            print(skipped, file=sys.stderr)
        patience = INTERACTIVE_PATIENCE_SECONDS
        with (
            ResultFile(Path(out)) if out else nullcontext() as results,
            named_or_own_service(
                find_service(url, api_key, model), api_key, patience_seconds=patience, model=model
            ) as client,
        ):
            _classify_images(sources, client, results, batch_rows, as_json=as_json, evidence=evidence)
        return
    if paths or out is None or evidence:
        raise UsageError("--stage needs --out TABLE, and allows neither PATHs nor --evidence.")
    if is_emulated:
        url = local_service(port)
    part = shard or _shard_of_job()
    with open_user_session() as user_session, named_or_own_service(url, api_key, model=model) as client:
        _classify_stage(AnswersTable(user_session, stage, out), part, client, batch_rows, as_json=as_json)


def add_commands(add: Add) -> None:
    summary = "classify images, or write the outcomes of a stage's files to a table"
    command = add("classify", classify, summary)
    flag = command.add_argument
    path = "images, folders, patterns, or @db.schema.stage/… paths that the service reads"
    flag("paths", nargs="*", metavar="PATH", help=path)
    out = "write outcomes to a .csv, .json, .jsonl or .parquet file, or with --stage to a table"
    known = "skip images that already have an outcome there"
    flag("--out", metavar="FILE|TABLE", help=f"{out}; {known}")
    evidence = "include where in the image the label was seen, in --json and --out"
    flag("--evidence", action="store_true", help=evidence)
    flag("--url", help=f"URL of the service (default {DEFAULT_URL}; starts a service if none runs there)")
    add_model(command)
    key = "file with the API key, if the service requires one"
    flag("--api-key-file", type=Path, metavar="FILE", help=key)
    add_json(command, "print one JSON object per image")
    flag("--stage", help="db.schema.stage whose files to classify into the table --out")
    part = "part I of N of the files, counted from 0 (default: by the Snowpark job's index, or all files)"
    flag("--shard", type=_parse_shard, metavar="I/N", help=part)
    rows = "images per request (default %(default)s)"
    flag("--batch-rows", type=integer(1, 4096), default=BATCH_ROWS, help=rows)
    add_connection(command)


def _parse_shard(text: str) -> Shard:
    """Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N, with I from 0 to N - 1. Received: {text}")
    return Shard(int(match[1]), int(match[2]))


def _shard_of_job() -> Shard:
    """The shard of this replica of a Snowpark job, or the only shard outside one.

    Source: Snowflake documentation, EXECUTE JOB SERVICE, environment variables of replicas.
    """
    index, count = os.environ.get("SNOWFLAKE_JOB_INDEX", "0"), os.environ.get("SNOWFLAKE_JOBS_COUNT", "1")
    try:
        return _parse_shard(f"{index}/{count}")
    except argparse.ArgumentTypeError as error:
        raise CommandError(f"SNOWFLAKE_JOB_INDEX/SNOWFLAKE_JOBS_COUNT {error}") from None


def find_sources(names: Sequence[str], connect: Callable[[], UserSession]) -> list[ImageSource]:
    """Return local images first, then staged ones (`@stage/path`), in the order of the names.

    Opens a session only to look up stage folders and patterns. Raises ClientError.
    """
    if not all(names):  # Path("") is the current folder; an unset shell variable must not select it
        raise UsageError("A PATH must not be empty.")
    local = [Path(name) for name in names if not name.startswith("@")]
    found = [ImageSource(_printable(path), path) for path in find_images(local)] if local else []
    for name in names:
        if name.startswith("@"):
            found += _find_staged(name, connect)
    return list({source.name: source for source in found}.values())


def _printable(path: Path) -> str:
    """Return the path as text, with undecodable bytes escaped."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _find_staged(name: str, connect: Callable[[], UserSession]) -> list[ImageSource]:
    try:
        stage, path = parse_full_location(name)
    except ValueError as error:
        raise ClientError(str(error)) from None
    if is_named_as_image(path) and not _PATTERN & set(path):
        return [ImageSource(name)]
    with connect() as user_session:
        found = list(_list_stage(user_session, quote_identifier(*stage), path))
    if not found:
        raise ClientError(f"No images in {name}. Run ALTER STAGE … REFRESH to list new files.")
    return found


def _list_stage(user_session: UserSession, stage: str, path: str) -> Iterator[ImageSource]:
    rows = user_session.rows(
        f"SELECT relative_path, etag FROM {directory_of(stage)} ORDER BY relative_path"  # noqa: S608 - quoted
    )
    for row in rows:
        relative_path: str = row["relative_path"]
        if is_named_as_image(relative_path) and _matches(relative_path, path):
            yield ImageSource(f"@{stage}/{relative_path}", etag=row["etag"])


def _matches(relative_path: str, path: str) -> bool:
    if _PATTERN & set(path):
        return fnmatch.fnmatchcase(relative_path, path)
    folder = path.rstrip("/")
    return not folder or relative_path.startswith(f"{folder}/")


@dataclass(frozen=True)
class _Classified:
    source: ImageSource
    content: str | None
    outcome: Outcome


def _classify_sources(
    client: Client, sources: Iterable[ImageSource], batch_rows: int, *, evidence: bool
) -> Iterator[_Classified]:
    """Yield one outcome per source, in order; an unreadable file has an error. Raises ClientError."""
    # The outcome is known without a request if the file could not be read.
    pending: deque[tuple[ImageSource, str | None, Outcome | None]] = deque()

    def images() -> Iterator[Image]:
        for source in sources:
            try:
                image = source.read()
            except OSError as error:
                message = f"The file cannot be read: {error.strerror or type(error).__name__}."
                pending.append((source, None, failed_outcome(UNREADABLE_FILE, message, retryable=True)))
                continue
            content = content_of(image) if isinstance(image, bytes) else source.etag
            pending.append((source, content, None))
            yield image

    def unreadable_files() -> Iterator[_Classified]:
        while pending and (outcome := pending[0][2]) is not None:
            source, content, _ = pending.popleft()
            yield _Classified(source, content, outcome)

    for outcome in client.classify_all(images(), batch_rows=batch_rows, evidence=evidence):
        yield from unreadable_files()
        source, content, _ = pending.popleft()
        yield _Classified(source, content, outcome)
    yield from unreadable_files()


def _classify_images(
    sources: list[ImageSource],
    client: Client,
    results: ResultFile | None,
    batch_rows: int,
    *,
    as_json: bool,
    evidence: bool,
) -> None:
    missing = sources if results is None else _missing(sources, results, client, evidence=evidence)
    screen, tally = open_screen(as_json=as_json), Tally()
    show = _outcome_writer(screen, missing, results, as_json=as_json)
    with _explaining_interruption(results, tally), screen.progress(len(missing), "images") as advance:
        for one in _classify_sources(client, missing, batch_rows, evidence=evidence):
            tally.add(one.outcome)
            show(one)
            advance(1)
    failed = tally.failed
    if results is not None:
        results.finish()
        _print_file_summary(screen, results, len(sources) - len(missing), tally, as_json=as_json)
        failed = sum(results.has_failed(source.name) for source in sources)
    elif not as_json:
        screen.line()
        _summarise(screen, tally)
    if failed:
        raise Incomplete(f"{failed} of {len(sources)} images could not be classified.")


@contextmanager
def _explaining_interruption(results: ResultFile | None, tally: Tally) -> Iterator[None]:
    """On Ctrl-C or a client error, print how many outcomes are saved, or how to pass an API key."""
    try:
        yield
    except (KeyboardInterrupt, ClientError) as error:
        if results is not None and tally.images:
            print(
                f"{tally.images} outcomes are saved: run the same command again to continue.", file=sys.stderr
            )
        if isinstance(error, ClientError) and error.status == HTTPStatus.UNAUTHORIZED:
            raise ClientError(f"{error} Pass an API key with --api-key-file FILE.") from None
        raise


def _outcome_writer(
    screen: Screen, sources: list[ImageSource], results: ResultFile | None, *, as_json: bool
) -> Callable[[_Classified], None]:
    """Return the function that writes one outcome to the file or to stdout."""
    if results is not None:
        return lambda one: results.add(one.source.name, one.content, one.outcome)
    if as_json:
        return lambda one: print(json.dumps({"image": one.source.name, **one.outcome}, ensure_ascii=False))
    lines = OutcomeLines(screen, [source.name for source in sources])
    return lambda one: lines.show(one.source.name, one.outcome)


def _missing(
    sources: list[ImageSource], results: ResultFile, client: Client, *, evidence: bool
) -> list[ImageSource]:
    version = client.model_version()

    def is_known(source: ImageSource) -> bool:
        try:
            return source.name in results.records and results.has(
                source.name, source.content(), version, evidence=evidence
            )
        except OSError:
            return False

    return [source for source in sources if not is_known(source)]


def _print_file_summary(
    screen: Screen, results: ResultFile, known: int, tally: Tally, *, as_json: bool
) -> None:
    if as_json:
        print(json.dumps({"file": str(results.path), "known": known, **tally.as_json()}, ensure_ascii=False))
        return
    if tally.images:
        _summarise(screen, tally)
    already = f"; {known} already had an outcome" if known else ""
    screen.line(f"{results.path}: {tally.images} images classified{already}.")


def _summarise(screen: Screen, tally: Tally) -> None:
    screen.summary(str(tally), ["label", "images", "", "mean confidence"], list(tally.rows()))
    if tally.models:
        screen.line(f"Answered by {', '.join(tally.models)}")


def _classify_stage(
    table: AnswersTable, part: Shard, client: Client, batch_rows: int, *, as_json: bool
) -> None:
    table.create()
    model = client.model()
    if model is None:
        raise ClientError(
            "The service must report its model version in /readyz, because the table stores it."
        )
    files, sent = tee(table.missing(part, model["version"]))
    outcomes = client.classify_all(
        (file.file_url for file in sent), batch_rows=batch_rows, concurrent_batches=STAGE_CONCURRENT_BATCHES
    )
    progress = store_outcomes(table, zip(files, outcomes, strict=True))
    if as_json:
        counts = {"stored": progress.stored, "failed": progress.failed, "failure": progress.failure or None}
        summary = {"shard": part.index, "shards": part.count, **counts, "model": model}
        print(json.dumps(summary, ensure_ascii=False))
    else:
        known = "" if progress.stored or progress.failed else "; all already have an outcome from this model"
        print(f"Shard {part.index} of {part.count}: {progress}{known}.")
        print(f"Network: {model['name']} {model['version']}")
    if progress.failed:
        raise Incomplete(
            f"{progress.failed} files are not classified yet ({progress.failure}). "
            "Fix the cause, then run the command again."
        )
