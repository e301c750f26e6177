"""ext-classify doctor --snowflake, with a real connector, against the emulator and a real service."""

import re
from collections.abc import Iterator

import pytest

from app.cli.main import main
from app.cli.service_process import own_service
from app.cli.snowflake_questions import QUESTIONS, ask
from app.client import ClientError
from app.emulator import LocalServer
from app.provisioning.upload import find_files, upload
from app.provisioning.user_session import UserSession, connect
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture(scope="module")
def user_session(server: LocalServer) -> Iterator[UserSession]:
    """An account with the function and an image; the service defers after a tenth of a second."""
    environment = server.service_environment | {"EXT_CLASSIFY_SYNC_DEADLINE_SECONDS": "0.1"}
    with (
        own_service(environment=environment) as (url, _),
        connect(**server.connect_arguments) as opened,
    ):
        role = "arn:aws:iam::000000000000:role/local"
        register = ["--provider", "aws", "--url", f"{url}/classify", "--role-arn", role]
        local = ["--local", "--port", str(server.port)]
        assert main(["register", "--caller-role", "analyst", *local, *register]) == 0
        upload(opened, find_files([SAMPLES / "patches.png"]), "images")
        yield opened


def answers(lines: Iterator[str]) -> dict[str, str]:
    head, *rest = lines
    assert re.fullmatch(r"ext-classify \S+, snowflake-connector-python \S+", head)
    return {line.split()[0]: line.partition("\n")[2].strip() for line in rest}


def test_every_question_is_answered_as_far_as_the_emulator_goes(user_session: UserSession) -> None:
    said = answers(ask(user_session, "EXT_CLASSIFY", None))
    assert list(said) == list(QUESTIONS)
    for key in ("base64", "hex"):
        assert said[key].startswith("classified as Scratches")
    assert said["options"].startswith("classified as Scratches, with evidence")
    assert said["null"].startswith("answered null")
    assert "<account>.snowflakecomputing.com: classified as Patches" in said["file_url"]
    assert said["signed_url"].startswith("classified as Patches")
    assert "error scoped_url_not_readable" in said["scoped_url"]
    assert re.search(r"Probe 429: sent again after [0-9.]+ s with the same batch id", said["429"])
    assert "Probe 202: answered 202 after 0.1 s, then polled" in said["202"]
    assert said["grants_function"].startswith("USAGE to ROLE (1)")
    assert said["grants_stage"].startswith("READ to ROLE (1)")
    # What the emulator does not have is an answer too, and stops nothing.
    assert said["packages"].startswith("failed: ")
    assert not any("analyst" in text.lower() or "Signature=" in text for text in said.values())


def test_command_prints_the_text(
    server: LocalServer, user_session: UserSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--snowflake", "--local", "--port", str(server.port)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1::2]] == list(QUESTIONS)


def test_stage_without_files_skips_what_needs_one(user_session: UserSession) -> None:
    user_session.rows("CREATE STAGE IF NOT EXISTS empty DIRECTORY = (ENABLE = TRUE)")
    said = answers(ask(user_session, "local.public.ext_classify", "local.public.empty"))
    skipped = {key for key, text in said.items() if text.startswith("skipped: ")}
    assert skipped == {"file_url", "privatelink", "scoped_url", "signed_url", "signing"}


def test_unknown_function_is_an_error(user_session: UserSession) -> None:
    with pytest.raises(ClientError, match="ext-classify register"):
        list(ask(user_session, "nowhere", None))
