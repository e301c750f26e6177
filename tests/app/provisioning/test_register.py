"""register and unregister against the Snowflake emulator; no service is called."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snowflake.connector

from app.client import ClientError
from app.emulator import LocalServer
from app.provisioning.register import Registration, register, unregister
from app.provisioning.user_session import StatementFailed, UserSession

URL = "https://abc.execute-api.eu-central-1.amazonaws.com/prod/classify"
VARIABLES = {
    "database": "LOCAL",
    "schema": "PUBLIC",
    "stage": "images",
    "function": "ext_classify",
    "integration": "gateway",
    "api_provider": "aws_api_gateway",
    "aws_role_arn": "arn:aws:iam::123456789012:role/gateway",
    "max_batch_rows": "64",
    "url": URL,
    "allowed_prefix": URL,
}
ONE = "ext_classify(VARCHAR)"
TWO = "ext_classify(VARCHAR, OBJECT)"
Answer = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class ScriptedSession(UserSession):
    """The emulator, with scripted results for some statements; records all statements."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.statements: list[str] = []
        self.scripted: dict[str, Answer] = {}

    def rows(self, statement: str) -> list[dict[str, Any]]:
        self.statements.append(statement)
        for start, answer in self.scripted.items():
            if statement.startswith(start):
                return answer(super().rows(statement) if start.startswith(("SHOW", "DESC")) else [])
        return super().rows(statement)

    def ran(self, start: str) -> list[str]:
        return [statement for statement in self.statements if statement.startswith(start)]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture
def user_session(server: LocalServer) -> Iterator[ScriptedSession]:
    with ScriptedSession(snowflake.connector.connect(**server.connect_arguments)) as opened:
        yield opened
    catalog = server.local.catalog
    for things in (catalog.functions, catalog.integrations, catalog.grants, catalog.stages):
        things.clear()


def run(
    user_session: UserSession, provider: str = "aws", *, makes_integration: bool = True, **variables: str
) -> str:
    return "\n".join(register(user_session, Registration(provider, VARIABLES | variables, makes_integration)))


def outcomes(printed: str) -> dict[str, str]:
    """The action for each object."""
    found = re.findall(r"^(created|unchanged|altered|replaced|granted) +(.+)$", printed, re.MULTILINE)
    return {thing: done for done, thing in found}


def properties(user_session: UserSession, statement: str) -> dict[str, str]:
    return {
        row["property"]: row.get("property_value", row.get("value")) for row in user_session.rows(statement)
    }


def grantees(user_session: UserSession, thing: str) -> set[tuple[str, str]]:
    return {(row["privilege"], row["grantee_name"]) for row in user_session.rows(f"SHOW GRANTS ON {thing}")}


# --- integrations ---------------------------------------------------------------------------------


def test_prefixes_of_other_functions_are_kept(user_session: ScriptedSession) -> None:
    other = URL.replace("classify", "a,b'c\\")
    run(user_session)
    printed = run(user_session, url=other, allowed_prefix=other, function="other")
    assert outcomes(printed)['API INTEGRATION "GATEWAY"'] == "altered"
    shown = properties(user_session, "DESC INTEGRATION gateway")["API_ALLOWED_PREFIXES"]
    assert shown == f"{URL},{other}"
    assert outcomes(run(user_session))['API INTEGRATION "GATEWAY"'] == "unchanged"
    assert properties(user_session, "DESC INTEGRATION gateway")["API_ALLOWED_PREFIXES"] == shown


def test_changed_role_is_altered_and_the_prefixes_are_kept(user_session: ScriptedSession) -> None:
    run(user_session)
    user_session.statements.clear()
    run(user_session, aws_role_arn="arn:aws:iam::123456789012:role/other")
    [alteration] = user_session.ran("ALTER API INTEGRATION")
    assert "PREFIXES" not in alteration


def test_integration_of_another_provider_is_rejected(user_session: ScriptedSession) -> None:
    run(user_session)
    azure = {"azure_tenant_id": "t", "azure_application_id": "a"}
    with pytest.raises(ClientError, match="provider aws_api_gateway, which cannot be changed"):
        run(user_session, "azure", **azure)
    run(user_session, "azure", integration="azure", **azure)
    with pytest.raises(ClientError, match="tenant t, which cannot be changed"):
        run(user_session, "azure", integration="azure", **azure | {"azure_tenant_id": "other"})


def test_existing_integration_is_not_altered(user_session: ScriptedSession) -> None:
    user_session.rows(
        "CREATE API INTEGRATION gateway API_PROVIDER = aws_api_gateway API_AWS_ROLE_ARN = 'x' "
        "API_ALLOWED_PREFIXES = ('https://')"
    )
    user_session.statements.clear()
    printed = run(user_session, makes_integration=False)
    assert "API INTEGRATION" not in "".join(outcomes(printed))
    assert (
        user_session.ran("CREATE API")
        == user_session.ran("ALTER")
        == user_session.ran("DESC INTEGRATION")
        == []
    )


def test_owner_role_only_gets_usage_on_the_integration(user_session: ScriptedSession) -> None:
    assert outcomes(run(user_session, owner_role='"The builder"')) == {
        'API INTEGRATION "GATEWAY"': "created",
        'USAGE ON INTEGRATION "GATEWAY" TO ROLE "The builder"': "granted",
    }
    assert grantees(user_session, "INTEGRATION gateway") == {("USAGE", "The builder")}
    assert set(outcomes(run(user_session, owner_role='"The builder"')).values()) == {"unchanged"}
    assert user_session.ran("CREATE OR REPLACE") == user_session.ran("CREATE STAGE") == []


def test_owner_role_only_gets_the_endpoint_of_a_service() -> None:
    variables = VARIABLES | {"service": 'a.b."my service"', "owner_role": "builder"}
    assert Registration("spcs", variables).statements() == [
        'GRANT SERVICE ROLE "A"."B"."my service"!ALL_ENDPOINTS_USAGE TO ROLE "BUILDER"'
    ]


def test_integration_used_by_other_functions_is_not_dropped(user_session: ScriptedSession) -> None:
    run(user_session)
    run(user_session, function="other")
    user_session.statements.clear()
    with pytest.raises(ClientError, match=r'"LOCAL"."PUBLIC"."OTHER"\(VARCHAR\), .*Nothing was dropped'):
        list(unregister(user_session, VARIABLES, drop_integration=True))
    assert user_session.ran("DROP") == []
    list(unregister(user_session, VARIABLES | {"function": "other"}, drop_integration=False))
    *_, note = unregister(user_session, VARIABLES, drop_integration=True)
    assert note.startswith("Note: every function in the account")
    assert user_session.rows("SHOW INTEGRATIONS") == []


def test_functions_are_matched_by_url_if_the_integration_is_hidden(user_session: ScriptedSession) -> None:
    run(user_session)
    run(user_session, function="other")
    run(user_session, function="far", integration="far", url="https://far/", allowed_prefix="https://far/")
    user_session.scripted["DESC FUNCTION"] = without("api_integration")
    with pytest.raises(ClientError, match="OTHER") as refusal:
        list(unregister(user_session, VARIABLES, drop_integration=True))
    assert "FAR" not in str(refusal.value)


# --- functions ------------------------------------------------------------------------------------


def without(name: str) -> Answer:
    return lambda rows: [row for row in rows if row["property"] != name]


@pytest.mark.slow
@pytest.mark.parametrize("hides", [False, True])
def test_function_of_another_integration_is_altered(user_session: ScriptedSession, hides: bool) -> None:
    run(user_session)
    if hides:
        user_session.scripted["DESC FUNCTION"] = without("api_integration")
    done = outcomes(run(user_session, integration="second"))
    assert done['FUNCTION "LOCAL"."PUBLIC"."EXT_CLASSIFY"(VARCHAR)'] == "altered"
    assert set(outcomes(run(user_session, integration="second")).values()) == {"unchanged"}


def test_function_without_a_fingerprint_is_altered(user_session: ScriptedSession) -> None:
    run(user_session)
    user_session.rows(
        f"CREATE OR REPLACE EXTERNAL FUNCTION ext_classify(url VARCHAR) RETURNS VARIANT STRICT VOLATILE "
        f"API_INTEGRATION = gateway MAX_BATCH_ROWS = 64 COMPRESSION = AUTO AS '{URL}'"
    )
    assert "altered" in outcomes(run(user_session)).values()


def test_altered_function_keeps_its_grants_without_restoring_them(user_session: ScriptedSession) -> None:
    run(user_session, caller_role="analyst")
    user_session.statements.clear()
    done = outcomes(run(user_session, max_batch_rows="7"))
    assert list(done.values()).count("altered") == 2
    assert properties(user_session, f"DESC FUNCTION {ONE}")["max_batch_rows"] == "7"
    assert grantees(user_session, f"FUNCTION {ONE}") == {("USAGE", "ANALYST")}
    assert user_session.ran("CREATE OR REPLACE") == user_session.ran("GRANT") == []


def test_function_is_replaced_where_the_account_cannot_alter_it(user_session: ScriptedSession) -> None:
    def refuse(_: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise StatementFailed("SQL compilation error")

    run(user_session, caller_role="analyst")
    user_session.scripted["CREATE OR ALTER"] = refuse
    assert list(outcomes(run(user_session, max_batch_rows="7")).values()).count("replaced") == 2
    assert grantees(user_session, f"FUNCTION {TWO}") == {("USAGE", "ANALYST")}


def test_manually_altered_function_is_replaced(user_session: ScriptedSession) -> None:
    run(user_session)
    user_session.scripted["DESC FUNCTION"] = lambda rows: [
        row | ({"value": "5"} if row["property"] == "max_batch_rows" else {}) for row in rows
    ]
    assert list(outcomes(run(user_session)).values()).count("replaced") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my fn", "a(b", "a(VARCHAR) RETURN", "a%_\\b", 'say ""hi""', "x'y"])
def test_quoted_names_are_unchanged_the_second_time_and_keep_their_grants(
    user_session: ScriptedSession, name: str
) -> None:
    odd = f'"{name}"'
    names = {"function": odd, "stage": odd, "integration": odd, "caller_role": odd}
    assert set(outcomes(run(user_session, **names)).values()) == {"created", "granted"}
    user_session.rows(f"GRANT USAGE ON FUNCTION {odd}(VARCHAR) TO ROLE someone")
    assert set(outcomes(run(user_session, **names)).values()) == {"unchanged"}
    run(user_session, **names, max_batch_rows="7")
    caller = ("USAGE", name.replace('""', '"'))
    assert grantees(user_session, f"FUNCTION {odd}(VARCHAR)") == {("USAGE", "SOMEONE"), caller}
    assert grantees(user_session, f"FUNCTION {odd}(VARCHAR, OBJECT)") == {caller}


def grant(privilege: str, kind: str, name: str, option: str = "false") -> dict[str, str]:
    return {"privilege": privilege, "granted_to": kind, "grantee_name": name, "grant_option": option}


GRANTS = [
    grant("OWNERSHIP", "ROLE", "OWNER", "true"),
    grant("USAGE", "ROLE", "Some one", "true"),
    grant("USAGE", "DATABASE_ROLE", "Reader"),
    grant("USAGE", "DATABASE_ROLE", "LOCAL.Viewer"),
]
RESTORED = [
    f'GRANT USAGE ON FUNCTION "LOCAL"."PUBLIC"."EXT_CLASSIFY"(VARCHAR) TO {grantee}'
    for grantee in (
        'ROLE "Some one" WITH GRANT OPTION',
        'DATABASE ROLE "LOCAL"."Reader"',
        'DATABASE ROLE "LOCAL"."Viewer"',
    )
]


def test_grants_are_printed_before_and_restored_after_a_replacement(user_session: ScriptedSession) -> None:
    run(user_session)
    user_session.scripted = {
        'SHOW GRANTS ON FUNCTION "LOCAL"."PUBLIC"."EXT_CLASSIFY"(VARCHAR)': lambda _: GRANTS,
        "GRANT": lambda _: [],
    }
    lines = register(user_session, Registration("aws", VARIABLES | {"url": f"{URL}2"}))
    user_session.statements.clear()
    printed = next(line for line in lines if line.startswith("  GRANT"))
    assert printed == "\n".join(f"  {statement};" for statement in RESTORED)
    assert user_session.ran("CREATE OR REPLACE") == []
    list(lines)
    replacement = user_session.statements.index(user_session.ran("CREATE OR REPLACE")[0])
    assert user_session.statements[replacement + 1 : replacement + 4] == RESTORED


def test_failed_grants_are_reported_at_the_end_and_do_not_stop_the_others(
    user_session: ScriptedSession,
) -> None:
    def refuse(_: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise StatementFailed("Insufficient privileges")

    user_session.scripted["GRANT USAGE ON DATABASE"] = refuse
    with pytest.raises(ClientError, match=r"MANAGE GRANTS.*: GRANT USAGE ON DATABASE .* \(Insufficient"):
        run(user_session, caller_role="analyst")
    assert grantees(user_session, f"FUNCTION {ONE}") == {("USAGE", "ANALYST")}


def test_grants_that_a_replacement_lost_are_reported_at_the_end(user_session: ScriptedSession) -> None:
    def refuse(_: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise StatementFailed("No right to do so")

    run(user_session, caller_role="analyst")
    user_session.rows(f"GRANT USAGE ON FUNCTION {ONE} TO ROLE someone")
    user_session.scripted[
        'GRANT USAGE ON FUNCTION "LOCAL"."PUBLIC"."EXT_CLASSIFY"(VARCHAR) TO ROLE "ANALYST"'
    ] = refuse
    with pytest.raises(ClientError, match=r'must run these: .*TO ROLE "ANALYST" \(No right'):
        run(user_session, url=f"{URL}2")
    assert grantees(user_session, f"FUNCTION {ONE}") == {("USAGE", "SOMEONE")}
    assert grantees(user_session, f"FUNCTION {TWO}") == {("USAGE", "ANALYST")}


def test_invalid_name_is_rejected_before_any_statement(user_session: ScriptedSession) -> None:
    with pytest.raises(ClientError, match="The variable warehouse"):
        run(user_session, service_role="classifier", warehouse="'")
    assert user_session.statements == []


# --- stages ---------------------------------------------------------------------------------------


def test_stage_without_directory_table_gets_one(user_session: ScriptedSession) -> None:
    user_session.rows("CREATE STAGE images ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    printed = run(user_session)
    assert 'STAGE "LOCAL"."PUBLIC"."IMAGES": directory table enabled' in outcomes(printed)
    assert "Note:" not in printed
    assert user_session.ran("ALTER STAGE")[-1].endswith("REFRESH")
    assert user_session.rows("SHOW STAGES")[0]["directory_enabled"] == "Y"
    assert set(outcomes(run(user_session)).values()) == {"unchanged"}


def test_client_side_encrypted_stage_is_noted(user_session: ScriptedSession) -> None:
    user_session.rows("CREATE STAGE images DIRECTORY = (ENABLE = TRUE)")
    assert 'Note: the files of stage "LOCAL"."PUBLIC"."IMAGES" are client-side encrypted' in run(user_session)


@pytest.mark.slow
def test_external_stage_is_granted_usage(user_session: ScriptedSession) -> None:
    run(user_session)
    user_session.scripted["SHOW STAGES"] = lambda rows: [row | {"type": "EXTERNAL"} for row in rows]
    run(user_session, caller_role="analyst", service_role="classifier")
    assert grantees(user_session, "STAGE images") == {("USAGE", "ANALYST"), ("USAGE", "CLASSIFIER")}
    done = outcomes(run(user_session, caller_role="analyst", service_role="classifier"))
    assert set(done.values()) == {"unchanged"}


def test_readers_of_a_stage_in_another_schema_get_usage_on_it(user_session: ScriptedSession) -> None:
    user_session.rows("CREATE SCHEMA IF NOT EXISTS photos")
    roles = {"caller_role": "analyst", "service_role": "classifier"}
    run(user_session, stage="photos.st", **roles)
    assert grantees(user_session, "SCHEMA photos") == {("USAGE", "ANALYST"), ("USAGE", "CLASSIFIER")}
    assert grantees(user_session, "SCHEMA public") == {("USAGE", "ANALYST")}
    assert grantees(user_session, "STAGE photos.st") == {("READ", "ANALYST"), ("READ", "CLASSIFIER")}
    assert set(outcomes(run(user_session, stage="photos.st", **roles)).values()) == {"unchanged"}


def test_every_statement_matches_its_description() -> None:
    roles = {name: f'"{name}"' for name in ("caller_role", "service_role", "warehouse", "api_key")}
    for provider in ("aws", "azure", "google", "spcs"):
        others = {"azure_tenant_id": "t", "azure_application_id": "a", "google_audience": "g", "service": "s"}
        for about, statement in Registration(provider, VARIABLES | roles | others).steps():
            starts = {
                "use": "USE SCHEMA ",
                "stage": 'CREATE STAGE IF NOT EXISTS "IMAGES"',
                "integration": 'CREATE API INTEGRATION IF NOT EXISTS "GATEWAY"',
                "alteration": 'ALTER API INTEGRATION "GATEWAY" SET',
                "trust": 'DESC INTEGRATION "GATEWAY"',
                "key": 'ALTER API INTEGRATION "GATEWAY" SET',
                "function": "CREATE OR REPLACE ",
                "grant": f"GRANT {about.privilege} ON {about.thing.partition(' ')[0]} ",
            }
            assert statement.startswith(starts[about.kind])
            if about.kind == "grant":
                name = re.split(r"[. ](?=\")", about.thing)[-1]
                assert statement.endswith(f'{name} TO ROLE "{about.role}"')
            if about.kind == "function":
                types = re.findall(r"\w+ (\w+)[,)]", statement.splitlines()[0])
                assert ", ".join(types) == about.types
                shown = [value for key, value in about.properties.items() if key != "api_integration"]
                assert [value for value in shown if value not in statement] == []
