"""Snowpark Container Services' files against our own settings, command line and README, and the reference."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlfluff.core import FluffConfig, Linter

from app.cli.main import parse_arguments
from app.settings import Settings

FOLDER = Path(__file__).parents[2] / "infra" / "spcs"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SQL = sorted(FOLDER.glob("*.sql"))
VARIABLE = re.compile(r"<%\s*(\w+)\s*%>")
# Of SIGTERM, before SIGKILL. Source: Snowflake documentation, "Working with services".
GRACE_SECONDS = 30
CALL_SECONDS = 30

# The order of clauses in the syntax of Snowflake's reference.
REFERENCE = {
    "CREATE COMPUTE POOL": [
        "MIN_NODES",
        "MAX_NODES",
        "INSTANCE_FAMILY",
        "AUTO_RESUME",
        "AUTO_SUSPEND_SECS",
        "COMMENT",
    ],
    "CREATE OR REPLACE NETWORK RULE": ["MODE", "TYPE", "VALUE_LIST"],
    "CREATE EXTERNAL ACCESS INTEGRATION": ["ALLOWED_NETWORK_RULES", "ENABLED"],
    "CREATE SERVICE": [
        "IN COMPUTE POOL",
        "FROM",
        "SPECIFICATION_TEMPLATE_FILE",
        "USING",
        "AUTO_SUSPEND_SECS",
        "EXTERNAL_ACCESS_INTEGRATIONS",
        "AUTO_RESUME",
        "MIN_INSTANCES",
        "MAX_INSTANCES",
        "QUERY_WAREHOUSE",
        "COMMENT",
    ],
    # By its usage notes and examples: the specification comes last.
    "EXECUTE JOB SERVICE": [
        "IN COMPUTE POOL",
        "NAME",
        "ASYNC",
        "REPLICAS",
        "QUERY_WAREHOUSE",
        "COMMENT",
        "EXTERNAL_ACCESS_INTEGRATIONS",
        "FROM",
        "SPECIFICATION_TEMPLATE_FILE",
        "USING",
    ],
}


def container_of(name: str) -> dict[str, Any]:
    text = re.sub(r"\{\{ (\w+) \}\}", r'"\1"', (FOLDER / name).read_text(encoding="utf-8"))
    [container] = yaml.safe_load(text)["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def statements() -> list[str]:
    texts = [re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8")) for path in SQL]
    return [
        " ".join(statement.split()) for text in texts for statement in text.split(";") if statement.strip()
    ]


def rows_of_table(header: str) -> list[str]:
    [table] = re.findall(rf"^\| {header} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("name", ["service.yaml", "job.yaml"])
def test_variables_are_settings_that_the_service_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = container_of(name)["env"]
    given = {variable.removeprefix("EXT_CLASSIFY_").lower(): value for variable, value in variables.items()}
    assert given.keys() <= Settings.model_fields.keys()
    assert all(isinstance(value, str) for value in variables.values())
    given.pop("auth", None)  # which is for the inside of a container only
    assert Settings(**given).max_image_memory_bytes < Settings().max_image_memory_bytes


def test_service_ends_within_snowflakes_grace_and_answers_within_its_call() -> None:
    variables = container_of("service.yaml")["env"]
    assert (
        Settings().stop_delay_seconds + float(variables["EXT_CLASSIFY_STOP_GRACE_SECONDS"]) + 5
        < GRACE_SECONDS
    )
    assert variables["EXT_CLASSIFY_AUTH"] == "spcs"
    # No instance can be polled for the deferred response of another.
    assert float(variables["EXT_CLASSIFY_SYNC_DEADLINE_SECONDS"]) > CALL_SECONDS


def test_batch_of_five_seconds_is_answered_or_refused_within_a_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").touch()
    monkeypatch.setattr("app.settings.SPCS_TOKEN_FILE", tmp_path / "token")
    assert Settings().patience_seconds == 0
    monkeypatch.setenv("SNOWFLAKE_HOST", "account.snowflakecomputing.com")
    settings = Settings()
    assert 0 < settings.patience_seconds + settings.max_wait_seconds + 5 <= CALL_SECONDS


@pytest.mark.parametrize("name", ["service.yaml", "job.yaml"])
def test_memory_has_room_for_every_classifier(name: str) -> None:
    container = container_of(name)
    variables, resources = container["env"], container["resources"]
    assert resources["requests"] == resources["limits"]
    classifiers = int(variables.get("EXT_CLASSIFY_CLASSIFIERS", resources["limits"]["cpu"]))
    memory_bytes = int(resources["limits"]["memory"].removesuffix("Gi")) * 1024**3
    needed = classifiers * int(variables["EXT_CLASSIFY_MAX_IMAGE_MEMORY_BYTES"])
    assert needed + Settings().max_pending_bytes + Settings().max_answer_cache_bytes < memory_bytes


def test_endpoint_and_probe_are_the_services() -> None:
    spec = yaml.safe_load((FOLDER / "service.yaml").read_text(encoding="utf-8").replace("{{ image }}", "i"))
    [endpoint] = spec["spec"]["endpoints"]
    assert endpoint == {"name": "api", "port": Settings().port, "public": False, "protocol": "HTTP"}
    assert container_of("service.yaml")["readinessProbe"] == {"port": Settings().port, "path": "/readyz"}
    function = (FOLDER.parent / "snowflake" / "13_service_functions.sql").read_text(encoding="utf-8")
    assert f"ENDPOINT = {endpoint['name']}" in function


def test_arguments_of_the_job_are_those_of_the_command() -> None:
    options = parse_arguments(container_of("job.yaml")["args"])
    assert (options["stage"], options["out"], options["shard"]) == ("stage", "table", None)


@pytest.mark.parametrize(
    ("name", "file"), [("service.yaml", "14_service.sql"), ("job.yaml", "15_rescoring_job.sql")]
)
def test_template_is_given_what_it_asks_for(name: str, file: str) -> None:
    asked = set(re.findall(r"\{\{ (\w+) \}\}", (FOLDER / name).read_text(encoding="utf-8")))
    [using] = re.findall(r"USING \((.*)\)", (FOLDER / file).read_text(encoding="utf-8"))
    assert set(re.findall(r"(\w+) =>", using)) == asked


def test_readme_names_every_file_and_variable() -> None:
    assert rows_of_table("file") == [path.name for path in SQL]
    used = {name for path in SQL for name in VARIABLE.findall(path.read_text(encoding="utf-8"))}
    assert rows_of_table("variable") == sorted(used)


@pytest.mark.parametrize("kind", REFERENCE)
def test_clauses_stand_in_the_order_of_the_reference(kind: str) -> None:
    found = [statement for statement in statements() if statement.startswith(kind)]
    assert found
    for statement in found:
        places = [statement.find(f" {clause} ", len(kind)) for clause in REFERENCE[kind]]
        assert places == sorted(places)
        assert min(places) > 0


@pytest.mark.slow
def test_sqlfluff_finds_nothing_to_mend() -> None:
    linter = Linter(config=FluffConfig.from_path(str(FOLDER)))
    found = linter.lint_paths((str(FOLDER),))
    assert len(found.get_violations()) == 0, found.as_records()
