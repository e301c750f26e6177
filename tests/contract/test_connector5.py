"""Version 5 of Snowflake's connector, in its own environment: the service, and registration."""

import json
import os
import subprocess
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from app.cli.service_process import own_service
from app.emulator import LocalServer
from app.provisioning.user_session import UserSession, connect
from tests.conftest import SAMPLES
from tests.running import CONNECTOR_5 as PYTHON
from tests.running import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="connector 5 is not installed: make .venv-connector5/.installed"
    ),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        running.mount(SAMPLES)
        yield running


@pytest.fixture(scope="module")
def service(server: LocalServer) -> Iterator[str]:
    with own_service(environment=server.service_environment, python=PYTHON) as (url, _):
        yield url


@pytest.fixture
def user_session(server: LocalServer) -> Iterator[UserSession]:
    with connect(**server.connect_arguments) as opened:
        yield opened


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run ext-classify in the environment of connector 5."""
    return subprocess.run(
        [PYTHON, "-m", "app.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def outcome(service: str, source: str) -> dict[str, object]:
    answer = httpx.post(f"{service}/classify", json={"data": [[0, source]]}, timeout=180)
    found: dict[str, object] = answer.json()["data"][0][1]
    return found


def test_version_is_5() -> None:
    program = "import snowflake.connector as c; print(c.__version__)"
    finished = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("5.")


ASYNCHRONOUS = """
import json, sys
import snowflake.connector
with snowflake.connector.connect(**json.loads(sys.argv[1])) as connection, connection.cursor() as cursor:
    query_id = cursor.execute_async("SELECT 1 AS a, 'it''s' AS b")["queryId"]
    assert connection.get_query_status_throw_if_error(query_id).name == "SUCCESS"
    cursor.get_results_from_sfqid(query_id)
    print(cursor.fetchall(), [column.name for column in cursor.description])
"""


def test_result_of_an_asynchronous_query_is_fetched_later(server: LocalServer) -> None:
    arguments = [PYTHON, "-W", "ignore", "-c", ASYNCHRONOUS, json.dumps(server.connect_arguments)]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert finished.stderr == ""
    assert finished.stdout == "[(1, \"it's\")] ['A', 'B']\n"


def test_staged_files_are_classified(service: str, user_session: UserSession) -> None:
    [file] = user_session.rows(
        "SELECT file_url FROM DIRECTORY(@images) WHERE relative_path = 'scratches.png'"
    )
    assert outcome(service, file["file_url"])["label"] == "Scratches"
    assert outcome(service, "@local.public.images/patches.png")["label"] == "Patches"


def test_files_that_clients_encrypted_are_classified(service: str, user_session: UserSession) -> None:
    user_session.rows("CREATE OR REPLACE STAGE encrypted DIRECTORY = (ENABLE = TRUE)")
    with (SAMPLES / "pitted.png").open("rb") as image:
        user_session.put(image, "pitted.png", "@encrypted/a b", overwrite=True)
    assert outcome(service, "@local.public.encrypted/a b/pitted.png")["label"] == "Pitted"
    error = outcome(service, "@local.public.encrypted/missing.png")["error"]
    assert isinstance(error, dict)
    assert error["code"] == "file_missing"


def test_unknown_stage_is_stage_not_authorized(service: str) -> None:
    error = outcome(service, "@local.public.nowhere/a.png")["error"]
    assert isinstance(error, dict)
    assert error["code"] == "stage_not_authorized"


def test_function_is_registered_verified_and_unregistered(server: LocalServer, service: str) -> None:
    local = ["--local", "--port", str(server.port), "--stage", "steel"]
    arguments = ["register", *local, "--provider", "aws", "--url", f"{service}/classify"]
    arguments += ["--role-arn", "arn:aws:iam::123456789012:role/gateway", "--caller-role", "analyst"]
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("created ") == 4
    uploaded = command("upload", str(SAMPLES), *local, "--folder", "2026/july")
    assert uploaded.returncode == 0, uploaded.stderr
    assert uploaded.stdout == "6 uploaded\n"
    second = command(*arguments, "--verify")
    assert second.returncode == 0, second.stderr
    assert "created" not in second.stdout
    assert '"label": "Scratches"' in second.stdout
    assert "2026/july/" in second.stdout
    removed = command("unregister", *local)
    assert removed.returncode == 0, removed.stderr
    assert removed.stdout.count("successfully dropped") == 2


def test_no_warning_of_the_connector_reaches_the_terminal(server: LocalServer) -> None:
    finished = command("unregister", "--local", "--port", str(server.port))
    assert "Warning" not in finished.stderr
    assert os.linesep not in finished.stderr.strip()
