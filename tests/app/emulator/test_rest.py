"""The REST API, with the requests of `snow object create`."""

import json
from typing import Any

import pytest
import requests

from app.emulator import LocalServer
from tests.app.emulator.sql import Sql


class Rest:
    """Sends requests with the session's token, relative to its schema."""

    def __init__(self, server: LocalServer, sql: Sql) -> None:
        self._origin = f"http://127.0.0.1:{server.port}/api/v2"
        self.schema = f"/databases/local/schemas/{sql.value('SELECT CURRENT_SCHEMA()')}"
        self._headers = {"Authorization": f'Snowflake Token="{sql.connection.rest.token}"'}

    def send(self, method: str, path: str, body: Any = None) -> requests.Response:
        data = json.dumps(body) if body is not None else None
        return requests.request(method, self._origin + path, data=data, headers=self._headers, timeout=60)


@pytest.fixture
def rest(server: LocalServer, sql: Sql) -> Rest:
    return Rest(server, sql)


def test_objects_are_created_as_by_sql(sql: Sql, rest: Rest) -> None:
    columns = [{"name": "a", "datatype": "int"}, {"name": "b", "datatype": "varchar(5)", "nullable": False}]
    table = {"name": "labels", "columns": columns}
    assert rest.send("POST", f"{rest.schema}/tables/", table).json() == {
        "status": "labels successfully created."
    }
    assert [(row["name"], row["null?"]) for row in sql.records("DESC TABLE labels")] == [
        ("A", "Y"),
        ("B", "N"),
    ]
    assert rest.send("POST", f"{rest.schema}/tables/", table).status_code == 409
    replaced = table | {"columns": [{"name": "c", "datatype": "float"}]}
    assert rest.send("POST", f"{rest.schema}/tables/?createMode=ifNotExists", replaced).status_code == 200
    assert len(sql.records("DESC TABLE labels")) == 2
    assert rest.send("POST", f"{rest.schema}/tables/?createMode=orReplace", replaced).status_code == 200
    assert len(sql.records("DESC TABLE labels")) == 1

    view = {"name": "some", "query": "SELECT c FROM labels", "comment": "it's"}
    assert rest.send("POST", f"{rest.schema}/views/", view).status_code == 200
    assert sql.rows("SELECT * FROM some") == []
    stage = {"name": "photos", "directory_table": {"enable": True}, "encryption": {"type": "SNOWFLAKE_SSE"}}
    assert rest.send("POST", f"{rest.schema}/stages/", stage).status_code == 200
    assert sql.value("SELECT COUNT(*) FROM DIRECTORY(@photos)") == 0
    assert rest.send("POST", "/databases/local/schemas/", {"name": "by_rest"}).status_code == 200
    sql.rows("DROP SCHEMA by_rest")


def test_what_exists_is_found(rest: Rest) -> None:
    assert rest.send("GET", "/databases/local").json() == {"name": "local"}
    assert rest.send("GET", f"{rest.schema}/tables/").json() == []
    for path in ("/tables/", "/databases/local/tables/", f"{rest.schema}/dynamic-tables/", "/databases/no"):
        assert rest.send("GET", path).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "a b", "columns": []},
        {"name": "t", "columns": [{"name": "a"}]},
        {"name": "t", "columns": [{"name": "a", "datatype": "blob"}]},
        {"name": "t", "columns": [{"name": "a", "datatype": "int"}], "cluster_by": ["a"]},
    ],
)
def test_wrong_request_is_refused(rest: Rest, body: dict[str, Any]) -> None:
    refused = rest.send("POST", f"{rest.schema}/tables/", body)
    assert refused.status_code == 400
    assert refused.json()["message"]


def test_request_without_a_session_is_refused(server: LocalServer) -> None:
    path = f"http://127.0.0.1:{server.port}/api/v2/databases/local"
    assert requests.get(path, timeout=60).status_code == 401
