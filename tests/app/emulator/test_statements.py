"""The statements that the emulator executes itself, through Snowflake's connector."""

from typing import Any

import pytest
from snowflake.connector.errors import Error

from app.emulator import ACCOUNT, ACCOUNT_HOST
from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import RemoteService
from tests.app.emulator.sql import Sql

AWS = (
    "API_PROVIDER = aws_api_gateway API_AWS_ROLE_ARN = 'arn:aws:iam::1:role/r' "
    "API_ALLOWED_PREFIXES = ('https://a.example/', 'https://b.example/')"
)


def properties(sql: Sql, name: str) -> dict[str, str]:
    return {row[0]: row[2] for row in sql.rows(f"DESC API INTEGRATION {name}")}


def create(sql: Sql, options: str, name: str = "api") -> None:
    sql.rows(f"CREATE OR REPLACE API INTEGRATION {name} {options}")


# API integrations.


def test_integration_is_created_once(sql: Sql) -> None:
    create(sql, AWS)
    assert sql.value(f"CREATE API INTEGRATION IF NOT EXISTS api {AWS}") == (
        "API already exists, statement succeeded."
    )
    error = sql.error(f"create api integration api {AWS};")
    assert (error.errno, error.sqlstate) == (2002, "42710")


def test_or_replace_with_if_not_exists_is_refused(sql: Sql) -> None:
    assert sql.error(f"CREATE OR REPLACE API INTEGRATION IF NOT EXISTS api {AWS}").errno == 1008


def test_integration_is_described(sql: Sql) -> None:
    create(sql, AWS + " ENABLED = TRUE API_BLOCKED_PREFIXES = ('https://a.example/x') COMMENT = 'say AS (x)'")
    shown = properties(sql, "api")
    assert shown["API_ALLOWED_PREFIXES"] == "https://a.example/,https://b.example/"
    assert shown["API_BLOCKED_PREFIXES"] == "https://a.example/x"
    assert shown["COMMENT"] == "say AS (x)"
    assert shown["ENABLED"] == "true"
    assert shown["API_AWS_ROLE_ARN"] == "arn:aws:iam::1:role/r"
    assert shown["API_AWS_IAM_USER_ARN"].startswith("arn:aws:iam::")
    assert shown["API_AWS_EXTERNAL_ID"].endswith("=")


def test_key_of_an_integration_is_never_shown(sql: Sql) -> None:
    create(sql, AWS + " API_KEY = 'top secret'")
    sql.rows("ALTER API INTEGRATION api SET API_KEY = 'top secret 2'")
    shown = [*sql.rows("DESC INTEGRATION api"), *sql.rows("SHOW API INTEGRATIONS")]
    assert "secret" not in str(shown)
    assert "API_KEY" not in properties(sql, "api")
    assert "secret" not in str(sql.error("ALTER API INTEGRATION api SET API_KEY = ('top secret')"))


def test_alter_keeps_the_external_id_and_replace_changes_it(sql: Sql) -> None:
    create(sql, AWS)
    before = properties(sql, "api")
    sql.rows("ALTER API INTEGRATION IF EXISTS api SET API_ALLOWED_PREFIXES = ('https://c.example/')")
    altered = properties(sql, "api")
    assert altered["API_AWS_EXTERNAL_ID"] == before["API_AWS_EXTERNAL_ID"]
    assert altered["API_ALLOWED_PREFIXES"] == "https://c.example/"
    create(sql, AWS)
    assert properties(sql, "api")["API_AWS_EXTERNAL_ID"] != before["API_AWS_EXTERNAL_ID"]


@pytest.mark.parametrize(
    ("options", "trust"),
    [
        (
            "API_PROVIDER = azure_api_management AZURE_TENANT_ID = 't' AZURE_AD_APPLICATION_ID = 'a'",
            {"AZURE_MULTI_TENANT_APP_NAME", "AZURE_CONSENT_URL"},
        ),
        ("API_PROVIDER = google_api_gateway GOOGLE_AUDIENCE = 'x'", {"API_GCP_SERVICE_ACCOUNT"}),
        ("API_PROVIDER = aws_private_api_gateway API_AWS_ROLE_ARN = 'x'", {"API_AWS_EXTERNAL_ID"}),
        ("API_PROVIDER = 'aws_gov_api_gateway' API_AWS_ROLE_ARN = 'x'", {"API_AWS_IAM_USER_ARN"}),
    ],
)
def test_description_has_the_trust_properties_of_the_provider(
    sql: Sql, options: str, trust: set[str]
) -> None:
    create(sql, options + " API_ALLOWED_PREFIXES = ('https://a.example/')")
    assert trust <= properties(sql, "api").keys()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "API_PROVIDER = my_gateway API_ALLOWED_PREFIXES = ('https://a/')",
        "API_PROVIDER = aws_api_gateway API_ALLOWED_PREFIXES = ('https://a/')",
        "API_PROVIDER = aws_api_gateway API_AWS_ROLE_ARN = 'x'",
        AWS + " ENABLED = maybe",
        AWS + " COLOUR = red",
        AWS + " COMMENT = ('x')",
        "API_PROVIDER = aws_api_gateway API_AWS_ROLE_ARN = 'x' API_ALLOWED_PREFIXES = 'https://a/'",
    ],
)
def test_integration_with_wrong_options_is_refused(sql: Sql, options: str) -> None:
    assert sql.error(f"CREATE API INTEGRATION wrong {options}").errno in {1003, 1008}
    assert sql.error("DESC INTEGRATION wrong").errno == 2003


def test_provider_cannot_be_altered(sql: Sql) -> None:
    create(sql, AWS)
    assert sql.error("ALTER API INTEGRATION api SET API_PROVIDER = google_api_gateway").errno == 1008


def test_integration_is_dropped(sql: Sql) -> None:
    create(sql, AWS, '"Mixed api"')
    assert "Mixed api" in sql.names("SHOW API INTEGRATIONS LIKE 'mixed%'")
    sql.rows('DROP API INTEGRATION "Mixed api"')
    assert sql.error('DROP INTEGRATION "Mixed api"').errno == 2003
    assert "already dropped" in sql.value('DROP INTEGRATION IF EXISTS "Mixed api"')
    assert sql.error('ALTER INTEGRATION "Mixed api" SET ENABLED = TRUE').errno == 2003
    assert sql.rows("SHOW INTEGRATIONS LIKE 'mixed%'") == []


# External functions.


def test_function_url_must_match_the_allowed_prefixes(sql: Sql) -> None:
    create(sql, AWS + " API_BLOCKED_PREFIXES = ('https://a.example/no')")
    statement = "CREATE EXTERNAL FUNCTION f(a VARCHAR) RETURNS VARIANT API_INTEGRATION = api AS "
    for url in ("https://c.example/", "http://a.example/", "https://a.example/no/f"):
        assert sql.error(f"{statement}'{url}'").errno == 1008
    sql.rows(f"{statement}'https://a.example/yes'")
    assert sql.names("SHOW EXTERNAL FUNCTIONS IN SCHEMA") == ["F"]


def test_function_is_described(sql: Sql, function: Function) -> None:
    function(
        "f(file_url STRING, n INTEGER)",
        "NUMBER(10, 2)",
        "STRICT IMMUTABLE COMMENT = 'it''s AS x' HEADERS = ('a' = 'b') CONTEXT_HEADERS = (CURRENT_USER) "
        "MAX_BATCH_ROWS = 5 COMPRESSION = none",
    )
    shown = dict(sql.rows("DESC FUNCTION f(VARCHAR, INT)"))
    assert shown["signature"] == "(FILE_URL VARCHAR, N NUMBER)"
    assert shown["returns"] == "NUMBER(10,2)"
    assert shown["language"] == "EXTERNAL"
    assert shown["null handling"] == "RETURNS NULL ON NULL INPUT"
    assert shown["volatility"] == "IMMUTABLE"
    assert shown["max_batch_rows"] == "5"
    assert shown["body"] == function.service.url
    assert shown["api_integration"] == "GATEWAY"


def test_functions_are_shown_by_pattern_and_scope(sql: Sql, function: Function) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    function("ext_classify(a VARCHAR)")
    function("ext_classify(a VARCHAR, b OBJECT)")
    function("extra(a VARCHAR)")
    for kind in ("EXTERNAL FUNCTIONS", "USER FUNCTIONS", "FUNCTIONS"):
        shown = sql.records(f"SHOW {kind} LIKE 'ext\\\\_%' IN SCHEMA {schema}")
        assert {row["is_builtin"] for row in shown} == {"N"}
        assert [row["arguments"] for row in shown] == [
            "EXT_CLASSIFY(VARCHAR) RETURN VARIANT",
            "EXT_CLASSIFY(VARCHAR, OBJECT) RETURN VARIANT",
        ]
    assert len(sql.rows("SHOW EXTERNAL FUNCTIONS IN DATABASE LOCAL")) >= 3
    assert sql.rows("SHOW EXTERNAL FUNCTIONS IN SCHEMA LOCAL.PUBLIC") == []
    assert sql.error("SHOW EXTERNAL FUNCTIONS IN a.b.c").errno == 1008
    assert sql.error("SHOW EXTERNAL FUNCTIONS LIMIT 1").errno == 1003


def test_show_lists_the_current_database_by_default(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE STAGE here")
    sql.rows(f"CREATE DATABASE show_{schema}")
    sql.rows("CREATE STAGE there")
    assert sql.names("SHOW STAGES") == ["THERE"]
    assert {"HERE", "THERE"} <= set(sql.names("SHOW STAGES IN ACCOUNT"))
    assert "HERE" in sql.names("SHOW STAGES IN DATABASE local")
    assert sql.error("SHOW STAGES IN DATABASE nowhere").errno == 2003
    assert sql.error("SHOW STAGES IN SCHEMA nowhere").errno == 2003


def test_identifier_function_names_an_object(sql: Sql) -> None:
    sql.rows("CREATE STAGE IF NOT EXISTS IDENTIFIER('\"my stage\"')")
    assert sql.names("SHOW STAGES IN SCHEMA") == ["my stage"]
    assert sql.rows("DESC STAGE IDENTIFIER('\"my stage\"')") != []
    sql.rows("DROP STAGE IDENTIFIER('\"my stage\"')")
    assert sql.error("DESC STAGE IDENTIFIER('\"my stage\"')").errno == 2003


def test_warehouses_are_shown_with_their_state(sql: Sql) -> None:
    sql.rows("ALTER WAREHOUSE small SUSPEND")
    try:
        [shown] = sql.records("SHOW WAREHOUSES LIKE 'sm%'")
        assert (shown["name"], shown["state"], shown["is_current"]) == ("SMALL", "SUSPENDED", "N")
    finally:
        sql.rows("ALTER WAREHOUSE small RESUME")


def test_function_is_replaced_only_with_or_replace(sql: Sql, function: Function) -> None:
    function("f(a VARCHAR)")
    again = (
        f"EXTERNAL FUNCTION f(b STRING) RETURNS VARIANT API_INTEGRATION = gateway AS '{function.service.url}'"
    )
    assert sql.error(f"CREATE {again}").errno == 2002
    sql.rows(f"CREATE OR REPLACE SECURE {again}")
    assert dict(sql.rows("DESCRIBE FUNCTION f(TEXT)"))["signature"] == "(B VARCHAR)"


def test_or_alter_keeps_grants_and_cannot_change_the_definition(sql: Sql, function: Function) -> None:
    url = function.service.url
    clauses = "RETURNS VARIANT API_INTEGRATION = gateway MAX_BATCH_ROWS = 7"
    function("f(a VARCHAR)")
    sql.rows("GRANT USAGE ON FUNCTION f(VARCHAR) TO ROLE analyst")
    sql.rows(f"CREATE OR ALTER EXTERNAL FUNCTION f(a VARCHAR) {clauses} AS '{url}'")
    assert dict(sql.rows("DESC FUNCTION f(VARCHAR)"))["max_batch_rows"] == "7"
    assert len(sql.rows("SHOW GRANTS ON FUNCTION f(VARCHAR)")) == 1
    statement = f"CREATE OR ALTER EXTERNAL FUNCTION f(a VARCHAR) {clauses} AS '{url}'"
    for old, new in ((url, f"{url}/other"), (" API", " STRICT API"), ("VARIANT", "VARCHAR")):
        assert "CREATE OR ALTER" in sql.error(statement.replace(old, new)).msg
    assert dict(sql.rows("DESC FUNCTION f(VARCHAR)"))["body"] == url


def test_function_is_dropped_by_its_signature(sql: Sql, function: Function, service: RemoteService) -> None:
    function("f(a VARCHAR)")
    function("f(a VARCHAR, b OBJECT)")
    assert sql.error("DROP FUNCTION f(NUMBER)").errno == 2003
    sql.rows("DROP FUNCTION f(STRING)")
    assert sql.error("SELECT f('a')").errno == 1044
    assert "already dropped" in sql.value("DROP FUNCTION IF EXISTS f(VARCHAR)")
    sql.rows("drop function if exists f(varchar, object);")
    assert sql.error("SELECT f('a')").errno == 2
    assert service.received == []


def test_dropped_integration_blocks_calls(sql: Sql, function: Function, service: RemoteService) -> None:
    function("f(a VARCHAR)")
    sql.rows("DROP API INTEGRATION gateway")
    assert sql.error("SELECT f('a')").errno == 2003
    assert service.received == []


@pytest.mark.parametrize(
    ("signature", "returns", "clauses"),
    [
        ("f(a GEOGRAPHY)", "VARIANT", ""),
        ("f(a VARCHAR)", "DATE", ""),
        ("f(a VARCHAR)", "BINARY", ""),
        ("f(a VARCHAR b VARCHAR)", "VARIANT", ""),
        ("f(a VARCHAR)", "VARIANT", "MAX_BATCH_ROWS = 0"),
        ("f(a VARCHAR)", "VARIANT", "MAX_BATCH_ROWS = many"),
        ("f(a VARCHAR)", "VARIANT", "COMPRESSION = BROTLI"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a')"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a_b' = 'c')"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a b' = 'c')"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a' = 'two  blanks')"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a' = 'new\\nline')"),
        ("f(a VARCHAR)", "VARIANT", "HEADERS = ('a' = '猫')"),
        ("f(a VARCHAR)", "VARIANT", f"HEADERS = ('a' = '{'x' * 9000}')"),
        ("f(a VARCHAR)", "VARIANT", "CONTEXT_HEADERS = (CURRENT_STATEMENT)"),
        ("f(a VARCHAR)", "VARIANT", "CONTEXT_HEADERS = CURRENT_USER"),
        ("f(a VARCHAR)", "VARIANT", "REQUEST_TRANSLATOR = t"),
        ("f(a VARCHAR)", "VARIANT", "LANGUAGE PYTHON"),
        ("nowhere.f(a VARCHAR)", "VARIANT", ""),
    ],
)
def test_function_with_wrong_clauses_is_refused(
    sql: Sql, function: Function, signature: str, returns: str, clauses: str
) -> None:
    with pytest.raises(Error) as failure:
        function(signature, returns, clauses)
    assert failure.value.errno in {2, 1003, 1008, 2003}
    assert sql.error("SELECT f('a')").errno == 2


def test_function_needs_an_existing_integration(sql: Sql) -> None:
    statement = "CREATE EXTERNAL FUNCTION f(a VARCHAR) RETURNS VARIANT API_INTEGRATION = nope AS 'https://a/'"
    assert sql.error(statement).errno == 2003


# Grants.


def grants(sql: Sql, thing: str) -> list[tuple[Any, ...]]:
    return [(row[0], row[4]) for row in sql.rows(f"SHOW GRANTS ON {thing}")]


def test_grants_are_shown_until_they_are_revoked(sql: Sql, function: Function) -> None:
    function("f(a VARCHAR)")
    sql.rows("GRANT USAGE ON FUNCTION f(STRING) TO ROLE analyst")
    sql.rows('GRANT USAGE ON FUNCTION f(VARCHAR) TO ROLE "An alyst"')
    sql.rows("GRANT USAGE ON FUNCTION f(VARCHAR) TO ROLE analyst")
    assert grants(sql, "FUNCTION f(VARCHAR)") == [("USAGE", "ANALYST"), ("USAGE", "An alyst")]
    sql.rows("REVOKE USAGE ON FUNCTION f(VARCHAR) FROM ROLE analyst")
    assert grants(sql, "FUNCTION f(VARCHAR)") == [("USAGE", "An alyst")]


def test_replacing_or_dropping_drops_grants(sql: Sql, function: Function) -> None:
    function("f(a VARCHAR)")
    sql.rows("CREATE STAGE s")
    for thing, privilege in (
        ("FUNCTION f(VARCHAR)", "USAGE"),
        ("STAGE s", "READ"),
        ("INTEGRATION gateway", "USAGE"),
    ):
        sql.rows(f"GRANT {privilege} ON {thing} TO ROLE r")
        assert grants(sql, thing) == [(privilege, "R")]
    function("f(a VARCHAR)")
    sql.rows("DROP STAGE s")
    sql.rows("CREATE STAGE s")
    sql.rows("DROP INTEGRATION gateway")
    create(sql, AWS, "gateway")
    for thing in ("FUNCTION f(VARCHAR)", "STAGE s", "INTEGRATION gateway"):
        assert grants(sql, thing) == []
    sql.rows("DROP INTEGRATION gateway")


@pytest.mark.parametrize(
    "thing",
    [
        "STAGE nope",
        "FUNCTION nope(VARCHAR)",
        "INTEGRATION nope",
        "SCHEMA nope",
        "DATABASE nope",
        "SCHEMA nope.public",
    ],
)
def test_grant_on_a_missing_object_is_an_error(sql: Sql, thing: str) -> None:
    assert sql.error(f"GRANT USAGE ON {thing} TO ROLE r").errno == 2003
    assert sql.error(f"SHOW GRANTS ON {thing}").errno == 2003


@pytest.mark.parametrize(
    "statement",
    [
        "GRANT ROLE a TO ROLE b",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ROLE r",
        "GRANT OWNERSHIP ON TABLE t TO ROLE r",
        "GRANT USAGE ON SCHEMA public TO USER u",
        "SHOW GRANTS TO ROLE r",
    ],
)
def test_other_grants_are_refused(sql: Sql, statement: str) -> None:
    assert sql.error(statement).errno in {2, 1003}


def test_database_schema_and_warehouse_may_be_granted(sql: Sql) -> None:
    for thing in ("DATABASE local", "SCHEMA local.public", "WAREHOUSE any_one"):
        sql.rows(f"GRANT USAGE ON {thing} TO ROLE r")
        assert ("USAGE", "R") in grants(sql, thing)


# Sessions.


def test_use_sets_the_current_objects(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    for statement, database, current in (
        ("USE DATABASE local", "LOCAL", "PUBLIC"),
        (f"USE SCHEMA {schema}", "LOCAL", schema),
        ("USE local", "LOCAL", "PUBLIC"),
        (f"USE local.{schema}", "LOCAL", schema),
        ("USE SCHEMA local.public;", "LOCAL", "PUBLIC"),
    ):
        sql.rows(statement)
        assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == (database, current)
    sql.rows("USE ROLE analyst")
    sql.rows('USE WAREHOUSE "Small one"')
    sql.rows("USE SECONDARY ROLES NONE")
    assert sql.row("SELECT CURRENT_ROLE(), CURRENT_WAREHOUSE()") == ("ANALYST", "Small one")


@pytest.mark.parametrize("statement", ["USE nope", "USE DATABASE nope", "USE SCHEMA nope", "USE nope.public"])
def test_use_of_a_missing_object_is_an_error(sql: Sql, statement: str) -> None:
    before = sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()")
    assert sql.error(statement).errno == 2003
    assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == before


def test_stage_is_looked_up_in_the_current_schema(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE STAGE s COMMENT = 'first'")
    sql.rows(f"CREATE SCHEMA {schema}_2")
    assert sql.error("LIST @s").errno == 2003
    sql.rows("CREATE STAGE s COMMENT = 'second'")
    assert [row["comment"] for row in sql.records("SHOW STAGES IN SCHEMA")] == ["second"]
    sql.rows(f"USE SCHEMA {schema}")
    assert [row["comment"] for row in sql.records("SHOW STAGES IN SCHEMA")] == ["first"]
    assert sql.rows(f"LIST @{schema}_2.s") == []


def test_new_database_has_a_public_schema_and_becomes_current(sql: Sql) -> None:
    sql.rows("CREATE DATABASE IF NOT EXISTS other")
    assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == ("OTHER", "PUBLIC")
    sql.rows("CREATE OR REPLACE STAGE s")
    [stage] = sql.records("SHOW STAGES IN DATABASE other")
    assert (stage["name"], stage["database_name"], stage["schema_name"]) == ("S", "OTHER", "PUBLIC")


def test_dropped_schema_loses_its_stages_and_functions(sql: Sql, function: Function) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE STAGE s")
    function("f(a VARCHAR)")
    sql.rows(f"DROP SCHEMA {schema}")
    assert sql.row("SELECT CURRENT_DATABASE(), CURRENT_SCHEMA()") == ("LOCAL", None)
    assert sql.error("LIST @s").errno == 90105
    assert sql.error("CREATE TABLE t (a INT)").errno in {90105, 90106}
    sql.rows(f"CREATE SCHEMA {schema}")
    assert sql.error("LIST @s").errno == 2003
    assert sql.error("SELECT f('a')").errno == 2


def test_replaced_schema_is_empty(sql: Sql) -> None:
    schema = sql.value("SELECT CURRENT_SCHEMA()")
    sql.rows("CREATE STAGE s")
    sql.rows(f"CREATE OR REPLACE SCHEMA local.{schema}")
    assert sql.error("LIST @s").errno == 2003


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER SESSION SET USE_CACHED_RESULT = FALSE",
        "alter session set query_tag = 'it''s = x'",
        "ALTER SESSION SET STATEMENT_TIMEOUT_IN_SECONDS = 60 QUERY_TAG = 'x';",
        "ALTER SESSION UNSET QUERY_TAG, USE_CACHED_RESULT",
    ],
)
def test_parameters_without_effect_may_be_set(sql: Sql, statement: str) -> None:
    assert sql.value(statement) == "Statement executed successfully."


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER SESSION SET TIMEZONE = 'Europe/Berlin'",
        "ALTER SESSION SET BINARY_OUTPUT_FORMAT = 'BASE64'",
        "ALTER SESSION SET QUERY_TAG = 'x' TIMEZONE = 'Asia/Tokyo'",
        "ALTER SESSION UNSET TIMEZONE",
    ],
)
def test_other_parameters_are_unsupported(sql: Sql, statement: str) -> None:
    assert sql.error(statement).errno == 2


def test_suspended_warehouse_runs_no_query(sql: Sql) -> None:
    sql.rows("CREATE TABLE t (a INT)")
    sql.rows("USE WAREHOUSE w")
    sql.rows("ALTER WAREHOUSE w SUSPEND")
    for statement in ("SELECT 1", "INSERT INTO t VALUES (1)", "DELETE FROM t"):
        assert sql.error(statement).errno == 606
    assert sql.rows("SHOW STAGES IN SCHEMA") == []
    sql.rows("USE WAREHOUSE other")
    assert sql.value("SELECT COUNT(*) FROM t") == 0
    sql.rows("ALTER WAREHOUSE w RESUME")
    sql.rows("USE WAREHOUSE w")
    assert sql.value("SELECT 1") == 1


def test_context_functions_return_the_session(sql: Sql) -> None:
    row = sql.row("SELECT CURRENT_USER(), CURRENT_ACCOUNT(), CURRENT_REGION(), CURRENT_DATABASE()")
    assert row == ("LOCAL", ACCOUNT.upper(), "LOCAL", "LOCAL")


def test_allowlist_names_the_accounts_host(sql: Sql) -> None:
    assert f'"host": "{ACCOUNT_HOST}"' in sql.value("SELECT SYSTEM$ALLOWLIST()")
    private = ACCOUNT_HOST.replace(".snow", ".privatelink.snow")
    assert f'"host": "{private}"' in sql.value("SELECT SYSTEM$ALLOWLIST_PRIVATELINK()")


# Errors.

UNSUPPORTED = [
    "CREATE FUNCTION g(a VARCHAR) RETURNS VARCHAR AS 'a'",
    "CREATE OR REPLACE FUNCTION g(a VARCHAR) RETURNS VARCHAR AS $$ a $$",
    "CREATE FUNCTION g(a VARCHAR) RETURNS TABLE (x VARCHAR) AS 'SELECT a'",
    "CREATE FUNCTION g(a VARCHAR) RETURNS VARCHAR LANGUAGE PYTHON HANDLER = 'h' AS $$x$$",
    "CREATE FUNCTION g(a VARCHAR) RETURNS VARCHAR LANGUAGE JAVASCRIPT AS 'return A;'",
    "CREATE AGGREGATE FUNCTION g(a INT) RETURNS INT LANGUAGE PYTHON HANDLER = 'h' AS $$x$$",
    "CREATE PROCEDURE g() RETURNS VARCHAR LANGUAGE SQL AS $$ BEGIN RETURN 'x'; END $$",
    "CREATE STREAM g ON TABLE t",
    "CREATE SECRET g TYPE = GENERIC_STRING SECRET_STRING = 'x'",
    "CREATE MACRO g(a) AS a",
    "CREATE FILE FORMAT g TYPE = CSV",
    "CREATE PIPE g AS COPY INTO t FROM @s",
    "CREATE EXTERNAL TABLE g (a INT) LOCATION = @s",
    "CREATE DYNAMIC TABLE g TARGET_LAG = '1 minute' WAREHOUSE = w AS SELECT 1 AS a",
    "CREATE MATERIALIZED VIEW g AS SELECT 1 AS a",
    "CREATE ICEBERG TABLE g (a INT)",
    "CREATE DATABASE g CLONE local",
    "CREATE STAGE g URL = 's3://bucket/'",
    "CREATE STAGE g DIRECTORY = (ENABLE = TRUE AUTO_REFRESH = TRUE)",
    "CREATE USER g",
    "CREATE ROLE g",
    "CREATE WAREHOUSE g",
    "COPY INTO t FROM @s",
    "COPY INTO @s FROM t",
    "EXECUTE IMMEDIATE $$BEGIN RETURN 1; END$$",
    "CALL g()",
    "CALL SYSTEM$WAIT(1)",
    "EXPLAIN SELECT 1",
    "COMMENT ON TABLE t IS 'x'",
    "UNDROP TABLE t",
    "SHOW USERS",
    "SHOW ROLES",
    "SHOW PARAMETERS",
    "PRAGMA version",
    "COPY FILES INTO @s FROM @s",
    "ALTER STAGE s REFRESH SUBPATH = 'a'",
    "LIST @s PATTERN = '.*'",
    "REMOVE @s PATTERN = '.*'",
    "BEGIN SELECT 1; END",
]


@pytest.mark.parametrize("statement", UNSUPPORTED)
def test_unsupported_statement_fails_without_effect(sql: Sql, statement: str) -> None:
    sql.rows("CREATE TABLE t (a INT)")
    sql.rows("CREATE STAGE s")
    assert sql.error(statement).errno in {2, 8, 1003}
    assert sql.error("SELECT g('a')").errno == 2
    assert sql.error("SELECT * FROM g").errno == 2003
    assert sql.error("USE DATABASE g").errno == 2003
    assert sql.rows("SELECT * FROM t") == []
    assert sql.names("SHOW STAGES IN SCHEMA") == ["S"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
        "DROP TABLE t; SELECT 1;",
        "DROP STAGE s; SELECT 1",
        "LIST @s; SELECT 1",
    ],
)
def test_several_statements_fail_without_effect(sql: Sql, statement: str) -> None:
    sql.rows("CREATE TABLE t (a INT)")
    sql.rows("CREATE STAGE s")
    error = sql.error(statement)
    assert (error.errno, error.sqlstate) == (8, "0A000")
    assert sql.rows("SELECT * FROM t") == []
    assert sql.rows("LIST @s") == []


@pytest.mark.parametrize(
    ("statement", "errno"),
    [
        ("SELECT 'unfinished", 1003),
        ("SELECT", 1003),
        ("SELECT FROM WHERE", 1003),
        ("SELECT * FROM nowhere", 2003),
        ("SELECT nothing FROM (VALUES (1)) AS t(a)", 904),
        ("SELECT 'abc'::INT", 100038),
        ("SELECT 1 +", 1003),
        ("-- nothing", 900),
        ("SELECT $1 FROM @s", 2),
        ("SELECT * FROM read_text('/etc/hostname')", 2),
        ("SELECT * FROM read_csv('/etc/passwd')", 2),
        ("DROP TABLE nowhere", 2003),
        ("DROP STAGE nowhere", 2003),
        ("ALTER STAGE nowhere REFRESH", 2003),
        ("DESC STAGE nowhere", 2003),
        ("CREATE STAGE nowhere.public.s", 2003),
    ],
)
def test_invalid_statement_is_an_sql_error(sql: Sql, statement: str, errno: int) -> None:
    error = sql.error(statement)
    assert error.errno == errno
    assert "Traceback" not in str(error)
    assert sql.value("SELECT 1") == 1


def test_runtime_error_is_an_sql_error(sql: Sql) -> None:
    digits = "9" * 38
    assert sql.error(f"SELECT {digits} * {digits}").errno == 2
    assert sql.value("SELECT 1") == 1
