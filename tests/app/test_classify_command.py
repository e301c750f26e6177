"""ext-classify classify, with the real service: what it finds, and the files that outcomes are kept in."""

import csv
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from app.cli import main
from app.client.conversation import DEFAULT_URL
from app.own_service import own_service
from app.snowflake.local.server import LocalServer
from tests.app.snowflake.local.remote_service import Received, RemoteService, Reply, answer
from tests.app.snowflake.local.sql import Sql
from tests.conftest import SAMPLES
from tests.running import CLI, wait_until

STAGE = "@local.public.photos"
FORMATS = ["csv", "json", "jsonl", "parquet"]
each_format = pytest.mark.parametrize("suffix", FORMATS)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture(scope="module")
def url(server: LocalServer) -> Iterator[str]:
    with own_service(environment=server.service_environment) as (url, _):
        yield url


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The samples, and one that is no image."""
    folder = tmp_path / "photos"
    shutil.copytree(SAMPLES, folder)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def read(path: Path) -> dict[str, dict[str, Any]]:
    """By the images' own names; a table's texts as they are."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    elif path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
    else:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else list(map(json.loads, text.splitlines()))
    return {Path(row["image"]).name: row for row in rows}


@each_format
def test_outcomes_are_kept_in_a_file(
    photos: Path, url: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    assert main(["classify", "--url", url, "--out", str(out), str(photos)]) == 3
    printed = capsys.readouterr()
    assert f"{out}: 7 images classified." in printed.out
    assert "1 of 7 images could not be classified" in printed.err
    kept = read(out)
    assert len(kept) == 7
    assert kept["scratches.png"]["label"] == "Scratches"
    assert 0.5 < float(kept["scratches.png"]["confidence"]) <= 1
    error = kept["broken.png"].get("error") or {"code": kept["broken.png"].get("error_code")}
    assert error["code"] == "unsupported_format"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "photos"}


@each_format
def test_only_what_is_missing_or_has_changed_is_classified(
    photos: Path, url: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    command = ["classify", "--json", "--url", url, "--out", str(out), str(photos)]
    assert main(command) == 3
    first = out.read_bytes()
    capsys.readouterr()

    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(out),
        "known": 7,
        "images": 0,
        "failed": 0,
        "labels": {},
    }
    assert out.read_bytes() == first

    shutil.copy(photos / "patches.png", photos / "new.png")
    shutil.copy(photos / "patches.png", photos / "scratches.png")
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["known"], said["images"], said["labels"]) == (6, 2, {"Patches": 2})
    kept = read(out)
    assert len(kept) == 8
    assert kept["scratches.png"]["label"] == kept["new.png"]["label"] == "Patches"
    assert kept["crazing.png"]["label"] == "Crazing"


@each_format
def test_run_that_was_killed_goes_on(photos: Path, tmp_path: Path, suffix: str) -> None:
    """Of those that were answered, none is asked for again."""
    out = tmp_path / f"out.{suffix}"
    answered = threading.Semaphore(3)

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=b'{"model": {"version": "v"}}')
        if not answered.acquire(blocking=False):
            return Reply(503)
        return answer([outcome_of("Pitted") for _ in received.rows])

    with RemoteService() as service:
        service.respond = respond
        command = ["classify", "--url", service.origin, "--out", str(out), "--batch-rows", "1", str(photos)]
        with subprocess.Popen([*CLI, *command]) as running:
            try:
                # In the order of the images: one that is refused keeps back what comes after it.
                wait_until(lambda: len(service.received) > 8)
            finally:
                running.kill()
        assert not out.exists()
        kept = len(journal_lines(out))
        with journal_of(out).open("a", encoding="utf-8") as journal:
            journal.write('{"image": "half a li')
        answered.release(100)
        service.received.clear()
        assert main(command) == 0
        assert len([received for received in service.received if received.method == "POST"]) == 7 - kept
    assert len(read(out)) == 7
    assert not journal_of(out).exists()


def outcome_of(label: str | None, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "confidence": 0.9,
        "probabilities": {"Pitted": 0.9},
        "abstained": False,
        "reason": None,
        "nearest_label": None,
        "evidence": None,
        "model": {"name": "n", "version": "v"},
        "error": None,
    } | more


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def journal_lines(out: Path) -> list[str]:
    return journal_of(out).read_text(encoding="utf-8").splitlines() if journal_of(out).exists() else []


@each_format
def test_what_failed_for_now_and_what_another_network_said_is_asked_for_again(
    photos: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    version = "v"
    error: dict[str, Any] | None = {"code": "fetch_timeout", "message": "late", "retryable": True}

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=json.dumps({"model": {"version": version}}).encode())
        late = outcome_of(None, error=error, confidence=None) if error else outcome_of("Pitted")
        model = {"name": "n", "version": version}
        return answer(
            [(outcome_of("Pitted") if row else late) | {"model": model} for row, _ in received.rows]
        )

    def classified() -> int:
        main(["classify", "--json", "--url", service.origin, "--out", str(out), str(photos)])
        return int(json.loads(capsys.readouterr().out)["images"])

    with RemoteService() as service:
        service.respond = respond
        assert classified() == 7
        assert classified() == 1
        error = None
        assert classified() == 1
        assert classified() == 0
        version = "w"
        assert classified() == 7


def test_evidence_is_kept_and_asked_for_where_it_is_missing(
    photos: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        command = ["classify", "--json", "--url", url, "--out", str(out), str(photos)]
        main(command)
        for images in (6, 0):
            capsys.readouterr()
            assert main([*command, "--evidence"]) == 0
            assert json.loads(capsys.readouterr().out)["images"] == images
        kept = read(out)["patches.png"]
        box = kept["evidence"]["box"] if "evidence" in kept else json.loads(kept["box"])
        assert len(box) == 4


def test_table_has_one_column_a_key(photos: Path, url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    main(["classify", "--url", url, "--out", str(out), str(photos)])
    schema = pyarrow.parquet.read_schema(out)
    assert {name: str(schema.field(name).type) for name in ("confidence", "abstained", "label")} == {
        "confidence": "double",
        "abstained": "bool",
        "label": "string",
    }
    row = read(out)["patches.png"]
    assert json.loads(row["probabilities"])["Patches"] == row["confidence"]
    assert row["error_code"] is row["reason"] is None


@each_format
def test_file_of_something_else_is_not_overwritten(
    photos: Path, url: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    out.write_text("name;wage\nMiller;1\n", encoding="utf-8")
    assert main(["classify", "--url", url, "--out", str(out), str(photos)]) == 1
    assert f"{out} holds something else than outcomes" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8").startswith("name;wage")


def test_file_that_cannot_be_read_costs_no_other(
    photos: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "aaa.png").symlink_to(photos / "gone.png")
    assert main(["classify", "--json", "--url", url, str(photos / "*.png")]) == 3
    outcomes = {Path(one["image"]).name: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert next(iter(outcomes)) == "aaa.png"
    assert outcomes["aaa.png"]["error"] == {
        "code": "unreadable_file",
        "message": "The file cannot be read: No such file or directory.",
        "retryable": True,
    }
    assert outcomes["scratches.png"]["label"] == "Scratches"


def test_pattern_is_looked_up_where_the_shell_has_not(
    photos: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "--json", "--url", url, str(photos / "**" / "p*.png")]) == 0
    names = [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["patches.png", "pitted.png"]
    assert main(["classify", "--url", url, str(photos / "x*.png")]) == 1
    assert f"There is no {photos}/x*.png" in capsys.readouterr().err


def test_name_that_is_no_text_is_kept(photos: Path, url: str, tmp_path: Path) -> None:
    shutil.copy(photos / "pitted.png", os.fsencode(photos) + b"/caf\xe9.png")
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        assert main(["classify", "--url", url, "--out", str(out), str(photos / "caf*")]) == 0
        assert list(read(out)) == ["caf\\xe9.png"]


@pytest.fixture
def stage_arguments(server: LocalServer, url: str, photos: Path) -> list[str]:
    """What it takes to classify a stage, which is there: the last is its name."""
    with Sql(server) as sql:
        sql.rows(f"CREATE OR REPLACE STAGE {STAGE[1:]} DIRECTORY = (ENABLE = TRUE)")
        sql.rows(f"PUT 'file://{photos}/p*.png' {STAGE}/july AUTO_COMPRESS=FALSE")
        sql.rows(f"PUT 'file://{photos}/s*.png' {STAGE} AUTO_COMPRESS=FALSE")
        sql.rows(f"ALTER STAGE {STAGE[1:]} REFRESH")
    return ["--url", url, "--local", "--port", str(server.port), STAGE]


@pytest.mark.parametrize(
    ("path", "labels"),
    [
        ("", ["Patches", "Pitted", "Scratches"]),
        ("/", ["Patches", "Pitted", "Scratches"]),
        ("/july", ["Patches", "Pitted"]),
        ("/july/pi*", ["Pitted"]),
        ("/july/pitted.png", ["Pitted"]),
    ],
)
def test_stage_is_read_by_the_service(
    stage_arguments: list[str], path: str, labels: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    *flags, stage = stage_arguments
    assert main(["classify", "--json", *flags, stage + path]) == 0
    outcomes = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [one["label"] for one in outcomes] == labels
    assert all(one["image"].startswith("@") for one in outcomes)


def test_stage_without_images_and_name_that_is_none_are_said_to_be_so(
    stage_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    *flags, stage = stage_arguments
    assert main(["classify", *flags, f"{stage}/august"]) == 1
    assert f"There are no images in {stage}/august; ALTER STAGE" in capsys.readouterr().err
    assert main(["classify", *flags, "@a b/c"]) == 1
    assert "A stage path must be @stage/path" in capsys.readouterr().err


def test_staged_files_outcomes_are_kept_by_their_etag(
    server: LocalServer, stage_arguments: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "out.csv"
    command = ["classify", "--json", "--out", str(out), *stage_arguments]
    assert main(command) == 0
    with Sql(server) as sql:
        shutil.copy(photos / "patches.png", photos / "scratches.png")
        sql.rows(f"PUT 'file://{photos}/s*.png' {STAGE} AUTO_COMPRESS=FALSE OVERWRITE=TRUE")
        sql.rows(f"ALTER STAGE {STAGE[1:]} REFRESH")
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"Patches": 1}


def test_service_of_its_own_answers_where_there_is_none(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.classify_command.DEFAULT_URL", "http://127.0.0.1:1")
    assert DEFAULT_URL != "http://127.0.0.1:1"
    assert main(["classify", str(photos / "pitted.png")]) == 0
    printed = capsys.readouterr()
    assert "1 Pitted" in printed.out
    assert "No service answers on http://127.0.0.1:1: one of our own does" in printed.err
