"""PUT and GET through Snowflake's connector, and the files that stages list."""

import io
import urllib.request
from pathlib import Path

import pytest
from fakesnow.server import sessions
from snowflake.connector.errors import Error

from app.emulator import LocalServer, Stage
from app.provisioning.upload import find_files, is_encrypted_by_clients, upload
from app.provisioning.user_session import connect
from tests.app.emulator.sql import Sql
from tests.conftest import SAMPLES

NAMES = [
    "plain.png",
    "with blank.png",
    "it's.png",
    'dou"ble.png',
    "ümläut 猫.png",
    "100%41.png",
    "a#b?c&d.png",
    "back\\slash.png",
    "sq[u]are.png",
    "sta*r.png",
]


@pytest.fixture
def stage(sql: Sql) -> str:
    sql.rows("CREATE STAGE s ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE') DIRECTORY = (ENABLE = TRUE)")
    return "s"


def put(sql: Sql, content: bytes, name: str, target: str = "@s", options: str = "") -> str:
    """PUT from a stream, as the user_session does; returns the status."""
    path = name.replace("\\", "\\\\").replace("'", "''")
    statement = f"PUT 'file://{path}' '{target}' AUTO_COMPRESS = FALSE {options}"
    [row] = sql.rows(statement, file_stream=io.BytesIO(content))
    return str(row[6])


def stored(server: LocalServer, sql: Sql, name: str = "S") -> Stage:
    return server.local.catalog.stages["LOCAL", str(sql.value("SELECT CURRENT_SCHEMA()")), name]


def get(sql: Sql, location: str, folder: Path) -> dict[str, bytes]:
    sql.rows(f"GET {location} 'file://{folder}/'")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_file_of_any_name_is_downloaded_unchanged(sql: Sql, stage: str, tmp_path: Path, name: str) -> None:
    assert put(sql, b"bytes", name, "@s/some folder") == "UPLOADED"
    assert sql.column("LIST @s") == [f"s/some folder/{name}"]
    assert get(sql, "@s", tmp_path) == {name: b"bytes"}


def test_name_with_a_quote_may_be_put_from_a_file(sql: Sql, stage: str, tmp_path: Path) -> None:
    (tmp_path / "it's.png").write_bytes(b"bytes")
    sql.rows(f"PUT 'file://{tmp_path}/it''s.png' @s AUTO_COMPRESS = FALSE")
    assert sql.column("LIST @s") == ["s/it's.png"]


def test_compressed_name_with_a_quote_is_refused(sql: Sql, stage: str, tmp_path: Path) -> None:
    """The connector would repeat the PUT with a garbled name."""
    (tmp_path / "it's.png").write_bytes(b"bytes")
    assert sql.error(f"PUT 'file://{tmp_path}/it''s.png' @s").errno == 2
    assert sql.rows("LIST @s") == []


def test_file_is_compressed_by_default(sql: Sql, stage: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 1000)
    sql.rows(f"PUT file://{tmp_path}/a.txt @s")
    sql.rows(f"put file://{tmp_path}/a.txt @s/raw/ auto_compress = false;")
    assert [row[:2] for row in sql.rows("LIST @s/raw")] == [("s/raw/a.txt", 1000)]
    [name, size, *_] = sql.row("LIST @s/a.txt")
    assert name == "s/a.txt.gz"
    assert size < 100


def test_pattern_puts_each_file_under_its_name(sql: Sql, stage: str, tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b.png", "a'3.png", "a\\4.png"):
        (tmp_path / name).write_bytes(name.encode())
    assert len(sql.rows(f"PUT file://{tmp_path}/a* @s/x AUTO_COMPRESS = FALSE")) == 4
    folder = tmp_path / "back"
    folder.mkdir()
    names = ["a1.png", "a2.png", "a'3.png", "a\\4.png"]
    assert get(sql, "@s", folder) == {name: name.encode() for name in names}


def test_pattern_is_refused_for_connector_5(sql: Sql, stage: str, server: LocalServer) -> None:
    """Connector 5.x does not repeat the PUT for each file: all files would go to the path of the first."""
    [session] = [
        session for session in sessions.values() if session.schema == sql.value("SELECT CURRENT_SCHEMA()")
    ]
    session.repeats_puts = False
    assert sql.error("PUT file:///tmp/a* @s AUTO_COMPRESS = FALSE").errno == 2
    assert sql.error("PUT file:///tmp/a.png @s").errno == 2


def test_different_file_is_replaced_only_with_overwrite(sql: Sql, stage: str, tmp_path: Path) -> None:
    put(sql, b"first", "a.png")
    with pytest.raises(Error, match="412"):
        put(sql, b"other", "a.png")
    with pytest.raises(Error, match="412"):
        put(sql, b"other", "a.png", options="OVERWRITE = FALSE")
    assert get(sql, "@s", tmp_path) == {"a.png": b"first"}
    put(sql, b"other", "a.png", options="OVERWRITE = TRUE")
    assert get(sql, "@s", tmp_path) == {"a.png": b"other"}


@pytest.mark.parametrize("encryption", ["SNOWFLAKE_SSE", "SNOWFLAKE_FULL"])
def test_same_file_again_does_not_change_the_stage(sql: Sql, encryption: str, tmp_path: Path) -> None:
    sql.rows(f"CREATE STAGE s ENCRYPTION = (TYPE = '{encryption}')")
    put(sql, b"bytes", "a.png")
    before = sql.rows("LIST @s")
    put(sql, b"bytes", "a.png")
    assert sql.rows("LIST @s") == before
    assert get(sql, "@s", tmp_path) == {"a.png": b"bytes"}


def test_stage_without_server_side_encryption_holds_encrypted_files(
    sql: Sql, server: LocalServer, tmp_path: Path
) -> None:
    sql.rows("CREATE STAGE s")
    put(sql, b"an image" * 100, "a.png", "@s/folder")
    content = (stored(server, sql).folder / "folder" / "a.png").read_bytes()
    assert b"an image" not in content
    assert len(content) % 16 == 0
    assert get(sql, "@s/folder/a.png", tmp_path) == {"a.png": b"an image" * 100}
    url = server.local.uploads.sign(stored(server, sql), "folder/a.png", 60)
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - http
        assert response.read() == content
        assert "WrappedContentKey" in response.headers["x-goog-meta-encryptiondata"]
        assert response.headers["x-goog-meta-matdesc"]
    assert {row[1]: row[3] for row in sql.rows("DESC STAGE s")}["TYPE"] == "SNOWFLAKE_FULL"


def test_stage_with_server_side_encryption_holds_the_bytes(sql: Sql, stage: str, server: LocalServer) -> None:
    put(sql, b"an image", "a.png")
    assert (stored(server, sql).folder / "a.png").read_bytes() == b"an image"
    url = server.local.uploads.sign(stored(server, sql), "a.png", 60)
    with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - http
        assert "x-goog-meta-encryptiondata" not in response.headers


def test_get_path_is_a_prefix(sql: Sql, stage: str, tmp_path: Path) -> None:
    for target, name in (("@s/a", "1.png"), ("@s/ab", "2.png"), ("@s/b", "3.png")):
        put(sql, name.encode(), name, target)
    assert get(sql, "@s/a", tmp_path) == {"1.png": b"1.png", "2.png": b"2.png"}
    assert "does not exist" in str(sql.error(f"GET @s/nothing 'file://{tmp_path}/'"))


@pytest.mark.parametrize("statement", ["LIST @s/a", "LS @s/a;", "list '@s/a'", "LIST @s/a -- those"])
def test_list_path_is_a_prefix(sql: Sql, stage: str, statement: str) -> None:
    for target, name in (("@s/a", "1.png"), ("@s/ab", "2.png"), ("@s/b", "3.png")):
        put(sql, b"x", name, target)
    assert sql.column(statement) == ["s/a/1.png", "s/ab/2.png"]
    assert sql.columns == ["name", "size", "md5", "last_modified"]


@pytest.mark.parametrize(
    "statement", ["REMOVE @s/a/", "rm '@s/a/';", "RM @s/a/ -- those\n", "remove @s/a/1.png"]
)
def test_remove_deletes_files(sql: Sql, stage: str, statement: str) -> None:
    for target, name in (("@s/a", "1.png"), ("@s/ab", "2.png")):
        put(sql, b"x", name, target)
    assert sql.rows(statement) == [("s/a/1.png", "removed")]
    assert sql.column("LIST @s") == ["s/ab/2.png"]


def test_directory_table_changes_only_on_refresh(sql: Sql, stage: str) -> None:
    listed = "SELECT relative_path FROM DIRECTORY(@s)"
    put(sql, b"x", "b.png")
    put(sql, b"x", "a.png")
    assert sql.column(listed) == []
    assert sql.rows("ALTER STAGE s REFRESH") == [("a.png", "REGISTERED_NEW"), ("b.png", "REGISTERED_NEW")]
    assert sql.column(listed) == ["a.png", "b.png"]
    put(sql, b"x", "c.png")
    sql.rows("REMOVE @s/a.png")
    assert sql.column(listed) == ["a.png", "b.png"]
    assert sql.rows("ALTER STAGE s REFRESH") == [("c.png", "REGISTERED_NEW")]
    assert sql.column(listed) == ["b.png", "c.png"]


def test_directory_table_has_md5_and_size(sql: Sql, stage: str) -> None:
    put(sql, b"hello", "a.png")
    sql.rows("ALTER STAGE s REFRESH")
    row = sql.row("SELECT size, md5, etag FROM DIRECTORY(@s)")
    assert row == (5, "5d41402abc4b2a76b9719d911017c592", "5d41402abc4b2a76b9719d911017c592")


def test_stage_without_a_directory_table_has_none(sql: Sql) -> None:
    sql.rows("CREATE STAGE s ENCRYPTION = (TYPE = 'snowflake_sse')")
    put(sql, b"x", "a.png")
    assert sql.error("SELECT * FROM DIRECTORY(@s)").errno == 1008
    assert sql.error("ALTER STAGE s REFRESH").errno == 1008
    sql.rows("ALTER STAGE s SET DIRECTORY = (ENABLE = TRUE)")
    assert sql.rows("SELECT * FROM DIRECTORY(@s)") == []
    sql.rows("ALTER STAGE s REFRESH")
    assert sql.column("SELECT relative_path FROM DIRECTORY(@s)") == ["a.png"]


@pytest.mark.parametrize(
    "target",
    ["@s/..", "@s/../other", "@s/a/../b", "@s/./a", "'@s//a'", "'@s/a//b'", "@s/%2e%2e/../x", "'@s//tmp/x'"],
)
def test_target_that_leaves_the_stage_is_refused(sql: Sql, stage: str, tmp_path: Path, target: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert sql.error(f"PUT file://{tmp_path}/a.png {target} AUTO_COMPRESS = FALSE").errno == 1008
    assert sql.rows("LIST @s") == []


def test_signed_target_outside_of_the_stage_is_refused(
    sql: Sql, stage: str, server: LocalServer, tmp_path: Path
) -> None:
    for path in (
        "../x.png",
        "%2e%2e/x.png",
        str(tmp_path / "x.png"),
        "a/../../x.png",
        "nul\0.png",
        "x" * 3000,
    ):
        url = server.local.uploads.sign(stored(server, sql), path, 60, method="PUT")
        request = urllib.request.Request(url, method="PUT", data=b"x")  # noqa: S310 - http
        if path.startswith("%"):  # an ordinary name
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                assert response.status == 200
            continue
        with pytest.raises(urllib.error.HTTPError) as failure:
            urllib.request.urlopen(request, timeout=10)  # noqa: S310
        with failure.value as error:
            assert error.code == 403
    assert not (tmp_path / "x.png").exists()
    assert sql.column("LIST @s") == ["s/%2e%2e/x.png"]


def test_folder_with_the_name_of_a_file_is_refused(sql: Sql, stage: str, tmp_path: Path) -> None:
    put(sql, b"file", "a")
    with pytest.raises(Error):
        put(sql, b"in a folder", "b", "@s/a")
    assert get(sql, "@s", tmp_path) == {"a": b"file"}


def test_files_of_clients_never_change_a_mounted_folder(
    sql: Sql, server: LocalServer, tmp_path: Path
) -> None:
    mounted, folder = tmp_path / "mounted", tmp_path / "back"
    mounted.mkdir()
    folder.mkdir()
    (mounted / "a.png").write_bytes(b"x")
    server.mount(mounted, "USERS")
    location = "@local.public.users"
    put(sql, b"new", "b.txt", location)
    put(sql, b"other", "a.png", f"{location}/sub")
    put(sql, b"newer", "a.png", location)
    assert sql.column(f"LIST {location}") == ["users/a.png", "users/b.txt", "users/sub/a.png"]
    assert get(sql, f"{location}/b", folder) == {"b.txt": b"new"}
    sql.rows("ALTER STAGE local.public.users REFRESH")
    assert len(sql.rows("SELECT relative_path FROM DIRECTORY(@local.public.users)")) == 3
    sql.rows(f"REMOVE {location}/sub")
    sql.rows(f"REMOVE {location}/b.txt")
    assert sql.column(f"LIST {location}") == ["users/a.png"]
    assert get(sql, f"{location}/a.png", folder)["a.png"] == b"newer"
    sql.rows(f"REMOVE {location}")
    assert sql.error(f"REMOVE {location}").errno == 1008
    assert [path.name for path in mounted.iterdir()] == ["a.png"]
    assert (mounted / "a.png").read_bytes() == b"x"
    sql.rows("DROP STAGE local.public.users")
    assert (mounted / "a.png").exists()


@pytest.mark.parametrize(
    ("statement", "errno"),
    [
        ("PUT file:///tmp/a.png", 1003),
        ("PUT file:///tmp/a.png @nowhere", 2003),
        ("PUT file:///tmp/a.png @s AUTO_COMPRESS = MAYBE", 1008),
        ("PUT file:///tmp/a.png @s AUTO_COMPRESS = FALSE PARALLEL = many", 1008),
        ("PUT file:///tmp/a.png @s COLOUR = red", 1003),
        ("PUT file:///tmp/a.png @s AUTO_COMPRESS = FALSE; SELECT 1", 8),
        ("GET @nowhere file:///tmp/", 2003),
        ("GET @s file:///tmp/ PATTERN = '.*'", 2),
        ("GET @s", 1003),
    ],
)
def test_invalid_transfer_is_an_sql_error(sql: Sql, stage: str, statement: str, errno: int) -> None:
    assert sql.error(statement).errno == errno


def test_failed_put_returns_a_url_that_refuses_uploads(
    sql: Sql, stage: str, server: LocalServer, tmp_path: Path
) -> None:
    """Connector 4.x ignores errors when it repeats the PUT; without a URL it would connect to Google."""
    (tmp_path / "a.png").write_bytes(b"x")
    statement = f"PUT file://{tmp_path}/a* @s/../x AUTO_COMPRESS = FALSE"
    with sql.connection.cursor() as cursor:
        answer = cursor._execute_helper(statement)  # noqa: SLF001 - as its transfers do
    assert answer["success"] is False
    assert answer["data"]["stageInfo"]["presignedUrl"] == f"http://127.0.0.1:{server.port}/refused"


def test_encryption_material_contains_only_strings(sql: Sql) -> None:
    """Connector 5.x requires strings."""
    sql.rows("CREATE STAGE s")
    with sql.connection.cursor() as cursor:
        answer = cursor._execute_helper("PUT file:///tmp/a.png @s AUTO_COMPRESS = FALSE")  # noqa: SLF001
    assert all(isinstance(value, str) for value in answer["data"]["encryptionMaterial"].values())


def test_upload_keeps_subfolders(sql: Sql, stage: str, server: LocalServer, tmp_path: Path) -> None:
    for path in ("1/a.png", "2/a.png", "2/it's b.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((SAMPLES / "scratches.png").read_bytes() + path.encode())
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    with connect(**server.connect_arguments) as user_session:
        assert upload(user_session, find_files([tmp_path], "2026"), f"local.{schema}.s") == {"UPLOADED": 3}
        assert not is_encrypted_by_clients(user_session, f"local.{schema}.s")
    assert sql.column("SELECT relative_path FROM DIRECTORY(@s)") == [
        "2026/1/a.png",
        "2026/2/a.png",
        "2026/2/it's b.png",
    ]


# Stages.


def test_stage_is_created_once(sql: Sql, stage: str, tmp_path: Path) -> None:
    put(sql, b"x", "a.png")
    assert sql.error("CREATE STAGE s").errno == 2002
    assert sql.value("CREATE STAGE IF NOT EXISTS s") == "S already exists, statement succeeded."
    assert sql.column("LIST @s") == ["s/a.png"]
    assert sql.error("CREATE OR REPLACE STAGE IF NOT EXISTS s").errno == 1008
    sql.rows("create or replace temporary stage s -- again\n;")
    assert sql.rows("LIST @s") == []


def test_show_stages(sql: Sql, stage: str) -> None:
    sql.rows("CREATE STAGE \"My 'st.age'\" COMMENT = 'say \"x\" (y)'")
    rows = sql.records("SHOW STAGES IN SCHEMA")
    assert [(row["name"], row["type"], row["directory_enabled"], row["comment"]) for row in rows] == [
        ("S", "INTERNAL NO CSE", "Y", ""),
        ("My 'st.age'", "INTERNAL", "N", 'say "x" (y)'),
    ]
    assert sql.names("SHOW STAGES LIKE 's' IN SCHEMA") == ["S"]
    assert sql.names("SHOW STAGES LIKE '%_age_' IN SCHEMA") == ["My 'st.age'"]


def test_stage_with_a_quoted_name_is_used(sql: Sql) -> None:
    sql.rows("CREATE STAGE \"ünï 'q'.st\" DIRECTORY = (ENABLE = TRUE) ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    put(sql, b"x", "a.png", "@\"ünï ''q''.st\"/f")
    assert sql.column("LIST @\"ünï 'q'.st\"") == ["ünï 'q'.st/f/a.png"]
    sql.rows("ALTER STAGE \"ünï 'q'.st\" REFRESH")
    assert sql.column("SELECT relative_path FROM DIRECTORY(@\"ünï 'q'.st\")") == ["f/a.png"]
    sql.rows("DROP STAGE IF EXISTS \"ünï 'q'.st\"")
    assert sql.rows("SHOW STAGES IN SCHEMA") == []


def test_alter_stage(sql: Sql, stage: str) -> None:
    sql.rows("ALTER STAGE s SET COMMENT = 'new' DIRECTORY = (ENABLE = FALSE)")
    [shown] = sql.records("SHOW STAGES IN SCHEMA")
    assert (shown["directory_enabled"], shown["comment"]) == ("N", "new")
    assert sql.error("ALTER STAGE s SET ENCRYPTION = (TYPE = 'SNOWFLAKE_FULL')").errno == 1008
    assert sql.value("ALTER STAGE IF EXISTS nowhere REFRESH") == "Statement executed successfully."


@pytest.mark.parametrize(
    "options",
    [
        "DIRECTORY = TRUE",
        "DIRECTORY = (ENABLE = MAYBE)",
        "DIRECTORY = ()",
        "ENCRYPTION = 'SNOWFLAKE_SSE'",
        "ENCRYPTION = (TYPE = 'AWS_SSE_S3')",
        "COLOUR = red",
    ],
)
def test_stage_with_wrong_options_is_refused(sql: Sql, options: str) -> None:
    assert sql.error(f"CREATE STAGE s {options}").errno in {1003, 1008}
    assert sql.error("LIST @s").errno == 2003


def test_dropped_stage_loses_its_files(sql: Sql, stage: str) -> None:
    put(sql, b"x", "a.png")
    sql.rows("DROP STAGE s")
    assert sql.error("LIST @s").errno == 2003
    assert sql.error("DROP STAGE s").errno == 2003
    sql.rows("CREATE STAGE s")
    assert sql.rows("LIST @s") == []
