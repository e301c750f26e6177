"""The dbt project of infra/dbt, by dbt itself on local SQL. dbt has an environment of its own, .venv-dbt."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.sql_shell import LocalSql, local_sql
from app.emulator import LocalServer
from tests.app.emulator.sql import Sql
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "infra" / "dbt"
DBT = os.environ.get("DBT") or str(ROOT / ".venv-dbt" / "bin" / "dbt")
INSTALL = "dbt is not installed: run make .venv-dbt/.installed, or set DBT to its path"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("crazing.png", "patches.png", "scratches.png"):
        shutil.copy(SAMPLES / name, folder)
    return folder


@pytest.fixture(scope="module")
def running(images: Path) -> Iterator[LocalSql]:
    if shutil.which(DBT) is None:
        pytest.skip(INSTALL)
    with local_sql(images, None, None) as running:
        yield running


@pytest.fixture
def sql(running: LocalSql) -> Iterator[Sql]:
    with Sql(running.server) as sql:
        yield sql


def run_dbt(server: LocalServer, folder: Path, command: str) -> str:
    """What dbt prints; its working files go to `folder`. Raises AssertionError if it fails."""
    options = [
        "--project-dir",
        PROJECT,
        "--profiles-dir",
        PROJECT,
        "--target-path",
        folder,
        "--log-path",
        folder,
    ]
    done = subprocess.run(
        [DBT, *command.split(), "--no-use-colors", *options],
        env=os.environ | {"EXT_CLASSIFY_SQL_PORT": str(server.port)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def sent_rows(server: LocalServer) -> int:
    return sum(query.counts["rows"] for query in server.local.queries.finished.values())


def test_runs_classify_what_is_new_or_retryable(
    running: LocalSql, sql: Sql, images: Path, tmp_path: Path
) -> None:
    server = running.server
    run_dbt(server, tmp_path, "build")
    assert sent_rows(server) == 3
    labels = dict(sql.rows("SELECT relative_path, label FROM labels"))
    assert labels == {"crazing.png": "Crazing", "patches.png": "Patches", "scratches.png": "Scratches"}

    run_dbt(server, tmp_path, "run")
    assert sent_rows(server) == 3  # nothing is new

    shutil.copy(SAMPLES / "pitted.png", images)
    for path, retryable in (("crazing.png", "true"), ("patches.png", "false")):
        error = f'{{"error": {{"code": "fetch_failed", "retryable": {retryable}}}}}'
        sql.rows(
            "UPDATE answers SET answer = (SELECT PARSE_JSON(%s)) WHERE relative_path = %s", (error, path)
        )
    run_dbt(server, tmp_path, "run")
    assert sent_rows(server) == 5
    labels = dict(sql.rows("SELECT relative_path, label FROM labels"))
    assert labels == {
        "crazing.png": "Crazing",
        "patches.png": None,
        "pitted.png": "Pitted",
        "scratches.png": "Scratches",
    }
    days = sql.rows("SELECT label, SUM(images)::INT FROM labels_by_day GROUP BY label ORDER BY label")
    assert sorted(map(str, days)) == sorted(
        map(str, [("Crazing", 1), ("Pitted", 1), ("Scratches", 1), (None, 1)])
    )

    with pytest.raises(AssertionError, match="error_share"):
        run_dbt(server, tmp_path, "test")
    run_dbt(server, tmp_path, "snapshot")
    history = "SELECT COUNT(*), COUNT(dbt_valid_to) FROM label_history WHERE relative_path = 'patches.png'"
    assert sql.row(history) == (2, 1)
