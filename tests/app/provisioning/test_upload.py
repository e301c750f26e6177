"""upload against the Snowflake emulator: unchanged files and failures."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import snowflake.connector

from app.client import ClientError
from app.emulator import LocalServer
from app.provisioning.upload import UploadIncomplete, find_files, upload
from app.provisioning.user_session import StatementFailed, UserSession, describe_error
from tests.conftest import SAMPLES


class CountingConsole(UserSession):
    """Rejects files named `refused`, and records which were sent."""

    refused = ""

    def put(self, content: IO[bytes], name: str, location: str, *, overwrite: bool) -> str:
        self.sent = [*getattr(self, "sent", []), name]
        if name == self.refused:
            raise StatementFailed("The storage is full")
        return super().put(content, name, location, overwrite=overwrite)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture
def user_session(server: LocalServer) -> Iterator[CountingConsole]:
    with CountingConsole(snowflake.connector.connect(**server.connect_arguments)) as opened:
        opened.rows(
            "CREATE OR REPLACE STAGE \"St/age\" ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE') "
            "DIRECTORY = (ENABLE = TRUE)"
        )
        yield opened
    server.local.catalog.stages.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/patches.png", "b c/rolled.png", "b c/pitted.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SAMPLES / Path(name).name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("below", ["", "2026/line 1"])
def test_unchanged_files_are_not_uploaded_again(
    user_session: CountingConsole, folder: Path, below: str
) -> None:
    assert upload(user_session, find_files([folder], below), '"St/age"') == {"UPLOADED": 3}
    user_session.sent = []
    (folder / "new.png").write_bytes(b"new")
    for overwrite in (False, True):
        statuses = upload(user_session, find_files([folder], below), '"St/age"', overwrite=overwrite)
        assert statuses == ({"UNCHANGED": 4} if overwrite else {"UNCHANGED": 3, "UPLOADED": 1})
    assert user_session.sent == ["new.png"]


def test_changed_file_is_replaced_only_on_request(user_session: CountingConsole, folder: Path) -> None:
    upload(user_session, find_files([folder]), '"St/age"')
    changed = (folder / "a" / "patches.png").read_bytes()[::-1]  # of the same size
    (folder / "a" / "patches.png").write_bytes(changed)
    before = user_session.rows('LIST @"St/age"')
    assert upload(user_session, find_files([folder]), '"St/age"') == {"UNCHANGED": 2, "SKIPPED": 1}
    assert user_session.rows('LIST @"St/age"') == before
    statuses = upload(user_session, find_files([folder]), '"St/age"', overwrite=True)
    assert statuses == {"UNCHANGED": 2, "UPLOADED": 1}
    assert upload(user_session, find_files([folder]), '"St/age"') == {"UNCHANGED": 3}


def test_client_side_encrypted_files_cannot_be_compared(user_session: CountingConsole, folder: Path) -> None:
    user_session.rows("CREATE OR REPLACE STAGE sealed")
    assert upload(user_session, find_files([folder]), "sealed") == {"UPLOADED": 3}
    assert upload(user_session, find_files([folder]), "sealed") == {"SKIPPED": 3}
    assert upload(user_session, find_files([folder]), "sealed", overwrite=True).total() == 3


def test_failure_does_not_stop_other_files_or_the_refresh(
    user_session: CountingConsole, folder: Path
) -> None:
    user_session.refused = "patches.png"
    (folder / "b c" / "gone.png").symlink_to(folder / "b c" / "rolled.png")
    files = find_files([folder])
    (folder / "b c" / "gone.png").unlink()
    with pytest.raises(UploadIncomplete, match="2 of 4 files were not uploaded") as failure:
        upload(user_session, files, '"St/age"')
    assert "a/patches.png: The storage is full" in str(failure.value)
    assert "b c/gone.png: " in str(failure.value)
    assert failure.value.statuses == {"UPLOADED": 2, "FAILED": 2}
    listed = user_session.rows('SELECT relative_path FROM DIRECTORY(@"St/age") ORDER BY 1')
    assert [row["relative_path"] for row in listed] == ["b c/pitted.png", "b c/rolled.png"]


def test_interruption_waits_only_for_uploads_in_progress(user_session: CountingConsole, folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.png").write_bytes(b"%d" % number)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(user_session, find_files([folder]), '"St/age"', advance=interrupt)
    assert len(user_session.sent) < 23
    assert len(user_session.rows('SELECT * FROM DIRECTORY(@"St/age")')) == len(user_session.sent)


def test_error_message_has_no_signed_url(user_session: CountingConsole) -> None:
    user_session.rows(
        "CREATE API INTEGRATION narrow API_PROVIDER = google_api_gateway GOOGLE_AUDIENCE = 'a' "
        "API_ALLOWED_PREFIXES = ('https://narrow/')"
    )
    with pytest.raises(StatementFailed, match="is not within the allowed prefixes") as failure:
        user_session.rows(
            "CREATE EXTERNAL FUNCTION f(a VARCHAR) RETURNS VARIANT API_INTEGRATION = narrow "
            "AS 'https://storage.example.com/a/b.png?X-Goog-Signature=hush&a=b'"
        )
    assert "hush" not in str(failure.value)
    assert "URL 'https://storage.example.com/a/b.png' is not" in str(failure.value)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Max retries with url: /b/o?sig=hush (Caused by x)", "Max retries with url: /b/o (Caused by x)"),
        ("403 for url: https://a.b/c?X-Amz=hush%2F&d=e", "403 for url: https://a.b/c"),
        ("Is this\n  a question?", "Is this a question?"),
    ],
)
def test_http_client_error_is_shown_without_the_query(message: str, shown: str) -> None:
    assert describe_error(OSError(message)) == shown


def test_unknown_stage_is_named(user_session: CountingConsole, folder: Path) -> None:
    with pytest.raises(ClientError, match=r'There is no stage "LOCAL"\."PUBLIC"\."AGE"'):
        upload(user_session, find_files([folder]), "local.public.age")


@pytest.mark.parametrize("name", ["n.h5", "n.hdf5", "n.keras", "n.tflite", "n"])
def test_network_is_uploaded_with_all_that_serves_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    own = [path] if path.suffix else [path / "saved_model.pb", path / "variables" / "variables.index"]
    for file in (*own, *(tmp_path / part for part in ("n.json", "n.tflite", "n.tflite.json", "other.json"))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    places = [str(place) for _, place in find_files([path], "models")]
    expected = [f"models/{file.relative_to(tmp_path)}" for file in own]
    expected += [f"models/{part}" for part in ("n.json", "n.tflite", "n.tflite.json")]
    assert sorted(places) == sorted(set(expected))


def test_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"n\.keras"):
        find_files([tmp_path / "n.keras"])
