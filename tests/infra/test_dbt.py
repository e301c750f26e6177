"""The dbt project of infra/dbt, by dbt itself on local SQL. dbt has an environment of its own, .venv-dbt."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
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
PROGRAM = """
import json, sys
from dbt.cli.main import dbtRunner
for line in sys.stdin:
    finished = dbtRunner().invoke(json.loads(line))
    print("\\0succeeded" if finished.success else "\\0failed", flush=True)
"""
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


@pytest.fixture
def run_dbt(running: LocalSql, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Runs a command in one process for all, because dbt takes longer to start than to run one.

    Its working files go to `tmp_path`. Raises AssertionError, with what dbt prints, if it fails.
    """
    folders = ("--project-dir", PROJECT, "--profiles-dir", PROJECT, "--target-path", tmp_path)
    options = ["--no-use-colors", *map(str, folders), "--log-path", str(tmp_path)]

    def run(command: str) -> None:
        assert dbt.stdin is not None
        assert dbt.stdout is not None
        print(json.dumps([*command.split(), *options]), file=dbt.stdin, flush=True)
        printed = ""
        while not printed.endswith(("\0succeeded\n", "\0failed\n")):
            line = dbt.stdout.readline()
            assert line, printed
            printed += line
        assert printed.endswith("\0succeeded\n"), printed

    with subprocess.Popen(
        [Path(str(shutil.which(DBT))).resolve().with_name("python"), "-c", PROGRAM],
        env=os.environ | {"EXT_CLASSIFY_SQL_PORT": str(running.server.port)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as dbt:
        yield run


def sent_rows(server: LocalServer) -> int:
    return sum(query.counts["rows"] for query in server.local.queries.finished.values())


def test_runs_classify_what_is_new_or_retryable(
    running: LocalSql, sql: Sql, images: Path, run_dbt: Callable[[str], None]
) -> None:
    server = running.server
    run_dbt("build")
    assert sent_rows(server) == 3
    labels = dict(sql.rows("SELECT relative_path, label FROM labels"))
    assert labels == {"crazing.png": "Crazing", "patches.png": "Patches", "scratches.png": "Scratches"}

    run_dbt("run")
    assert sent_rows(server) == 3  # nothing is new

    shutil.copy(SAMPLES / "pitted.png", images)
    for path, retryable in (("crazing.png", "true"), ("patches.png", "false")):
        error = f'{{"error": {{"code": "fetch_failed", "retryable": {retryable}}}}}'
        sql.rows(
            "UPDATE answers SET answer = (SELECT PARSE_JSON(%s)) WHERE relative_path = %s", (error, path)
        )
    run_dbt("run")
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
        run_dbt("test")
    run_dbt("snapshot")
    history = "SELECT COUNT(*), COUNT(dbt_valid_to) FROM label_history WHERE relative_path = 'patches.png'"
    assert sql.row(history) == (2, 1)
