"""Sets up the function in Snowflake.

A Registration turns the SQL files into statements, each with the object that it creates or alters; register()
executes them. It is idempotent: objects that already match stay unchanged.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from app.client import ClientError
from app.names import directory_of, parse_identifier, quote_identifier, quote_string
from app.provisioning.ddl import load, load_with_fingerprint
from app.provisioning.gateway import describe_trust
from app.provisioning.user_session import (
    StatementFailed,
    UserSession,
    allowed_prefixes,
    describe_function,
    describe_integration,
    describe_stage,
    functions_through,
    has_integration,
    is_client_side_encrypted,
    is_external_stage,
)
from model.formats import IMAGE_SUFFIXES

INTEGRATION_FILES = {
    "aws": "02_api_integration_aws.sql",
    "azure": "03_api_integration_azure.sql",
    "google": "04_api_integration_google.sql",
}
PROVIDERS = (*INTEGRATION_FILES, "spcs")
# Argument types of the function, and the NULL handling that DESC FUNCTION shows.
SIGNATURES = {"VARCHAR": "RETURNS NULL ON NULL INPUT", "VARCHAR, OBJECT": "CALLED ON NULL INPUT"}

Kind: TypeAlias = Literal["use", "stage", "integration", "alteration", "trust", "key", "function", "grant"]


@dataclass(frozen=True)
class About:
    """What a statement creates or alters: `thing` is the kind and full name, `role` a name as stored.

    For a function also its argument types, and the properties that SHOW and DESC should report.
    """

    kind: Kind
    thing: str
    privilege: str = ""
    role: str = ""
    types: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


_USE = About("use", "")
_API_KEY = re.compile(r"SET\s+API_KEY = '")
_NOTE_ON_SERVICE_ROLE = (
    "Note: the service reads stages as its owner role. Grant it the stage with --service-role ROLE."
)


@dataclass(frozen=True)
class Registration:
    """What to set up; `variables` are those of the SQL files.

    With an `owner_role`, only what that role needs to set up the functions itself.
    """

    provider: str
    variables: Mapping[str, str]
    makes_integration: bool = True

    @property
    def function(self) -> tuple[str, ...]:
        return (*self._schema, *self._parts("function"))

    @property
    def stage(self) -> tuple[str, ...]:
        """Database, schema and name; the function's database and schema are the defaults."""
        parts = self._parts("stage")
        return (*self._schema[: 3 - len(parts)], *parts)

    @property
    def integration(self) -> str:
        return self._parts("integration")[0]

    def steps(self) -> Iterator[tuple[About, str]]:
        """Each statement with its About. Raises ClientError for a missing or invalid variable."""
        try:
            for name, registration in self._files():
                yield from registration.steps_of(name)
        except ValueError as error:
            raise ClientError(str(error)) from None

    def statements(self) -> list[str]:
        """All statements for an empty account, to run by hand; the API key is masked."""
        masked = {"api_key": "***"} if "api_key" in self.variables else {}
        shown = Registration(self.provider, {**self.variables, **masked}, self.makes_integration)
        return [statement for about, statement in shown.steps() if about.kind != "alteration"]

    def steps_of(self, name: str) -> Iterator[tuple[About, str]]:
        """The steps of one file. Raises ValueError."""
        if name in {"11_external_functions.sql", "13_service_functions.sql"}:
            statements, fingerprint = load_with_fingerprint(name, self.variables)
        else:
            statements, fingerprint = load(name, self.variables), ""
        return ((self._about(statement, fingerprint), statement) for statement in statements)

    def _files(self) -> Iterator[tuple[str, "Registration"]]:
        """The SQL files to run, in order; grants only for the roles that are set."""
        given = self.variables.keys()
        is_external, is_for_another = self.provider != "spcs", "owner_role" in given
        functions = "11_external_functions.sql" if is_external else "13_service_functions.sql"
        files = {
            "01_stage.sql": not is_for_another,
            INTEGRATION_FILES.get(self.provider, ""): is_external and self.makes_integration,
            "05_api_key.sql": "api_key" in given,
            "06_grant_integration.sql": is_for_another and is_external,
            "12_grant_endpoint.sql": is_for_another and not is_external,
            functions: not is_for_another,
            "21_grant_callers.sql": "caller_role" in given,
            "23_grant_warehouse.sql": {"service_role", "warehouse"} <= given,
        }
        yield from ((name, self) for name, is_wanted in files.items() if is_wanted)
        if "caller_role" in given and self.stage[:2] != self._schema:
            yield "22_grant_service.sql", self._for_stage_reader(self.variables["caller_role"])
        if "service_role" in given:
            yield "22_grant_service.sql", self._for_stage_reader(self.variables["service_role"])

    def _for_stage_reader(self, role: str) -> "Registration":
        """The registration with the stage's database and schema, on which its readers need USAGE."""
        database, schema = map(quote_identifier, self.stage[:2])
        own = {"database": database, "schema": schema, "service_role": role}
        return Registration(self.provider, {**self.variables, **own})

    def _about(self, statement: str, fingerprint: str) -> About:
        match statement.split(maxsplit=2):
            case ["USE", *_]:
                return _USE
            case ["GRANT", *_]:
                return self._about_grant(statement)
            case ["CREATE", "STAGE", _]:
                return About("stage", f"STAGE {quote_identifier(*self.stage)}")
            case ["CREATE", "OR", _]:
                has_options = statement.partition("\n")[0].endswith(", options OBJECT)")
                return self._about_function("VARCHAR, OBJECT" if has_options else "VARCHAR", fingerprint)
            case ["ALTER", "API", _] if _API_KEY.search(statement):
                return About("key", f"API key of {self._api_integration}")
        kinds: dict[str, Kind] = {"CREATE": "integration", "ALTER": "alteration", "DESC": "trust"}
        return About(kinds[statement.partition(" ")[0]], self._api_integration)

    def _about_grant(self, statement: str) -> About:
        """A grant names a function or stage without its schema, which a USE before it sets."""
        granted, _, role = statement.removeprefix("GRANT ").rpartition(" TO ROLE ")
        privilege, on, thing = granted.partition(" ON ")
        kind = thing.partition(" ")[0]
        if kind == "STAGE":
            thing = f"STAGE {quote_identifier(*self.stage)}"
        elif kind == "FUNCTION":
            thing = f"FUNCTION {quote_identifier(*self.function)}({thing.rpartition('(')[2]}"
        [name] = parse_identifier(role)
        return About("grant", thing, privilege, name) if on else About("grant", granted, "", name)

    def _about_function(self, types: str, fingerprint: str) -> About:
        is_external = self.provider != "spcs"
        properties = {
            "returns": "VARIANT",
            "null handling": SIGNATURES[types],
            "volatility": "VOLATILE",
            "max_batch_rows": self.variables["max_batch_rows"],
            "body": self.variables["url"] if is_external else "/classify",
            "comment": fingerprint,
        }
        if is_external:
            properties |= {"compression": "AUTO", "api_integration": self.integration}
        thing = f"FUNCTION {quote_identifier(*self.function)}({types})"
        return About("function", thing, types=types, properties=properties)

    @property
    def _schema(self) -> tuple[str, ...]:
        return (*self._parts("database"), *self._parts("schema"))

    @property
    def _api_integration(self) -> str:
        return f"API INTEGRATION {quote_identifier(self.integration)}"

    def _parts(self, variable: str) -> tuple[str, ...]:
        return parse_identifier(self.variables[variable])


def register(user_session: UserSession, registration: Registration) -> Iterator[str]:
    """Yield a line per object as it is set up, and the trust policies for the cloud provider.

    Raises ClientError, also at the end for grants that failed: those of a replaced function too.
    """
    failed: list[str] = []
    steps = list(registration.steps())  # invalid variables are found before any change
    for about, statement in steps:
        yield from _execute(user_session, registration, about, statement, failed)
    if registration.provider == "spcs" and not {"owner_role", "service_role"} & registration.variables.keys():
        yield _NOTE_ON_SERVICE_ROLE
    if failed:
        raise ClientError(
            "A grant needs the owner of the object, or a role with MANAGE GRANTS, which must run these: "
            f"{'; '.join(failed)}."
        )


def verify(
    user_session: UserSession, registration: Registration, samples: Sequence[Path]
) -> Iterator[tuple[str, Any]]:
    """Yield the function's results for the samples' bytes, then for an image of the stage, if it has one."""
    for sample in samples:
        text = base64.b64encode(sample.read_bytes()).decode()
        yield sample.name, _call(user_session, registration, quote_string(text))
    stage = quote_identifier(*registration.stage)
    user_session.rows(f"ALTER STAGE {stage} REFRESH")
    is_image = " OR ".join(f"relative_path ILIKE '%{suffix}'" for suffix in sorted(IMAGE_SUFFIXES))
    files = user_session.rows(
        f"SELECT relative_path, file_url FROM {directory_of(stage)} WHERE {is_image} LIMIT 1"  # noqa: S608
    )
    for file in files:
        source = quote_string(file["file_url"])
        yield f"@{stage}/{file['relative_path']}", _call(user_session, registration, source)


def unregister(
    user_session: UserSession, variables: Mapping[str, str], *, drop_integration: bool
) -> Iterator[str]:
    """Drop the functions and, if requested, the integration; the stage and its images remain.

    Raises ClientError, before anything is dropped, if other visible functions use the integration. Functions
    of other roles may use it too, and are not visible.
    """
    names = ["91_drop_functions.sql"] + (["92_drop_integration.sql"] if drop_integration else [])
    try:
        statements = [statement for name in names for statement in load(name, variables)]
    except ValueError as error:
        raise ClientError(str(error)) from None
    if drop_integration:
        _require_unused_integration(user_session, Registration("", variables))
    for statement in statements:
        [row] = user_session.rows(statement)
        if not statement.startswith("USE "):
            yield str(row["status"])
    if drop_integration:
        yield "Note: every function in the account that used the integration now fails."


def _require_unused_integration(user_session: UserSession, registration: Registration) -> None:
    integration = registration.integration
    if not has_integration(user_session, integration):
        return
    own = {(registration.function, types) for types in SIGNATURES}
    others = [
        f"{quote_identifier(*name)}({types})"
        for name, types in functions_through(user_session, integration)
        if (name, types) not in own
    ]
    if others:
        raise ClientError(
            f"An integration must be dropped after all functions that use it. API integration "
            f"{quote_identifier(integration)} allows the URLs of: {', '.join(others)}. Nothing was dropped; "
            "to drop it anyway, run 92_drop_integration.sql."
        )


def _execute(
    user_session: UserSession, registration: Registration, about: About, statement: str, failed: list[str]
) -> Iterator[str]:
    match about.kind:
        case "use":
            user_session.rows(statement)
        case "stage":
            yield from _keep_stage(user_session, registration, statement)
        case "integration":
            yield from keep_integration(user_session, registration, statement)
        case "alteration":
            pass  # skipped: it would replace the list of prefixes; keep_integration extends it
        case "trust":
            properties = describe_integration(user_session, registration.integration)
            trust = describe_trust(registration.provider, properties, registration.variables["url"])
            yield f"\n{trust}\n"
        case "key":
            user_session.rows(statement)  # Snowflake does not show the key, so it is always set
            yield _line("altered", about.thing)
        case "function":
            yield from _keep_function(user_session, registration, about, statement, failed)
        case "grant":
            with _noting_failure(statement, failed):
                yield _grant(user_session, registration, about, statement)


def _keep_stage(user_session: UserSession, registration: Registration, statement: str) -> Iterator[str]:
    """Create the stage unless it exists; enable the directory table of an existing one."""
    name = quote_identifier(*registration.stage)
    [row] = user_session.rows(statement)
    if "already exists" not in str(row["status"]):
        yield _line("created", f"STAGE {name}")
        return
    stage = describe_stage(user_session, registration.stage)
    if stage["directory_enabled"] == "N":
        user_session.rows(f"ALTER STAGE {name} SET DIRECTORY = (ENABLE = TRUE)")
        user_session.rows(f"ALTER STAGE {name} REFRESH")
        yield _line("altered", f"STAGE {name}: directory table enabled")
    else:
        yield _line("unchanged", f"STAGE {name}")
    if is_client_side_encrypted(stage):
        yield (
            f"Note: the files of stage {name} are client-side encrypted, so the service cannot fetch them by "
            "URL and downloads each with the connector, which is slower. The encryption of a stage cannot be "
            "changed; register with another stage name to create one with SNOWFLAKE_SSE."
        )


def _keep_function(
    user_session: UserSession, registration: Registration, about: About, statement: str, failed: list[str]
) -> Iterator[str]:
    """Alter the function if it differs, or replace it.

    Replacing drops its grants, unless the account has the behavior change 2433 (bundle 2026_08).
    """
    there = describe_function(user_session, registration.function, about.types)
    if there and _matches(there, about.properties):
        yield _line("unchanged", about.thing)
        return
    if there and _alter(user_session, registration, about, statement):
        yield _line("altered", about.thing)
        return
    grants = _grants_on(user_session, about.thing, registration.function[0]) if there else []
    if grants:
        yield f"Replacing {about.thing} drops its grants, which are restored right after:"
        yield "\n".join(f"  {grant};" for grant in grants)
    user_session.rows(statement)
    for grant in grants:
        with _noting_failure(grant, failed):
            user_session.rows(grant)
    yield _line("replaced" if there else "created", about.thing)


def _alter(user_session: UserSession, registration: Registration, about: About, statement: str) -> bool:
    """Whether CREATE OR ALTER, a preview, makes the function match; it cannot change the URL."""
    try:
        user_session.rows(statement.replace("CREATE OR REPLACE", "CREATE OR ALTER", 1))
    except StatementFailed:
        return False
    return _matches(describe_function(user_session, registration.function, about.types), about.properties)


def _matches(there: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """The fingerprint in the comment covers what DESC hides, such as the integration."""
    shown = {name: value for name, value in wanted.items() if name in there and name != "comment"}
    return wanted["comment"] in there["comment"] and all(there[name] == shown[name] for name in shown)


def _grants_on(user_session: UserSession, thing: str, database: str) -> list[str]:
    """The grants as statements, without OWNERSHIP, which comes with the function."""
    grants = []
    for row in user_session.rows(f"SHOW GRANTS ON {thing}"):
        if row["privilege"] != "OWNERSHIP":
            option = str(row.get("grant_option", "false")).lower() == "true"
            grants.append(
                f"GRANT {row['privilege']} ON {thing} TO {_grantee(row, database)}"
                + (" WITH GRANT OPTION" if option else "")
            )
    return grants


def _grantee(row: Mapping[str, Any], database: str) -> str:
    """The grantee in SQL; SHOW may or may not qualify a database role with its database."""
    kind, name = str(row["granted_to"]).replace("_", " "), str(row["grantee_name"])
    if kind == "DATABASE ROLE":
        return f"{kind} {quote_identifier(database, name.removeprefix(f'{database}.'))}"
    return f"{kind} {quote_identifier(name)}"


@contextmanager
def _noting_failure(grant: str, failed: list[str]) -> Iterator[None]:
    """Add a grant that fails to `failed`, with the reason."""
    try:
        yield
    except StatementFailed as error:
        failed.append(f"{grant} ({error})")


def _grant(user_session: UserSession, registration: Registration, about: About, statement: str) -> str:
    """Grant unless granted. A service role has no privilege to look up, so it is always granted."""
    privilege, role = about.privilege, quote_identifier(about.role)
    if privilege == "READ" and is_external_stage(describe_stage(user_session, registration.stage)):
        privilege, statement = "USAGE", f"GRANT USAGE ON {about.thing} TO ROLE {role}"
    title = f"{privilege} ON {about.thing} TO ROLE {role}".removeprefix(" ON ")
    there = user_session.rows(f"SHOW GRANTS ON {about.thing}") if privilege else []
    wanted = privilege, "ROLE", about.role
    if any((row["privilege"], row["granted_to"], row["grantee_name"]) == wanted for row in there):
        return _line("unchanged", title)
    user_session.rows(statement)
    return _line("granted", title)


def _call(user_session: UserSession, registration: Registration, source: str) -> Any:
    [row] = user_session.rows(f"SELECT {quote_identifier(*registration.function)}({source}) AS answer")
    return row["answer"]


def _line(done: str, thing: str) -> str:
    return f"{done:<10} {thing}"


# Properties of DESC INTEGRATION that cannot be altered, by SQL variable.
_FIXED = {
    "api_provider": ("API_PROVIDER", "provider"),
    "azure_tenant_id": ("AZURE_TENANT_ID", "tenant"),
    "google_audience": ("GOOGLE_AUDIENCE", "audience"),
}
_ALTERABLE = {"aws_role_arn": "API_AWS_ROLE_ARN", "azure_application_id": "AZURE_AD_APPLICATION_ID"}
_PROVIDERS = {"azure": "azure_api_management", "google": "google_api_gateway"}


def keep_integration(user_session: UserSession, registration: Registration, create: str) -> Iterator[str]:
    """Create the integration with the statement `create`, or alter it; existing URL prefixes are kept.

    Raises ClientError if an integration of this name exists that cannot be altered as needed.
    """
    thing = f"API INTEGRATION {quote_identifier(registration.integration)}"
    if not has_integration(user_session, registration.integration):
        [row] = user_session.rows(create)
        if "already exists" not in str(row["status"]):  # SHOW may hide an existing one from this role
            yield _line("created", thing)
            return
    properties = describe_integration(user_session, registration.integration)
    _require_same_kind(registration, properties)
    options = _options_to_alter(registration.variables, properties)
    if options:
        user_session.rows(f"ALTER {thing} SET {' '.join(options)}")
    yield _line("altered" if options else "unchanged", thing)
    if properties.get("ENABLED", "true").lower() == "false":
        yield f"Note: {thing} is disabled, so functions that use it fail."


def _require_same_kind(registration: Registration, properties: Mapping[str, str]) -> None:
    wanted = {**registration.variables}
    wanted["api_provider"] = _PROVIDERS.get(registration.provider, wanted.get("api_provider", ""))
    for variable, (option, title) in _FIXED.items():
        there = properties.get(option, "none" if variable == "api_provider" else None)
        if variable in wanted and there is not None and there.lower() != wanted[variable].lower():
            raise ClientError(
                f"API integration {quote_identifier(registration.integration)} has {title} {there}, which "
                f"cannot be changed; choose another name with --integration. Received: {wanted[variable]}."
            )


def _options_to_alter(variables: Mapping[str, str], properties: dict[str, str]) -> list[str]:
    """SET replaces the whole list of prefixes; existing ones are kept, as other functions may need them."""
    options = [
        f"{option} = {quote_string(variables[variable])}"
        for variable, option in _ALTERABLE.items()
        if variable in variables and properties.get(option) != variables[variable]
    ]
    prefixes = allowed_prefixes(properties)
    if variables["allowed_prefix"] not in prefixes:
        union = ", ".join(map(quote_string, [*prefixes, variables["allowed_prefix"]]))
        options.append(f"API_ALLOWED_PREFIXES = ({union})")
    return options
