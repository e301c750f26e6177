"""register, unregister and upload against a Snowflake that is emulated, and sql as a process of its own."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from app.client import is_ready
from app.own_service import own_service
from app.snowflake.console import Console, connect
from app.snowflake.local.server import LocalServer
from model.defaults import DEFAULT_MODEL_PATH
from tests.conftest import SAMPLES
from tests.running import CLI, free_port, running_service

ROLE_ARN = "arn:aws:iam::123456789012:role/gateway"
LABELS = "SELECT relative_path, ext_classify(file_url):label::string AS label FROM DIRECTORY(@images)"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture(scope="module")
def service(server: LocalServer) -> Iterator[str]:
    with own_service(environment=server.service_environment) as (url, _):
        yield url


@pytest.fixture
def console(server: LocalServer) -> Iterator[Console]:
    with connect(**server.connect_arguments) as opened:
        yield opened


class Commands:
    """Runs commands against the emulation, and keeps what they printed."""

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

    def register(self, *arguments: str) -> str:
        url = ["--url", f"{self.url}/classify", "--role-arn", ROLE_ARN]
        return self.run("register", "--provider", "aws", *url, *arguments)


@pytest.fixture
def commands(server: LocalServer, service: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Commands]:
    """From a clean slate, and leaving none of it."""
    running = Commands(server.port, service, capsys)
    yield running
    catalog = server.local.catalog
    for things in (catalog.functions, catalog.integrations, catalog.grants, catalog.stages):
        things.clear()


def words(printed: str) -> set[str]:
    """What became of things, as `register` says in the first word of a line."""
    return set(re.findall(r"^(created|unchanged|altered|replaced|granted)\b", printed, re.MULTILINE))


def test_registering_again_changes_nothing(commands: Commands) -> None:
    roles = ["--caller-role", "analyst", "--service-role", "classifier", "--warehouse", "small"]
    assert words(commands.register(*roles)) == {"created", "granted"}
    assert words(commands.register(*roles)) == {"unchanged"}


def test_policies_hold_what_snowflake_said_and_stay_the_same(commands: Commands, console: Console) -> None:
    first = commands.register()
    [row] = [
        r for r in console.rows("DESC INTEGRATION ext_classify_api") if r["property"] == "API_AWS_EXTERNAL_ID"
    ]
    assert f'"sts:ExternalId": "{row["property_value"]}"' in first
    assert '"AWS": "arn:aws:sts::123456789012:assumed-role/gateway/snowflake"' in first
    assert f'"sts:ExternalId": "{row["property_value"]}"' in commands.register("--max-batch-rows", "7")


def test_what_differs_is_brought_up_to_date_and_grants_survive(
    commands: Commands, console: Console, service: str
) -> None:
    commands.register()
    console.rows('GRANT USAGE ON FUNCTION ext_classify(VARCHAR) TO ROLE "Some one"')
    changed = commands.register("--max-batch-rows", "7")
    assert words(changed) == {"unchanged", "replaced"}
    [rows] = [
        r["value"]
        for r in console.rows("DESC FUNCTION ext_classify(VARCHAR)")
        if r["property"] == "max_batch_rows"
    ]
    assert rows == "7"
    grants = console.rows("SHOW GRANTS ON FUNCTION ext_classify(VARCHAR)")
    assert [grant["grantee_name"] for grant in grants] == ["Some one"]
    moved = commands.register("--max-batch-rows", "7", "--allowed-prefix", f"{service}/")
    assert words(moved) == {"unchanged", "altered"}


def test_function_of_another_name_is_not_taken_for_ours(commands: Commands, console: Console) -> None:
    commands.register("--function", '"ext%classify"')
    assert "created" in words(commands.register())
    commands.run("unregister", "--function", '"ext%classify"')
    assert [row["name"] for row in console.rows("SHOW EXTERNAL FUNCTIONS")] == [
        "EXT_CLASSIFY",
        "EXT_CLASSIFY",
    ]


def test_verification_shows_a_row_of_each_kind(commands: Commands) -> None:
    commands.register()
    commands.run("upload", str(SAMPLES / "patches.png"), "--stage", "images")
    printed = commands.register("--verify")
    assert '"label": "Scratches"' in printed
    assert '"label": "Patches"' in printed
    assert '@"LOCAL"."PUBLIC"."IMAGES"/patches.png' in printed


def test_next_steps_are_told_and_work(commands: Commands, console: Console, tmp_path: Path) -> None:
    names = ["--stage", '"My images"', "--function", '"a fn("', "--integration", '"my int"']
    printed = commands.register(*names)
    shutil.copy(SAMPLES / "patches.png", tmp_path)
    [upload] = re.findall(r"^Next: ext-classify (upload .*)$", printed, re.MULTILINE)
    told = [argument.replace("photos/", str(tmp_path)) for argument in shlex.split(upload)]
    assert "--local" in told
    assert main(told) == 0
    [select] = re.findall(
        r"^Then, in ext-classify sql --local --port \d+: (SELECT .*);$", printed, re.MULTILINE
    )
    [[path, answer]] = [list(row.values()) for row in console.rows(select)]
    assert (path, answer["label"]) == ("patches.png", "Patches")
    again = commands.register(*names, "--verify")
    assert words(again) == {"unchanged"}
    assert '"label": "Patches"' in again


def test_role_that_owns_the_functions_goes_on_from_the_integration(commands: Commands) -> None:
    printed = commands.register("--owner-role", "builder")
    assert "Next, as role builder: ext-classify register --provider aws --no-integration …" in printed
    assert "FUNCTION" not in printed
    name = ["--integration", "ext_classify_api", "--url", f"{commands.url}/classify"]
    assert words(commands.run("register", "--provider", "aws", "--no-integration", *name)) == {"created"}
    url = ["--url", f"{commands.url}/classify", "--role-arn", ROLE_ARN]
    refused = commands.fail("register", "--provider", "aws", *url, "--owner-role", "builder", "--verify")
    assert "--owner-role leaves to that role --verify." in refused


def test_verification_fails_with_the_reason(commands: Commands, service: str, tmp_path: Path) -> None:
    sample = tmp_path / "a.png"
    sample.write_bytes(b"no image")
    url = ["--url", f"{service}/classify", "--role-arn", ROLE_ARN]
    message = commands.fail("register", "--provider", "aws", *url, "--verify", "--sample", str(sample))
    assert "An image must be BMP, PNG, JPEG, TIFF or WebP" in message


def test_unregistering_leaves_the_images_and_the_integration(commands: Commands, console: Console) -> None:
    commands.register()
    commands.run("upload", str(SAMPLES), "--stage", "images")
    assert commands.run("unregister").count("successfully dropped") == 2
    assert [row["name"] for row in console.rows("SHOW INTEGRATIONS")] == ["EXT_CLASSIFY_API"]
    assert commands.run("unregister", "--drop-integration").count("successfully dropped") == 1
    assert commands.run("unregister", "--drop-integration").count("it was not there") == 3
    assert console.rows("SHOW INTEGRATIONS") == []
    assert len(console.rows("LIST @images")) == 6


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
            ["--url", "https://a.example.com/x", "--tenant-id", "t", "--application-id", "a"],
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
def test_dry_run_prints_the_sql_and_connects_to_nothing(
    capsys: pytest.CaptureFixture[str], provider: str, flags: list[str], shown: str
) -> None:
    assert main(["register", "--dry-run", "--provider", provider, "--database", "mill", *flags]) == 0
    printed = capsys.readouterr().out
    assert shown in printed
    assert 'CREATE STAGE IF NOT EXISTS "IMAGES"' in printed
    assert [line for line in printed.splitlines() if line != line.rstrip()] == []
    assert "SET\n" not in printed  # it would take prefixes away where there is an integration already
    assert "OR REPLACE API INTEGRATION" not in printed
    assert "<%" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["register", "--dry-run", "--provider", "spcs", "--database", "d; DROP", "--service", "s"],
            "--database is not as it must be",
        ),
        (["unregister", "--schema", "'"], "The variable schema"),
        (["upload", "/nowhere.png", "--stage", "images"], "There is no /nowhere.png"),
        (["upload", str(SAMPLES), "--stage", "a b"], "A name must be Snowflake identifiers"),
        (["upload", "README.md", "--stage", "images"], "An image's name must end in one of"),
        (["register", "--provider", "spcs", "--service", "d.s.x"], "Local SQL has no service functions"),
        (["upload", str(SAMPLES), "--stage", "nowhere"], 'There is no stage "NOWHERE"'),
    ],
)
def test_mistake_is_named(commands: Commands, arguments: list[str], message: str) -> None:
    assert message in commands.fail(*arguments)


def test_unreachable_snowflake_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unregister", "--local", "--port", "1"]) == 1
    message = capsys.readouterr().err
    assert "There is no connection to Snowflake" in message
    assert "Start one: ext-classify sql --serve --port 1." in message
    assert "connections.toml" not in message


def test_folders_keep_their_places_and_odd_names_arrive(
    commands: Commands, console: Console, tmp_path: Path
) -> None:
    names = ["a.png", "b [1]*.png", "ü ß.png", "100%25.png"]
    for folder in ("2026/07", "2026/08"):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(SAMPLES / "rolled.png", tmp_path / folder / name)
    commands.register()
    assert commands.run("upload", str(tmp_path), "--stage", "images", "--folder", "line 1") == "8 uploaded\n"
    files = console.rows("SELECT relative_path FROM DIRECTORY(@images) ORDER BY 1")
    expected = sorted(f"line 1/{folder}/{name}" for folder in ("2026/07", "2026/08") for name in names)
    assert [file["relative_path"] for file in files] == expected
    answers = console.rows("SELECT ext_classify(file_url):label::string AS label FROM DIRECTORY(@images)")
    assert {answer["label"] for answer in answers} == {"Rolled"}


def test_programs_are_told_in_json(commands: Commands) -> None:
    commands.run("unregister", "--json")
    lines = list(map(json.loads, commands.register("--json").splitlines()))
    assert any("STAGE" in line["done"] for line in lines)
    uploaded = commands.run("upload", str(SAMPLES), "--stage", "images", "--folder", "told", "--json")
    assert json.loads(uploaded) == {"uploaded": 6}
    *_, sample, staged = map(json.loads, commands.register("--json", "--verify").splitlines())
    assert sample["answer"]["label"] == "Scratches"
    assert staged["verified"].startswith("@")
    dropped = commands.run("unregister", "--json")
    assert all("done" in json.loads(line) for line in dropped.splitlines())


def test_network_travels_with_its_card_and_twin(commands: Commands, console: Console) -> None:
    console.rows("CREATE STAGE networks ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    assert commands.run("upload", str(DEFAULT_MODEL_PATH), "--stage", "networks") == "4 uploaded\n"
    sizes = {row["name"].partition("/")[2]: row["size"] for row in console.rows("LIST @networks")}
    assert sizes[DEFAULT_MODEL_PATH.name] == DEFAULT_MODEL_PATH.stat().st_size
    assert set(sizes) == {f"steel_defects{suffix}" for suffix in (".h5", ".json", ".tflite", ".tflite.json")}


def test_upload_warns_of_a_stage_that_clients_encrypt(
    commands: Commands, console: Console, capsys: pytest.CaptureFixture[str], server: LocalServer
) -> None:
    console.rows("CREATE STAGE sealed")
    local = ["--local", "--port", str(server.port)]
    assert main(["upload", str(SAMPLES / "rolled.png"), "--stage", "sealed", *local]) == 0
    assert "encrypted by its clients" in capsys.readouterr().err


def test_upload_says_what_it_left_alone(
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
    assert "1 skipped: files of these names are there already" in printed.err
    assert "--overwrite replaces them" in printed.err
    overwritten = commands.run("upload", str(tmp_path), "--stage", "images", "--overwrite")
    assert overwritten == "1 unchanged, 1 uploaded\n"


def test_upload_counts_what_arrived_and_fails_for_the_rest(
    commands: Commands, console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SAMPLES / "rolled.png", tmp_path)
    (tmp_path / "unreadable.png").symlink_to("/proc/self/mem")  # it opens, and cannot be read
    commands.register()
    local = ["--local", "--port", commands.port]
    assert main(["upload", str(tmp_path), "--stage", "images", *local]) == 1
    printed = capsys.readouterr()
    assert printed.out == "1 failed, 1 uploaded\n"
    assert "1 of 2 files were not uploaded. unreadable.png: " in printed.err
    assert len(console.rows("SELECT * FROM DIRECTORY(@images)")) == 1


def test_two_files_of_one_place_are_refused(commands: Commands, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "rolled.png", tmp_path)
    commands.register()
    twice = commands.fail("upload", str(tmp_path), str(SAMPLES), "--stage", "images")
    assert "Two files must not go to one place. Received twice: rolled.png" in twice


def sql(*arguments: str, typed: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*CLI, "sql", *arguments], input=typed, capture_output=True, text=True, check=False, timeout=120
    )


def test_statement_is_answered_with_a_table() -> None:
    finished = sql(f"{LABELS} ORDER BY relative_path")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["RELATIVE_PATH", "LABEL"]
    assert [line.split()[1] for line in lines[2:]] == [
        "Crazing", "Inclusion", "Patches", "Pitted", "Rolled", "Scratches",
    ]  # fmt: skip
    assert "6 rows to the service in 1 batch" in finished.stderr


def test_answer_is_json_on_request(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "pitted.png", tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    asked = "SELECT relative_path AS path, ext_classify(file_url, {'evidence': true}) AS answer"
    finished = sql("--json", "--images", str(tmp_path), f"{asked} FROM DIRECTORY(@images) ORDER BY 1")
    broken, pitted = map(json.loads, finished.stdout.splitlines())
    assert broken["PATH"] == "broken.png"
    assert broken["ANSWER"]["error"]["code"] == "unsupported_format"
    assert pitted["ANSWER"]["label"] == "Pitted"
    assert len(pitted["ANSWER"]["evidence"]["box"]) == 4


def test_chaos_changes_no_row(tmp_path: Path) -> None:
    for number in range(40):
        shutil.copytree(SAMPLES, tmp_path / f"{number:02}", ignore=shutil.ignore_patterns("*.md"))
    asked = ["--json", "--images", str(tmp_path), f"{LABELS} ORDER BY relative_path"]
    calm, wild = sql(*asked), sql("--chaos", "--seed", "3", *asked)
    assert wild.stdout == calm.stdout
    assert len(calm.stdout.splitlines()) == 240
    assert re.search(r"240 rows to the service in 60 batches(, \d+ (repeated|delayed|dropped))+", wild.stderr)


def test_statements_are_read_one_by_one_and_a_wrong_one_does_not_end_it() -> None:
    counting = "SELECT COUNT(*)\nAS images FROM DIRECTORY(@images);"
    finished = sql(typed=f"SELECT 1 AS one;\nSELECT nonsense(2);\n{counting}\nexit;\nSELECT 9;\n")
    assert finished.stdout.splitlines() == ["ONE", "---", "1", "IMAGES", "------", "6"]
    assert "Unknown function NONSENSE" in finished.stderr
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == "ext-classify: Statements that failed: 1."


def test_statements_that_are_read_answer_in_json_too() -> None:
    finished = sql("--json", typed="SELECT 1.50 AS price, 'a' || CHR(27) AS text;\n")
    assert finished.returncode == 0
    assert json.loads(finished.stdout) == {"PRICE": 1.5, "TEXT": "a\x1b"}


def test_escapes_in_values_do_not_reach_the_terminal() -> None:
    assert sql("SELECT 'a' || CHR(27) || '[31m' AS text").stdout.splitlines()[-1] == "a\ufffd[31m"


def test_server_takes_no_statement() -> None:
    finished = sql("--serve", "SELECT 1")
    assert finished.returncode == 1
    assert "others bring the statements" in finished.stderr


def test_proxies_and_settings_of_another_snowflake_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_STAGES", "mill.steel.images")
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_PRIVATE_KEY_FILE", "/nowhere/key.p8")
    finished = sql("--json", f"{LABELS} ORDER BY 1 LIMIT 1")
    assert json.loads(finished.stdout)["LABEL"] == "Crazing", finished.stderr


def test_wrong_statement_fails_with_one_line() -> None:
    finished = sql("SELECT nonsense(2)")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "Unknown function NONSENSE" in finished.stderr.splitlines()[-1]


def test_service_that_runs_already_is_asked() -> None:
    with running_service() as url:
        finished = sql("--url", url, "--json", f"{LABELS.replace(':label::string', '')} LIMIT 1")
    assert json.loads(finished.stdout)["LABEL"]["error"]["code"] == "snowflake_not_configured"


def test_server_is_asked_by_others_and_a_service_of_another_one_is_found_out(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "scratches.png", tmp_path / "crazing.png")
    port = free_port()
    with subprocess.Popen(
        [*CLI, "sql", "--serve", "--port", str(port)], stdout=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
        asked = f"{LABELS} ORDER BY relative_path LIMIT 1"
        try:
            here = sql("--local", "--port", str(port), "--json", asked)
            elsewhere = sql(
                "--images", str(tmp_path), "--url", url, "--json", asked.replace(":label", ":error.code")
            )
        finally:
            serving.terminate()
    assert json.loads(here.stdout)["LABEL"] == "Crazing"
    assert json.loads(elsewhere.stdout)["LABEL"] == "wrong_account"


def test_stopped_server_takes_its_service_along() -> None:
    port = free_port()
    command = [*CLI, "sql", "--serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
        assert is_ready(url)
        serving.terminate()
        assert serving.wait(20) == 0
    assert not is_ready(url)


def test_links_out_of_the_folder_are_no_images_of_it(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(SAMPLES / "rolled.png")
    finished = sql("--images", str(tmp_path), "SELECT 1")
    assert finished.returncode == 1
    assert "links that lead out of it do not count" in finished.stderr


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    finished = sql("--images", str(tmp_path), "SELECT 1")
    assert finished.returncode == 1
    assert "There are no images in" in finished.stderr
