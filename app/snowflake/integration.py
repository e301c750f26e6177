"""Creates or alters the API integration without breaking other functions that use it."""

from collections.abc import Iterator, Mapping

from app.client import ClientError
from app.snowflake import existing
from app.snowflake.console import Console
from app.snowflake.identifier import quote_identifier, quote_string
from app.snowflake.registration import Registration

# Properties of DESC INTEGRATION that cannot be altered, by SQL variable.
_FIXED = {
    "api_provider": ("API_PROVIDER", "provider"),
    "azure_tenant_id": ("AZURE_TENANT_ID", "tenant"),
    "google_audience": ("GOOGLE_AUDIENCE", "audience"),
}
_ALTERABLE = {"aws_role_arn": "API_AWS_ROLE_ARN", "azure_application_id": "AZURE_AD_APPLICATION_ID"}
_PROVIDERS = {"azure": "azure_api_management", "google": "google_api_gateway"}


def keep_integration(console: Console, registration: Registration, create: str) -> Iterator[str]:
    """Create the integration with the statement `create`, or alter it; existing URL prefixes are kept.

    Raises ClientError if an integration of this name exists that cannot be altered as needed.
    """
    thing = f"API INTEGRATION {quote_identifier(registration.integration)}"
    if not existing.has_integration(console, registration.integration) and _create(console, create):
        yield f"created    {thing}"
        return
    properties = existing.describe_integration(console, registration.integration)
    _require_same_kind(registration, properties)
    options = _options_to_alter(registration.variables, properties)
    if options:
        console.rows(f"ALTER {thing} SET {' '.join(options)}")
    yield f"{'altered' if options else 'unchanged':<10} {thing}"
    if properties.get("ENABLED", "true").lower() == "false":
        yield f"Note: {thing} is disabled, so functions that use it fail."


def _create(console: Console, statement: str) -> bool:
    """Whether the statement created it; SHOW may hide an existing one from this role."""
    [row] = console.rows(statement)
    return "already exists" not in str(row["status"])


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
    prefixes = existing.allowed_prefixes(properties)
    if variables["allowed_prefix"] not in prefixes:
        union = ", ".join(map(quote_string, [*prefixes, variables["allowed_prefix"]]))
        options.append(f"API_ALLOWED_PREFIXES = ({union})")
    return options
