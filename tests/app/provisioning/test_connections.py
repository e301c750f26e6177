"""The connections of connections.toml and config.toml, with both versions of the connector."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app.cli.service_process import own_service
from app.client import ClientError
from app.emulator import LocalServer
from app.provisioning.user_session import connect_as_service
from app.settings import Settings
from tests.conftest import SAMPLES
from tests.running import PYTHONS, ROOT
from tests.snowflake_front import LOGIN, Front, failure, front

# Logs in with each name, or the default connection, and prints the errors.
PROGRAM = """
import sys
from app.client import ClientError
from app.provisioning.user_session import open_user_session
for name in sys.argv[1:] or [None]:
    try:
        with open_user_session(name) as user_session:
            user_session.rows("SELECT ?", [1])
    except ClientError as error:
        print(error)
"""
COMMANDS = """
import json, sys
from app.cli.main import main
sys.exit(any([main(arguments) for arguments in json.loads(sys.argv[1])]))
"""
NAMED_MILL = 'default_connection_name = "mill"\n'


@pytest.fixture(scope="module")
def server() -> Iterator[Front]:
    with front() as opened:
        yield opened


def connection(section: str, port: int) -> str:
    """A connection of connections.toml, or of config.toml, whose user has the section's name."""
    return (
        f'[{section}]\naccount = "local"\nuser = "{section.rpartition(".")[2]}"\npassword = "any"\n'
        f'protocol = "http"\nhost = "127.0.0.1"\nport = {port}\ndatabase = "LOCAL"\nschema = "PUBLIC"\n'
    )


def write_home(home: Path, port: int, connections: tuple[str, ...], config: str = "") -> dict[str, str]:
    """Write both files. Returns the environment in which the connector reads them."""
    for name, text in {
        "connections.toml": "".join(connection(section, port) for section in connections),
        "config.toml": config,
    }.items():
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    return {**os.environ, "SNOWFLAKE_HOME": str(home)}


def run(python: str, environment: Mapping[str, str], program: str, *arguments: str) -> str:
    """What the program prints."""
    finished = subprocess.run(
        [python, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def log_in(server: Front, python: str, environment: Mapping[str, str], *names: str) -> tuple[list[str], str]:
    """The users who log in, and the errors."""
    server.asked.clear()
    errors = run(python, environment, PROGRAM, *names)
    return [asked.body["data"]["LOGIN_NAME"] for asked in server.logins], errors


DEFAULTS = {
    "section named default": (("default", "mill"), "", {}, "default"),
    "name in config.toml": (("default", "mill"), NAMED_MILL, {}, "mill"),
    "name in the environment": (
        ("default", "mill"),
        'default_connection_name = "default"\n',
        {"SNOWFLAKE_DEFAULT_CONNECTION_NAME": "mill"},
        "mill",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("case", DEFAULTS)
def test_default_connection_logs_in(server: Front, tmp_path: Path, python: str, case: str) -> None:
    connections, config, variables, user = DEFAULTS[case]
    environment = write_home(tmp_path, server.port, connections, config)
    (tmp_path / "connections.toml").chmod(0o644)  # only a warning
    assert log_in(server, python, environment | variables) == ([user], "")


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_connections_of_config_toml_log_in(server: Front, tmp_path: Path, python: str) -> None:
    config = NAMED_MILL + connection("connections.mill", server.port)
    environment = write_home(tmp_path, server.port, (), config)
    (tmp_path / "connections.toml").unlink()
    assert log_in(server, python, environment) == (["mill"], "")


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_variables_of_a_connection_take_precedence(server: Front, tmp_path: Path, python: str) -> None:
    environment = write_home(tmp_path, server.port, ("default", "mill", "lab"))
    variables = {"SNOWFLAKE_CONNECTIONS_MILL_USER": "shift"}
    assert log_in(server, python, environment | variables, "mill", "lab") == (["shift", "lab"], "")


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_unknown_connection_is_named_with_the_known_ones(server: Front, tmp_path: Path, python: str) -> None:
    environment = write_home(tmp_path, server.port, ("mill", "lab"))
    users, errors = log_in(server, python, environment, "nowhere", "", "default")
    assert users == []
    for name, error in zip(("nowhere", "", "default"), errors.splitlines(), strict=True):
        assert f"Received: {name!r}" in error
        assert "mill" in error
        assert "lab" in error


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_unusable_file_is_named(server: Front, tmp_path: Path, python: str) -> None:
    environment = write_home(tmp_path, server.port, ("default",))
    file = tmp_path / "connections.toml"
    file.chmod(0o666)
    users, error = log_in(server, python, environment)
    assert users == []
    assert str(file) in error
    assert "writable by group or others" in error
    file.chmod(0o600)
    file.write_text("[default")
    assert str(tmp_path) in log_in(server, python, environment)[1]


@pytest.mark.slow
def test_account_in_another_form_is_refused_with_its_identifier(server: Front, tmp_path: Path) -> None:
    environment = write_home(tmp_path, server.port, ())
    (tmp_path / "connections.toml").write_text('[default]\naccount = "myorg.mill"\nuser = "x"\n')
    users, error = log_in(server, sys.executable, environment)
    assert users == []
    assert "write myorg-mill" in error


@pytest.mark.parametrize("kind", ["PROGRAMMATIC_ACCESS_TOKEN", "OAUTH"])
def test_failed_login_of_the_service_names_what_a_token_needs(kind: str) -> None:
    with front() as server:
        server.answer = lambda asked: failure(390432, "Refused.") if asked.path == LOGIN else None
        settings = Settings(
            snowflake_account="local",
            snowflake_token="any",  # noqa: S106 - the fake server refuses every login
            snowflake_token_type=kind,  # type: ignore[arg-type]
            snowflake_host="127.0.0.1",
            snowflake_port=server.port,
            snowflake_protocol="http",
        )
        with pytest.raises(ClientError) as raised:
            connect_as_service(settings)
    assert ("NETWORK_POLICY" in str(raised.value)) is (kind == "PROGRAMMATIC_ACCESS_TOKEN")


@pytest.fixture(scope="module")
def emulator() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture(scope="module")
def service(emulator: LocalServer) -> Iterator[str]:
    with own_service(environment=emulator.service_environment) as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_commands_log_in_with_the_default_connection(
    emulator: LocalServer, service: str, tmp_path: Path, python: str
) -> None:
    environment = write_home(tmp_path, emulator.port, ("default",))
    names = ["--database", "LOCAL", "--stage", "steel"]
    role = ["--role-arn", "arn:aws:iam::123456789012:role/gateway"]
    commands = [
        ["register", *names, "--provider", "aws", "--url", f"{service}/classify", *role],
        ["upload", str(SAMPLES), "--stage", "local.public.steel"],
        ["classify", "@local.public.steel", "--json", "--url", service],
        ["doctor"],
        ["unregister", *names],
    ]
    printed = run(python, environment, COMMANDS, json.dumps(commands))
    assert "6 uploaded" in printed
    assert printed.count('"label"') == 6
    assert "EXT_CLASSIFY is in LOCAL.PUBLIC" in printed
    assert "successfully dropped" in printed
    emulator.local.catalog.stages.clear()
