"""ext-classify classify with the real service: sources of images, and files of outcomes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from app.api.auth import line_of, make_key
from app.cli.main import main
from app.cli.result_file import ResultFile
from app.client import ClientError
from app.emulator import LocalServer
from tests.app.emulator.remote_service import Received, RemoteService, Reply, answer
from tests.app.emulator.sql import Sql
from tests.app.workers.test_host import children
from tests.conftest import SAMPLES
from tests.running import CLI, TIMEOUT_SECONDS, running_service, usage_error, wait_until

pytestmark = pytest.mark.slow

STAGE = "@local.public.photos"
FORMATS = ["csv", "json", "jsonl", "parquet"]
each_format = pytest.mark.parametrize("suffix", FORMATS)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with the samples and one broken image."""
    folder = tmp_path / "photos"
    shutil.copytree(SAMPLES, folder)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a result file by file name. Cells of a CSV stay text."""
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
def test_outcomes_are_written_to_a_file(
    photos: Path, url: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    assert main(["classify", "--url", url, "--out", str(out), str(photos)]) == 3
    printed = capsys.readouterr()
    assert f"{out}: 7 images" in printed.out
    assert "1 of 7 images" in printed.err
    stored = read(out)
    assert len(stored) == 7
    assert stored["scratches.png"]["label"] == "Scratches"
    assert 0.5 < float(stored["scratches.png"]["confidence"]) <= 1
    error = stored["broken.png"].get("error") or {"code": stored["broken.png"].get("error_code")}
    assert error["code"] == "unsupported_format"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "photos"}


@each_format
def test_second_run_classifies_only_new_and_changed_images(
    photos: Path, url: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    command = ["classify", "--json", "--url", url, "--out", str(out), str(photos)]
    assert main(command) == 3
    first = out.read_bytes()
    capsys.readouterr()

    assert main(command) == 3  # broken.png still fails
    assert json.loads(capsys.readouterr().out) == {
        "file": str(out),
        "known": 7,
        "images": 0,
        "failed": 0,
        "labels": {},
        "models": [],
    }
    assert out.read_bytes() == first

    shutil.copy(photos / "patches.png", photos / "new.png")
    shutil.copy(photos / "patches.png", photos / "scratches.png")
    assert main(command) == 3
    summary = json.loads(capsys.readouterr().out)
    assert (summary["known"], summary["images"], summary["labels"]) == (6, 2, {"Patches": 2})
    stored = read(out)
    assert len(stored) == 8
    assert stored["scratches.png"]["label"] == stored["new.png"]["label"] == "Patches"
    assert stored["crazing.png"]["label"] == "Crazing"


@each_format
def test_run_after_a_kill_continues_from_the_journal(photos: Path, tmp_path: Path, suffix: str) -> None:
    """The second run requests no image that already has an outcome."""
    out = tmp_path / f"out.{suffix}"
    answered = threading.Semaphore(3)

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=b'{"model": {"name": "n", "version": "v"}}')
        if not answered.acquire(blocking=False):
            return Reply(503)
        return answer([outcome_of("Pitted") for _ in received.rows])

    with RemoteService() as service:
        service.respond = respond
        command = ["classify", "--url", service.origin, "--out", str(out), "--batch-rows", "1", str(photos)]
        with subprocess.Popen([*CLI, *command]) as running:
            try:
                # Outcomes are stored in the order of the images, so a 503 holds back those after it.
                wait_until(lambda: len(service.received) > 8)
            finally:
                running.kill()
        assert not out.exists()
        stored = len(journal_lines(out))
        with journal_of(out).open("ab") as journal:
            journal.write(b'5\n{"image": 5}\n{"image": "half a l\xc3')
        answered.release(100)
        service.received.clear()
        assert main(command) == 0
        assert len([received for received in service.received if received.method == "POST"]) == 7 - stored
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
        "nearest_confidence": None,
        "evidence": None,
        "model": {"name": "n", "version": "v"},
        "error": None,
    } | more


def journal_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def journal_lines(out: Path) -> list[str]:
    return journal_of(out).read_text(encoding="utf-8").splitlines() if journal_of(out).exists() else []


@each_format
def test_retryable_errors_and_outcomes_of_another_model_are_classified_again(
    photos: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    version = "v"
    error: dict[str, Any] | None = {"code": "fetch_timeout", "message": "late", "retryable": True}

    def respond(received: Received) -> Reply:
        if received.method == "GET":
            return Reply(body=json.dumps({"model": {"name": "n", "version": version}}).encode())
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


def test_evidence_is_stored_and_requested_if_missing(
    photos: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        command = ["classify", "--json", "--url", url, "--out", str(out), str(photos)]
        main(command)
        for images in (6, 0):
            capsys.readouterr()
            assert main([*command, "--evidence"]) == 3
            assert json.loads(capsys.readouterr().out)["images"] == images
        row = read(out)["patches.png"]
        box = row["evidence"]["box"] if "evidence" in row else json.loads(row["box"])
        assert len(box) == 4


def test_table_has_one_column_per_key(photos: Path, url: str, tmp_path: Path) -> None:
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


OTHER_CONTENT = {
    "csv": ["name;wage\nMiller;1\n", "image,label\na.png,Pitted\n"],
    "json": ["{}", "[5]", '[{"image": "a.png"}]', '{"image": "a.png"}', "no json"],
    "jsonl": ["5\n", '{"image": "a.png", "label": "Pitted"}\n', "name;wage\n"],
    "parquet": ["name;wage\n"],
}


@pytest.mark.parametrize(
    ("suffix", "content"), [(suffix, text) for suffix, texts in OTHER_CONTENT.items() for text in texts]
)
def test_file_without_outcomes_is_not_overwritten(
    tmp_path: Path, suffix: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    out.write_text(content, encoding="utf-8")
    assert main(["classify", "--url", "http://127.0.0.1:1", "--out", str(out), str(SAMPLES)]) == 1
    assert f"Received: {out}" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == content
    assert not journal_of(out).exists()


def test_csv_with_unknown_columns_is_not_overwritten(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    command = ["classify", "--url", url, "--out", str(out), str(SAMPLES)]
    assert main(command) == 0
    lines = out.read_text(encoding="utf-8").splitlines()
    out.write_text("\n".join([f"{lines[0]},note", *(f"{line},mine" for line in lines[1:])]), encoding="utf-8")
    assert main(command) == 1
    assert f"Received: {out}" in capsys.readouterr().err


@each_format
def test_result_file_is_locked_by_one_run(tmp_path: Path, suffix: str, url: str) -> None:
    out = tmp_path / f"out.{suffix}"
    with ResultFile(out) as locked:
        other = ResultFile(out)
        with pytest.raises(ClientError, match="Another run"):
            other.__enter__()
    assert locked.records == {}
    assert not journal_of(out).exists()
    assert main(["classify", "--url", url, "--out", str(out), str(SAMPLES)]) == 0


@pytest.mark.parametrize(
    "name",
    [
        "a\u2028b.png",
        "a\u0085b.png",
        "a\nb.png",
        'a"b,c.png',
        "=1+1.png",
        "'=a.png",
        "''@a.png",
        "'a.png",
        "-a.png",
    ],
)
def test_names_with_special_characters_are_found_by_the_next_run(tmp_path: Path, name: str) -> None:
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        with ResultFile(out) as results:
            results.add(name, "c", outcome_of("Pitted"))  # type: ignore[arg-type]
        with ResultFile(out) as results:
            assert results.has(name, "c", "v", evidence=False)
            results.finish()
        with ResultFile(out) as results:
            assert results.has(name, "c", "v", evidence=False)
            assert not results.has(name, "d", "v", evidence=False)


def test_spreadsheet_finds_no_formula_in_a_csv(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for name in ("=1+1.png", "+1.png", "-1.png", "@a.png", "\ta.png", "\ra.png"):
        with ResultFile(out) as results:
            results.add(name, "-c", outcome_of("=Pitted"))  # type: ignore[arg-type]
            results.finish()
    cells = [cell for row in read(out).values() for cell in row.values()]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and cell] == []
    assert len(read(out)) == 6


def test_unwritable_file_is_reported_before_any_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", "--url", "http://127.0.0.1:1", str(SAMPLES), "--out"]
    assert main([*command, str(tmp_path / "gone/a.csv")]) == 1
    assert "gone/a.csv: No such file or directory" in capsys.readouterr().err
    assert ".csv, .json, .jsonl, .parquet" in usage_error([*command, str(tmp_path / "a.txt")], capsys)


def test_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "PATH" in usage_error(["classify", "--url", "http://127.0.0.1:1", ""], capsys)


def test_invalid_key_file_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    for content in (b"mill-secret\nsecond\n", b"mill-secret-\xff\n", b"\n"):
        key.write_bytes(content)
        for command in (["classify", str(SAMPLES)], ["doctor", "--gateway", "http://127.0.0.1:1"]):
            assert main([*command, "--api-key-file", str(key)]) == 1
            printed = capsys.readouterr()
            assert f"Received: {key}" in printed.err
            assert "mill-secret" not in printed.err + printed.out


def test_401_names_the_flag_for_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line_of("mill", make_key()) + "\n", encoding="utf-8")
    with running_service(EXT_CLASSIFY_AUTH="api_key", EXT_CLASSIFY_API_KEYS_FILE=str(keys)) as url:
        assert main(["classify", "--url", url, str(SAMPLES)]) == 1
    assert "--api-key-file FILE" in capsys.readouterr().err


def test_unreadable_file_does_not_stop_the_others(
    photos: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "aaa.png").symlink_to(photos / "gone.png")
    assert main(["classify", "--json", "--url", url, str(photos / "*.png")]) == 3
    outcomes = {Path(one["image"]).name: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert next(iter(outcomes)) == "aaa.png"
    error = outcomes["aaa.png"]["error"]
    assert (error["code"], error["retryable"]) == ("unreadable_file", True)
    assert "No such file or directory" in error["message"]
    assert outcomes["scratches.png"]["label"] == "Scratches"


def test_patterns_that_the_shell_did_not_expand_are_expanded(
    photos: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "--json", "--url", url, str(photos / "**" / "p*.png")]) == 0
    names = [Path(json.loads(line)["image"]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["patches.png", "pitted.png"]
    assert main(["classify", "--url", url, str(photos / "x*.png")]) == 1
    assert f"{photos}/x*.png" in capsys.readouterr().err


def test_undecodable_file_name_is_escaped(photos: Path, url: str, tmp_path: Path) -> None:
    shutil.copy(photos / "pitted.png", os.fsencode(photos) + b"/caf\xe9.png")
    for suffix in FORMATS:
        out = tmp_path / f"out.{suffix}"
        assert main(["classify", "--url", url, "--out", str(out), str(photos / "caf*")]) == 0
        assert list(read(out)) == ["caf\\xe9.png"]


@pytest.fixture
def stage_arguments(server: LocalServer, url: str, photos: Path) -> list[str]:
    """Create a stage. Returns the arguments to classify it, with its name last."""
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


def test_stage_without_images_and_invalid_stage_path_are_reported(
    stage_arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    *flags, stage = stage_arguments
    assert main(["classify", *flags, f"{stage}/august"]) == 1
    assert f"{stage}/august" in capsys.readouterr().err
    assert main(["classify", *flags, "@a b/c"]) == 1
    assert "@a b/c" in capsys.readouterr().err
    for path in ("@photos", "@photos/july/pitted.png"):
        assert main(["classify", *flags, path]) == 1
        assert path.replace("@", "@db.schema.") in capsys.readouterr().err


def test_outcomes_of_staged_files_are_stored_by_etag(
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


def test_command_starts_a_service_if_none_runs(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.cli.service_process.DEFAULT_URL", "http://127.0.0.1:1")
    assert main(["classify", str(photos / "pitted.png")]) == 0
    printed = capsys.readouterr()
    assert "1 Pitted" in printed.out
    assert "http://127.0.0.1:1" in printed.err


PROGRAM = (
    "import sys, app.cli.service_process; app.cli.service_process.DEFAULT_URL = 'http://127.0.0.1:1'; "
    "from app.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More images than the command classifies before the test interrupts it."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(5000):
        (folder / f"{number}.png").symlink_to(SAMPLES / "scratches.png")
    return folder


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_service_that_a_command_started_ends_with_it(
    many: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    out = tmp_path / "out.csv"
    command = [sys.executable, "-c", PROGRAM, "classify", "--out", str(out), str(many)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: len(journal_lines(out)) > 100)
        [service] = children(running.pid)
        running.send_signal(signal_number)
        _, printed = running.communicate(timeout=TIMEOUT_SECONDS)
        assert running.returncode == 128 + signal_number
    assert service not in children(1)
    wait_until(lambda: not Path(f"/proc/{service}").exists())
    assert signal_number is not signal.SIGINT or "outcomes are saved" in printed


def test_command_fails_at_once_if_its_service_dies(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    command = [sys.executable, "-c", PROGRAM, "classify", "--out", str(out), str(many)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: len(journal_lines(out)) > 100)
        [service] = children(running.pid)
        os.kill(service, signal.SIGKILL)
        _, printed = running.communicate(timeout=TIMEOUT_SECONDS)  # clients retry for longer
    assert running.returncode == 1
    assert "has exited" in printed
