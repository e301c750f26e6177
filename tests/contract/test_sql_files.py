"""The numbered SQL files, executed on the emulator with a running service."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli.service_process import own_service
from app.emulator import LocalServer
from app.provisioning.ddl import load
from app.provisioning.upload import find_files, upload
from app.provisioning.user_session import UserSession, connect
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow

NAMES = {
    "database": "LOCAL",
    "schema": "PUBLIC",
    "stage": '"Steel images"',
    "function": "ext_classify",
    "integration": "gateway",
    "api_provider": "aws_api_gateway",
    "aws_role_arn": "arn:aws:iam::123456789012:role/gateway",
    "max_batch_rows": "4",
    "caller_role": "analyst",
    "service_role": "classifier",
    "owner_role": "builder",
    "warehouse": "small",
    "api_key": "secret",
}
SETUP = [
    "01_stage.sql",
    "02_api_integration_aws.sql",
    "05_api_key.sql",
    "06_grant_integration.sql",
    "11_external_functions.sql",
    "21_grant_callers.sql",
    "22_grant_service.sql",
    "23_grant_warehouse.sql",
]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], UserSession]]:
    """The variables and a session, after the setup files ran twice, with images on the stage."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(SAMPLES, folder / "july")
    (folder / "july" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with (
        LocalServer() as server,
        own_service(environment=server.service_environment) as (url, _),
        connect(**server.connect_arguments) as user_session,
    ):
        variables = NAMES | {"url": f"{url}/classify", "allowed_prefix": f"{url}/"}
        for name in SETUP * 2:
            run(user_session, name, variables)
        upload(user_session, find_files([folder]), '"Steel images"')
        yield variables, user_session


def run(user_session: UserSession, name: str, variables: dict[str, str]) -> list[list[dict[str, Any]]]:
    return [user_session.rows(statement) for statement in load(name, variables)]


def test_queries_classify_store_and_find_images(variables: tuple[dict[str, str], UserSession]) -> None:
    names, user_session = variables
    refreshed, all_files, presigned, scoped, *_, unsure, failed, evidence = run(
        user_session, "31_queries.sql", names
    )[1:]
    assert refreshed == []  # `upload` has refreshed the stage
    assert len(all_files) == len(presigned) == len(scoped) == 7
    labels = {row["relative_path"]: row["answer"]["label"] for row in all_files}
    assert labels["july/scratches.png"] == "Scratches"
    assert {row["relative_path"]: row["answer"]["label"] for row in presigned} == labels
    assert {row["answer"]["error"]["code"] for row in scoped} == {"scoped_url_not_readable"}
    assert [row["relative_path"] for row in unsure] == ["july/rolled.png"]
    assert [(row["code"], row["example"]) for row in failed] == [("corrupt_image", "july/broken.png")]
    boxes = {row["relative_path"]: (row["evidence"] or {}).get("box") for row in evidence}
    assert len(boxes["july/patches.png"]) == 4


def test_stored_answers_are_not_classified_again(variables: tuple[dict[str, str], UserSession]) -> None:
    names, user_session = variables
    run(user_session, "31_queries.sql", names)
    before = user_session.rows("SELECT COUNT(*) AS n FROM image_answers")
    run(user_session, "31_queries.sql", names)
    assert user_session.rows("SELECT COUNT(*) AS n FROM image_answers") == before


def test_task_classifies_new_images_once(
    variables: tuple[dict[str, str], UserSession], tmp_path: Path
) -> None:
    names, user_session = variables
    run(user_session, "31_queries.sql", names)
    run(user_session, "32_new_images.sql", names)
    shutil.copytree(SAMPLES, tmp_path / "august")
    upload(user_session, find_files([tmp_path]), '"Steel images"')
    query = "SELECT relative_path, answer, answered_at FROM image_answers WHERE relative_path LIKE 'august/%'"
    assert user_session.rows(query) == []
    user_session.rows("EXECUTE TASK refresh_images")
    answers = user_session.rows(query)
    assert len(answers) == len(list(SAMPLES.iterdir()))
    [patches] = [row["answer"] for row in answers if row["relative_path"] == "august/patches.png"]
    assert patches["label"] == "Patches"
    user_session.rows("EXECUTE TASK refresh_images")
    assert user_session.rows(query) == answers
    user_session.rows('REMOVE @"Steel images"/august')
    user_session.rows('ALTER STAGE "Steel images" REFRESH')
    for statement in ("DROP TASK classify_new_images", "DROP TASK refresh_images", "DROP STREAM new_images"):
        user_session.rows(statement)


def test_function_of_the_manual_classifies_file_values(variables: tuple[dict[str, str], UserSession]) -> None:
    _, user_session = variables
    page = (Path(__file__).parents[2] / "infra" / "docs" / "snowflake.md").read_text("utf-8")
    block = page.partition("### FILE values")[2].partition("```sql")[2].partition("```")[0]
    block = block.replace("'@images'", "'@\"Steel images\"'").replace("@images", '@"Steel images"')
    create, select = block.strip().removesuffix(";").split(";")
    user_session.rows(create)
    answers = {row["relative_path"]: row["answer"] for row in user_session.rows(select)}
    assert len(answers) == 7
    assert answers["july/scratches.png"]["label"] == "Scratches"
    assert answers["july/broken.png"]["error"]["code"] == "corrupt_image"
    by_url = 'SELECT ext_classify(TO_FILE(file_url)) AS answer, relative_path FROM DIRECTORY(@"Steel images")'
    found = {row["relative_path"]: row["answer"] for row in user_session.rows(by_url)}
    assert {path: answer["label"] for path, answer in found.items()} == {
        path: answer["label"] for path, answer in answers.items()
    }
    user_session.rows("DROP FUNCTION ext_classify(FILE)")


def test_drop_files_keep_the_images(variables: tuple[dict[str, str], UserSession]) -> None:
    names, user_session = variables
    for name in ["91_drop_functions.sql", "92_drop_integration.sql"] * 2:
        run(user_session, name, names)
    assert user_session.rows("SHOW EXTERNAL FUNCTIONS") == []
    assert user_session.rows("SHOW INTEGRATIONS") == []
    assert user_session.rows("SHOW STAGES LIKE 'steel images'")[0]["directory_enabled"] == "Y"
    for name in SETUP:  # for tests that come later
        run(user_session, name, names)
