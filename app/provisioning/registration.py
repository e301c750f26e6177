"""What `register` sets up: the statements of the SQL files, each with the object it creates or alters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from app.client import ClientError
from app.names import parse_identifier, quote_identifier
from app.provisioning.ddl import load, load_with_fingerprint

INTEGRATION_FILES = {
    "aws": "02_api_integration_aws.sql",
    "azure": "03_api_integration_azure.sql",
    "google": "04_api_integration_google.sql",
}
PROVIDERS = (*INTEGRATION_FILES, "spcs")
# Argument types of the function, and the NULL handling that DESC FUNCTION shows.
SIGNATURES = {
    "VARCHAR": "RETURNS NULL ON NULL INPUT",
    "VARCHAR, OBJECT": "CALLED ON NULL INPUT",
}

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
        return zip(self._about(name, fingerprint), statements, strict=True)

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

    def _about(self, name: str, fingerprint: str) -> list[About]:
        """One About per statement. Reads only the variables that the file needs; others may be missing."""
        match name[:2]:
            case "01":
                return [_USE, About("stage", f"STAGE {quote_identifier(*self.stage)}")]
            case "02" | "03" | "04":
                kinds: tuple[Kind, ...] = ("integration", "alteration", "trust")
                return [About(kind, self._api_integration) for kind in kinds]
            case "05":
                return [About("key", f"API key of {self._api_integration}")]
            case "11" | "13":
                return [_USE, *(self._about_function(types, fingerprint) for types in SIGNATURES)]
            case _:
                return self._about_grants(name)

    def _about_grants(self, name: str) -> list[About]:
        match name[:2]:
            case "06":
                return [
                    self._grant("USAGE", f"INTEGRATION {quote_identifier(self.integration)}", "owner_role")
                ]
            case "12":
                service = quote_identifier(*self._parts("service"))
                return [self._grant("", f"SERVICE ROLE {service}!ALL_ENDPOINTS_USAGE", "owner_role")]
            case "21":
                signatures = [f"FUNCTION {quote_identifier(*self.function)}({types})" for types in SIGNATURES]
                usage = [self._grant("USAGE", signature, "caller_role") for signature in signatures]
                return [*self._grants_on_schema("caller_role"), _USE, *usage, self._read("caller_role")]
            case "22":
                return [*self._grants_on_schema("service_role"), _USE, self._read("service_role")]
            case _:
                warehouse = quote_identifier(*self._parts("warehouse"))
                return [self._grant("USAGE", f"WAREHOUSE {warehouse}", "service_role")]

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

    def _grants_on_schema(self, role: str) -> list[About]:
        database, schema = quote_identifier(self._schema[0]), quote_identifier(*self._schema)
        return [
            self._grant("USAGE", f"DATABASE {database}", role),
            self._grant("USAGE", f"SCHEMA {schema}", role),
        ]

    def _read(self, role: str) -> About:
        return self._grant("READ", f"STAGE {quote_identifier(*self.stage)}", role)

    def _grant(self, privilege: str, thing: str, role: str) -> About:
        return About("grant", thing, privilege, self._parts(role)[0])

    @property
    def _schema(self) -> tuple[str, ...]:
        return (*self._parts("database"), *self._parts("schema"))

    @property
    def _api_integration(self) -> str:
        return f"API INTEGRATION {quote_identifier(self.integration)}"

    def _parts(self, variable: str) -> tuple[str, ...]:
        return parse_identifier(self.variables[variable])
