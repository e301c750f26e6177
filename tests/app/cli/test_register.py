"""register, unregister, upload and sql against an emulated Snowflake."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

from app.cli.main import main
from app.cli.service_process import own_service
from app.client import is_ready
from app.emulator import LocalServer
from app.provisioning.user_session import UserSession, connect
from model.defaults import DEFAULT_MODEL_PATH
from tests.conftest import SAMPLES
from tests.running import CLI, TIMEOUT_SECONDS, free_port, running_service, usage_error

pytestmark = pytest.mark.slow

GUID = "7b1c2d3e-0000-4000-8000-123456789abc"
ROLE_ARN = "arn:aws:iam::123456789012:role/gateway"
LABELS = "SELECT relative_path, ext_classify(file_url):label::string AS label FROM DIRECTORY(@images)"


@pytest.fixture(scope="module")
def service(server: LocalServer) -> Iterator[str]:
    with own_service(environment=server.service_environment) as (url, _):
        yield url


@pytest.fixture
def user_session(server: LocalServer) -> Iterator[UserSession]:
    with connect(**server.connect_arguments) as opened:
        yield opened


class Commands:
    """Runs commands against the emulated Snowflake and returns their output."""

    def __init__(self, port: int, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.port = str(port)
        self._local = ["--local", "--port", self.port]
        self.url = url
        self._capsys = capsys

    def run(self, *arguments: str) -> str:
        code = main([*arguments[:1], *self._local, *arguments[1:]])
        printed = self._capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def fail(self, *arguments: str) -> str:
        assert main([*arguments[:1], *self._local, *arguments[1:]]) == 1
        return self._capsys.readouterr().err

    def refuse(self, *arguments: str) -> str:
        return usage_error([*arguments[:1], *self._local, *arguments[1:]], self._capsys)

    def register(self, *arguments: str) -> str:
        url = ["--url", f"{self.url}/classify", "--role-arn", ROLE_ARN]
        return self.run("register", "--provider", "aws", *url, *arguments)


@pytest.fixture
def commands(server: LocalServer, service: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Commands]:
    """Commands on an empty account, which is emptied again after the test."""
    running = Commands(server.port, service, capsys)
    yield running
    catalog = server.local.catalog
    for things in (catalog.functions, catalog.integrations, catalog.grants, catalog.stages):
        things.clear()


def actions(printed: str) -> set[str]:
    """Return the actions that `register` printed as first words of lines."""
    return set(re.findall(r"^(created|unchanged|altered|replaced|granted)\b", printed, re.MULTILINE))


def test_registering_again_changes_nothing(commands: Commands) -> None:
    roles = ["--caller-role", "analyst", "--service-role", "classifier", "--warehouse", "small"]
    assert actions(commands.register(*roles)) == {"created", "granted"}
    assert actions(commands.register(*roles)) == {"unchanged"}


def test_service_functions_are_registered_once_and_answer(
    commands: Commands, user_session: UserSession, server: LocalServer, service: str
) -> None:
    server.run_service(("LOCAL", "PUBLIC", "CLASSIFIER"), service)
    flags = ["--provider", "spcs", "--service", "local.public.classifier"]
    assert actions(commands.run("register", *flags)) == {"created"}
    assert actions(commands.run("register", *flags, "--verify")) == {"unchanged"}
    described = user_session.rows("DESC FUNCTION ext_classify(VARCHAR, OBJECT)")
    shown = {row["property"]: row["value"] for row in described}
    assert (shown["max_batch_retries"], shown["batch_timeout_secs"]) == ("100", "3600")


def test_printed_policies_contain_the_external_id_and_do_not_change(
    commands: Commands, user_session: UserSession
) -> None:
    first = commands.register()
    [row] = [
        r
        for r in user_session.rows("DESC INTEGRATION ext_classify_api")
        if r["property"] == "API_AWS_EXTERNAL_ID"
    ]
    assert f'"sts:ExternalId": "{row["property_value"]}"' in first
    assert '"AWS": "arn:aws:sts::123456789012:assumed-role/gateway/snowflake"' in first
    assert f'"sts:ExternalId": "{row["property_value"]}"' in commands.register("--max-batch-rows", "7")


def test_register_updates_changed_objects_and_keeps_grants(
    commands: Commands, user_session: UserSession, service: str
) -> None:
    commands.register()
    user_session.rows('GRANT USAGE ON FUNCTION ext_classify(VARCHAR) TO ROLE "Some one"')
    changed = commands.register("--max-batch-rows", "7")
    assert actions(changed) == {"unchanged", "altered"}
    [rows] = [
        r["value"]
        for r in user_session.rows("DESC FUNCTION ext_classify(VARCHAR)")
        if r["property"] == "max_batch_rows"
    ]
    assert rows == "7"
    grants = user_session.rows("SHOW GRANTS ON FUNCTION ext_classify(VARCHAR)")
    assert [grant["grantee_name"] for grant in grants] == ["Some one"]
    moved = commands.register("--max-batch-rows", "7", "--allowed-prefix", f"{service}/")
    assert actions(moved) == {"unchanged", "altered"}


def test_function_with_a_similar_name_is_not_changed(commands: Commands, user_session: UserSession) -> None:
    commands.register("--function", '"ext%classify"')
    assert "created" in actions(commands.register())
    commands.run("unregister", "--function", '"ext%classify"')
    assert [row["name"] for row in user_session.rows("SHOW EXTERNAL FUNCTIONS")] == [
        "EXT_CLASSIFY",
        "EXT_CLASSIFY",
    ]


def test_verify_classifies_a_sample_and_a_staged_file(commands: Commands) -> None:
    commands.register()
    commands.run("upload", str(SAMPLES / "patches.png"), "--stage", "images")
    printed = commands.register("--verify")
    assert '"label": "Scratches"' in printed
    assert '"label": "Patches"' in printed
    assert '@"LOCAL"."PUBLIC"."IMAGES"/patches.png' in printed


def test_printed_next_steps_work(commands: Commands, user_session: UserSession, tmp_path: Path) -> None:
    names = ["--stage", '"My images"', "--function", '"a fn("', "--integration", '"my int"']
    printed = commands.register(*names)
    shutil.copy(SAMPLES / "patches.png", tmp_path)
    [upload] = re.findall(r"^Next: ext-classify (upload .*)$", printed, re.MULTILINE)
    command = [argument.replace("photos/", str(tmp_path)) for argument in shlex.split(upload)]
    assert "--local" in command
    assert main(command) == 0
    [select] = re.findall(
        r"^Then, in ext-classify sql --local --port \d+: (SELECT .*);$", printed, re.MULTILINE
    )
    [[path, answer]] = [list(row.values()) for row in user_session.rows(select)]
    assert (path, answer["label"]) == ("patches.png", "Patches")
    again = commands.register(*names, "--verify")
    assert actions(again) == {"unchanged"}
    assert '"label": "Patches"' in again


def test_owner_role_continues_after_the_integration(commands: Commands) -> None:
    printed = commands.register("--owner-role", "builder")
    assert "Next, as role builder: ext-classify register --provider aws --no-integration …" in printed
    assert 'FUNCTION "' not in printed
    name = ["--integration", "ext_classify_api", "--url", f"{commands.url}/classify"]
    assert actions(commands.run("register", "--provider", "aws", "--no-integration", *name)) == {"created"}
    url = ["--url", f"{commands.url}/classify", "--role-arn", ROLE_ARN]
    refused = commands.refuse("register", "--provider", "aws", *url, "--owner-role", "builder", "--verify")
    assert "--verify" in refused


@pytest.mark.parametrize("flags", [["--sample", "/nowhere.png", "--verify"], ["--sample", __file__]])
def test_sample_is_checked_before_anything_is_created(
    commands: Commands, user_session: UserSession, flags: list[str]
) -> None:
    url = ["--url", f"{commands.url}/classify", "--role-arn", ROLE_ARN]
    assert "--sample" in commands.refuse("register", "--provider", "aws", *url, *flags)
    assert user_session.rows("SHOW STAGES") == []


def test_stage_of_the_emulator_is_read_by_its_own_service(commands: Commands) -> None:
    """The URL that `sql --serve` registers is the only one of the integration."""
    commands.register("--integration", "ext_classify", "--allowed-prefix", f"{commands.url}/")
    commands.run("upload", str(SAMPLES / "patches.png"), "--stage", "images")
    for path in ("@local.public.images/", "@local.public.images/patches.png"):
        assert "1 Patches" in commands.run("classify", path)


@pytest.mark.parametrize("is_staged", [False, True])
def test_verify_tells_a_broken_image_from_a_broken_function(
    commands: Commands, tmp_path: Path, is_staged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "a.png"
    sample.write_bytes(b"no image")
    flags = [] if is_staged else ["--sample", str(sample)]
    if is_staged:
        commands.register()
        commands.run("upload", str(sample), "--stage", "images")
    local = ["--local", "--port", commands.port, "--provider", "aws", "--role-arn", ROLE_ARN]
    assert main(["register", *local, "--url", f"{commands.url}/classify", "--verify", *flags]) == 3
    printed = capsys.readouterr()
    assert '"label": "Scratches"' in printed.out
    assert "The function works" in printed.err
    assert "BMP, PNG, JPEG, TIFF" in printed.err


def test_verify_reports_a_function_that_fails(commands: Commands) -> None:
    url = f"http://127.0.0.1:{commands.port}/classify"
    role = ["--role-arn", ROLE_ARN, "--verify", "--force"]
    message = commands.fail("register", "--provider", "aws", "--url", url, *role)
    assert "The function works" not in message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{free}/classify", "does not answer"),
        ("https://no.such.invalid/classify", "does not answer"),
        ("https://127.0.0.1:{service}/classify", "does not answer"),
        ("http://127.0.0.1:{service}/clasify", "answered 404"),
        ("http://127.0.0.1:{service}/readyz", "answered 405"),
    ],
)
def test_url_that_takes_no_batches_is_refused_before_anything_is_created(
    commands: Commands, user_session: UserSession, url: str, reason: str
) -> None:
    url = url.format(free=free_port(), service=commands.url.rpartition(":")[2])
    flags = ["--provider", "aws", "--url", url, "--role-arn", ROLE_ARN]
    message = commands.fail("register", *flags)
    assert reason in message
    assert "--force" in message
    assert ("ext-classify serve" in message) == (url.startswith("http:") and reason == "does not answer")
    assert user_session.rows("SHOW INTEGRATIONS") == []
    assert user_session.rows("SHOW STAGES") == []
    assert "created" in actions(commands.run("register", *flags, "--force"))


def test_emulator_without_a_service_needs_a_url(commands: Commands) -> None:
    message = commands.fail("register", "--provider", "aws", "--role-arn", ROLE_ARN)
    assert "--url" in message


def test_unregister_keeps_the_images_and_the_integration(
    commands: Commands, user_session: UserSession
) -> None:
    commands.register()
    commands.run("upload", str(SAMPLES), "--stage", "images")
    assert commands.run("unregister").count("successfully dropped") == 2
    assert [row["name"] for row in user_session.rows("SHOW INTEGRATIONS")] == ["EXT_CLASSIFY_API"]
    assert commands.run("unregister", "--drop-integration").count("successfully dropped") == 1
    assert commands.run("unregister", "--drop-integration").count("already dropped") == 3
    assert user_session.rows("SHOW INTEGRATIONS") == []
    assert len(user_session.rows("LIST @images")) == 6


@pytest.mark.parametrize(
    ("provider", "flags", "shown"),
    [
        (
            "aws",
            ["--url", "https://a.example.com/x", "--role-arn", ROLE_ARN],
            "API_PROVIDER = aws_api_gateway",
        ),
        (
            "azure",
            ["--url", "https://a.example.com/x", "--tenant-id", GUID, "--application-id", GUID],
            "API_PROVIDER = azure_api_management",
        ),
        (
            "google",
            ["--url", "https://a.example.com/x", "--audience", "g"],
            "API_PROVIDER = google_api_gateway",
        ),
        ("spcs", ["--service", "mill.steel.classifier"], 'SERVICE = "MILL"."STEEL"."CLASSIFIER"'),
    ],
)
def test_dry_run_prints_the_sql_without_connecting(
    capsys: pytest.CaptureFixture[str], provider: str, flags: list[str], shown: str
) -> None:
    assert main(["register", "--dry-run", "--provider", provider, "--database", "mill", *flags]) == 0
    printed = capsys.readouterr().out
    assert shown in printed
    assert 'CREATE STAGE IF NOT EXISTS "IMAGES"' in printed
    assert [line for line in printed.splitlines() if line != line.rstrip()] == []
    assert "SET\n" not in printed  # it would remove prefixes from an existing integration
    assert "OR REPLACE API INTEGRATION" not in printed
    assert "<%" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upload", "/nowhere.png", "--stage", "images"], "/nowhere.png"),
        (["upload", str(SAMPLES), "--stage", "a b"], "a b"),
        (["upload", "README.md", "--stage", "images"], ".png"),
        (["register", "--provider", "spcs", "--service", "d.s.x"], "Service"),
        (["upload", str(SAMPLES), "--stage", "nowhere"], '"NOWHERE"'),
    ],
)
def test_invalid_argument_is_reported(commands: Commands, arguments: list[str], message: str) -> None:
    assert message in commands.fail(*arguments)


def test_invalid_name_shows_the_usage(commands: Commands) -> None:
    spcs = ["--provider", "spcs", "--database", "d; DROP", "--service", "s"]
    assert "--database" in commands.refuse("register", "--dry-run", *spcs)
    assert "--schema" in commands.refuse("unregister", "--schema", "'")


def test_unreachable_snowflake_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unregister", "--local", "--port", "1"]) == 1
    message = capsys.readouterr().err
    assert "Snowflake" in message
    assert "ext-classify sql --serve --port 1" in message
    assert "connections.toml" not in message


def test_upload_keeps_folders_and_special_characters(
    commands: Commands, user_session: UserSession, tmp_path: Path
) -> None:
    names = ["a.png", "b [1]*.png", "ü ß.png", "100%25.png"]
    for folder in ("2026/07", "2026/08"):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(SAMPLES / "rolled.png", tmp_path / folder / name)
    commands.register()
    assert commands.run("upload", str(tmp_path), "--stage", "images", "--folder", "line 1") == "8 uploaded\n"
    files = user_session.rows("SELECT relative_path FROM DIRECTORY(@images) ORDER BY 1")
    expected = sorted(f"line 1/{folder}/{name}" for folder in ("2026/07", "2026/08") for name in names)
    assert [file["relative_path"] for file in files] == expected
    answers = user_session.rows(
        "SELECT ext_classify(file_url):label::string AS label FROM DIRECTORY(@images)"
    )
    assert {answer["label"] for answer in answers} == {"Rolled"}


def test_commands_print_json(commands: Commands) -> None:
    commands.run("unregister", "--json")
    lines = list(map(json.loads, commands.register("--json").splitlines()))
    assert any("STAGE" in line["done"] for line in lines)
    uploaded = commands.run("upload", str(SAMPLES), "--stage", "images", "--folder", "json", "--json")
    assert json.loads(uploaded) == {"uploaded": 6}
    *_, sample, staged = map(json.loads, commands.register("--json", "--verify").splitlines())
    assert sample["answer"]["label"] == "Scratches"
    assert staged["verified"].startswith("@")
    dropped = commands.run("unregister", "--json")
    assert all("done" in json.loads(line) for line in dropped.splitlines())


def test_model_is_uploaded_with_its_card_and_compiled_model(
    commands: Commands, user_session: UserSession
) -> None:
    user_session.rows("CREATE STAGE networks ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    assert commands.run("upload", str(DEFAULT_MODEL_PATH), "--stage", "networks") == "4 uploaded\n"
    sizes = {row["name"].partition("/")[2]: row["size"] for row in user_session.rows("LIST @networks")}
    assert sizes[DEFAULT_MODEL_PATH.name] == DEFAULT_MODEL_PATH.stat().st_size
    assert set(sizes) == {f"steel_defects{suffix}" for suffix in (".h5", ".json", ".tflite", ".tflite.json")}


def test_upload_warns_about_client_side_encryption(
    commands: Commands, user_session: UserSession, capsys: pytest.CaptureFixture[str], server: LocalServer
) -> None:
    user_session.rows("CREATE STAGE sealed")
    local = ["--local", "--port", str(server.port)]
    assert main(["upload", str(SAMPLES / "rolled.png"), "--stage", "sealed", *local]) == 0
    assert "client-side encryption" in capsys.readouterr().err


def test_upload_reports_skipped_files(
    commands: Commands, capsys: pytest.CaptureFixture[str], server: LocalServer, tmp_path: Path
) -> None:
    shutil.copy(SAMPLES / "rolled.png", tmp_path / "a.png")
    shutil.copy(SAMPLES / "patches.png", tmp_path / "b.png")
    commands.register()
    commands.run("upload", str(tmp_path), "--stage", "images")
    shutil.copy(SAMPLES / "patches.png", tmp_path / "a.png")
    local = ["--local", "--port", str(server.port)]
    assert main(["upload", str(tmp_path), "--stage", "images", *local]) == 0
    printed = capsys.readouterr()
    assert printed.out == "1 skipped, 1 unchanged\n"
    assert "1 skipped" in printed.err
    assert "--overwrite" in printed.err
    overwritten = commands.run("upload", str(tmp_path), "--stage", "images", "--overwrite")
    assert overwritten == "1 unchanged, 1 uploaded\n"


def test_upload_counts_uploaded_files_and_fails_for_the_others(
    commands: Commands, user_session: UserSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SAMPLES / "rolled.png", tmp_path)
    (tmp_path / "unreadable.png").symlink_to("/proc/self/mem")  # can be opened, but not read
    commands.register()
    local = ["--local", "--port", commands.port]
    assert main(["upload", str(tmp_path), "--stage", "images", *local]) == 1
    printed = capsys.readouterr()
    assert printed.out == "1 failed, 1 uploaded\n"
    assert "unreadable.png: " in printed.err
    assert len(user_session.rows("SELECT * FROM DIRECTORY(@images)")) == 1


def test_upload_refuses_two_files_with_the_same_target(commands: Commands, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "rolled.png", tmp_path)
    commands.register()
    twice = commands.fail("upload", str(tmp_path), str(SAMPLES), "--stage", "images")
    assert "Received twice: rolled.png" in twice


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def sql(*arguments: str, typed: str = "") -> Finished:
    """In this process; only its service is a child."""
    stdout, stderr = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patch.setattr(sys, "stdin", StringIO(typed))
        code = main(["sql", *arguments])
    return Finished(code, stdout.getvalue(), stderr.getvalue())


def test_statement_prints_a_table() -> None:
    finished = sql(f"{LABELS} ORDER BY relative_path")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["RELATIVE_PATH", "LABEL"]
    assert [line.split()[1] for line in lines[2:]] == [
        "Crazing", "Inclusion", "Patches", "Pitted", "Rolled", "Scratches",
    ]  # fmt: skip
    assert "6 rows to the service in 1 batch" in finished.stderr


def test_statement_prints_json(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "pitted.png", tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    selected = "SELECT relative_path AS path, ext_classify(file_url, {'evidence': true}) AS answer"
    finished = sql("--json", "--images", str(tmp_path), f"{selected} FROM DIRECTORY(@images) ORDER BY 1")
    broken, pitted = map(json.loads, finished.stdout.splitlines())
    assert broken["PATH"] == "broken.png"
    assert broken["ANSWER"]["error"]["code"] == "unsupported_format"
    assert pitted["ANSWER"]["label"] == "Pitted"
    assert len(pitted["ANSWER"]["evidence"]["box"]) == 4


def test_chaos_does_not_change_the_result(tmp_path: Path) -> None:
    for number in range(20):
        shutil.copytree(SAMPLES, tmp_path / f"{number:02}", ignore=shutil.ignore_patterns("*.md"))
    arguments = ["--json", "--images", str(tmp_path), f"{LABELS} ORDER BY relative_path"]
    plain, chaotic = sql(*arguments), sql("--chaos", "--seed", "3", *arguments)
    assert chaotic.stdout == plain.stdout
    assert len(plain.stdout.splitlines()) == 120
    assert re.search(
        r"120 rows to the service in 30 batches(, \d+ (repeated|delayed|dropped))+", chaotic.stderr
    )


def test_failed_statement_does_not_end_the_shell(service: str) -> None:
    counting = "SELECT COUNT(*)\nAS images FROM DIRECTORY(@images);"
    finished = sql(
        "--url", service, typed=f"SELECT 1 AS one;\nSELECT nonsense(2);\n{counting}\nexit;\nSELECT 9;\n"
    )
    assert finished.stdout.splitlines() == ["ONE", "---", "1", "IMAGES", "------", "6"]
    assert "NONSENSE" in finished.stderr
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("ext-classify: ")


def test_service_that_cannot_read_the_stage_is_explained() -> None:
    with running_service() as url:
        finished = sql("--url", url, LABELS)
    assert "6 snowflake_not_configured" in finished.stderr
    assert "without --url" in finished.stderr


def test_shell_prints_json(service: str) -> None:
    finished = sql("--url", service, "--json", typed="SELECT 1.50 AS price, 'a' || CHR(27) AS text;\n")
    assert finished.returncode == 0
    assert json.loads(finished.stdout) == {"PRICE": 1.5, "TEXT": "a\x1b"}


def test_escape_characters_in_values_are_replaced(service: str) -> None:
    shown = sql("--url", service, "SELECT 'a' || CHR(27) || '[31m' AS text")
    assert shown.stdout.splitlines()[-1] == "a\ufffd[31m"


def test_serve_allows_no_statement(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--serve" in usage_error(["sql", "--serve", "SELECT 1"], capsys)


def test_local_sql_ignores_proxies_and_snowflake_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_STAGES", "mill.steel.images")
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_PRIVATE_KEY_FILE", "/nowhere/key.p8")
    finished = sql("--json", f"{LABELS} ORDER BY 1 LIMIT 1")
    assert json.loads(finished.stdout)["LABEL"] == "Crazing", finished.stderr


def test_failed_statement_prints_one_line(service: str) -> None:
    finished = sql("--url", service, "SELECT nonsense(2)")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "NONSENSE" in finished.stderr.splitlines()[-1]


def test_url_selects_a_running_service() -> None:
    with running_service() as url:
        finished = sql("--url", url, "--json", f"{LABELS.replace(':label::string', '')} LIMIT 1")
    assert json.loads(finished.stdout)["LABEL"]["error"]["code"] == "snowflake_not_configured"


def test_server_answers_clients_rejects_rows_of_another_account_and_stops_its_service(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "scratches.png", tmp_path / "crazing.png")
    port = free_port()
    with subprocess.Popen(
        [*CLI, "sql", "--serve", "--port", str(port)], stdout=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
        statement = f"{LABELS} ORDER BY relative_path LIMIT 1"
        try:
            same = sql("--local", "--port", str(port), "--json", statement)
            other = sql(
                "--images", str(tmp_path), "--url", url, "--json", statement.replace(":label", ":error.code")
            )
            assert is_ready(url)
        finally:
            serving.terminate()
        assert serving.wait(TIMEOUT_SECONDS) == 0
    assert json.loads(same.stdout)["LABEL"] == "Crazing"
    assert json.loads(other.stdout)["LABEL"] == "wrong_account"
    assert not is_ready(url)


def test_links_that_leave_the_folder_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(SAMPLES / "rolled.png")
    finished = sql("--images", str(tmp_path), "SELECT 1")
    assert finished.returncode == 1
    assert "links" in finished.stderr


def test_folder_without_images_is_reported(tmp_path: Path) -> None:
    finished = sql("--images", str(tmp_path), "SELECT 1")
    assert finished.returncode == 1
    assert str(tmp_path) in finished.stderr
