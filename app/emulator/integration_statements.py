"""Statements on API integrations: create, alter, describe, show, drop.

Source: Snowflake documentation, CREATE, ALTER, DESCRIBE, SHOW and DROP API INTEGRATION.
"""

import re
from typing import TYPE_CHECKING, Any

from app.emulator.answer import Answer, status
from app.emulator.catalog import ApiIntegration
from app.emulator.filters import take_filter
from app.emulator.grammar import Tokens
from app.emulator.refusals import already_exists, invalid, not_found, refuse_both
from app.names import quote_identifier

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

_COMMON = {
    "API_PROVIDER": "String",
    "ENABLED": "Boolean",
    "API_KEY": "String",
    "API_ALLOWED_PREFIXES": "List",
    "API_BLOCKED_PREFIXES": "List",
    "COMMENT": "String",
}
# The options that each provider requires.
_REQUIRED = {
    "aws": ("API_AWS_ROLE_ARN",),
    "azure": ("AZURE_TENANT_ID", "AZURE_AD_APPLICATION_ID"),
    "google": ("GOOGLE_AUDIENCE",),
}
_OPTIONS = _COMMON | {name: "String" for names in _REQUIRED.values() for name in names}
_PROVIDER = re.compile(
    r"(?:(aws)(?:_gov)?(?:_private)?_api_gateway|aws_private_api_gateway|(azure)_api_management|(google)_api_gateway)"
)


def create_integration(tokens: Tokens, session: "LocalConnection") -> Answer:
    tokens.require("CREATE")
    replace = tokens.take("OR", "REPLACE")
    tokens.require("API", "INTEGRATION")
    keep = tokens.take("IF", "NOT", "EXISTS")
    refuse_both(replace, keep)
    [name] = tokens.take_name(max_parts=1)
    options = tokens.take_options(_OPTIONS)
    known = session.local.catalog.integrations
    if name in known and keep:
        return status(f"{name} already exists, statement succeeded.")
    if name in known and not replace:
        raise already_exists(name)
    _refuse_incomplete(options)
    _refuse_wrong(options)
    known[name] = ApiIntegration(name, options)
    session.local.catalog.drop_grants("INTEGRATION", quote_identifier(name))
    return status(f"Integration {name} successfully created.")


def alter_integration(tokens: Tokens, session: "LocalConnection") -> Answer:
    integration = _find(tokens, session)
    tokens.require("SET")
    options = tokens.take_options(_OPTIONS)
    if "API_PROVIDER" in options:
        raise invalid("API_PROVIDER cannot be altered.")
    _refuse_wrong(options)
    if integration is not None:
        integration.options |= options
    return status("Statement executed successfully.")


def drop_integration(tokens: Tokens, session: "LocalConnection") -> Answer:
    integration = _find(tokens, session)
    tokens.require_end()
    if integration is None:
        return status("Drop statement executed successfully (it was not there).")
    del session.local.catalog.integrations[integration.name]
    session.local.catalog.drop_grants("INTEGRATION", quote_identifier(integration.name))
    return status(f"{integration.name} successfully dropped.")


def describe_integration(tokens: Tokens, session: "LocalConnection") -> Answer:
    integration = _require(tokens, session)
    tokens.require_end()
    shown = integration.options | {"ENABLED": str(integration.is_enabled).lower()}
    rows = [
        [name, kind, _text(shown.get(name, "")), ""]
        for name, kind in _OPTIONS.items()
        if name != "API_KEY" and (name in _COMMON or name in integration.options)
    ]
    return Answer(
        ["property", "property_type", "property_value", "property_default"], rows + _trust_rows(integration)
    )


def show_integrations(tokens: Tokens, session: "LocalConnection") -> Answer:
    shown = take_filter(tokens, session)
    rows = [
        [
            i.name,
            f"EXTERNAL_API - {i.options['API_PROVIDER']}".upper(),
            "API",
            str(i.is_enabled).lower(),
            i.options.get("COMMENT", ""),
        ]
        for i in session.local.catalog.integrations.values()
        if shown(("", "", i.name))
    ]
    return Answer(["name", "type", "category", "enabled", "comment"], rows)


def _find(tokens: Tokens, session: "LocalConnection") -> ApiIntegration | None:
    """The integration; None if it does not exist after IF EXISTS, otherwise raises ProgrammingError."""
    if not tokens.take("IF", "EXISTS"):
        return _require(tokens, session)
    [name] = tokens.take_name(max_parts=1)
    return session.local.catalog.integrations.get(name)


def _require(tokens: Tokens, session: "LocalConnection") -> ApiIntegration:
    [name] = tokens.take_name(max_parts=1)
    integration = session.local.catalog.integrations.get(name)
    if integration is None:
        raise not_found("Integration", name)
    return integration


def _provider(options: dict[str, Any]) -> str:
    match = _PROVIDER.fullmatch(str(options.get("API_PROVIDER", "")).lower())
    if match is None:
        raise invalid(f"invalid value [{options.get('API_PROVIDER')}] for parameter 'API_PROVIDER'")
    return next((group for group in match.groups() if group), "aws")


def _refuse_incomplete(options: dict[str, Any]) -> None:
    required = (*_REQUIRED[_provider(options)], "API_ALLOWED_PREFIXES")
    missing = [name for name in required if name not in options]
    if missing:
        raise invalid(f"Missing option(s): {missing}")


def _refuse_wrong(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, list) != (_OPTIONS[name] == "List") or isinstance(value, dict):
            raise invalid(f"invalid value for parameter '{name}'")  # the value may be a secret
    if str(options.get("ENABLED", "TRUE")).upper() not in {"TRUE", "FALSE"}:
        raise invalid(f"invalid value [{options['ENABLED']}] for parameter 'ENABLED'")


def _trust_rows(integration: ApiIntegration) -> list[list[str]]:
    trust = {
        "aws": {
            "API_AWS_IAM_USER_ARN": "arn:aws:iam::000000000000:user/local",
            "API_AWS_EXTERNAL_ID": integration.external_id,
        },
        "azure": {
            "AZURE_MULTI_TENANT_APP_NAME": "local_snowflake",
            "AZURE_CONSENT_URL": "https://login.microsoftonline.com/local/oauth2/authorize",
        },
        "google": {"API_GCP_SERVICE_ACCOUNT": "local@local.iam.gserviceaccount.com"},
    }
    return [[name, "String", value, ""] for name, value in trust[_provider(integration.options)].items()]


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
