"""Gateways: rules for URLs, roles and application ids, and the trust policies that admit Snowflake.

Snowflake accepts other values and fails at the first call. Sources: Snowflake documentation, "Planning an
external function for AWS", "Creating an external function on AWS" and the pages for Azure and Google Cloud,
"Create the proxy service", CREATE API INTEGRATION and "Troubleshooting".
"""

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from app.names import parse_identifier

# A private API is also named with its VPC endpoint, `{api}-{vpce}`. Source: Amazon API Gateway, "Invoke a
# private API".
API_GATEWAY = re.compile(
    r"(?P<api>[a-z0-9]+)(?P<endpoint>-vpce-[0-9a-f]+)?\.execute-api\.(?P<region>[a-z0-9-]+)\."
    r"(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)
ROLE_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):iam::(?P<account>[0-9]{12}):role/(?:.*/)?(?P<role>[^/]+)"
)
# A name that needs no quotes, as stored. Source: Snowflake documentation, CREATE SERVICE.
_PLAIN_NAME = re.compile(r"[A-Z_][A-Z0-9_$]*")
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TENANT_DOMAIN = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)

# Endings of host names, each with the provider whose gateways have it; None for what is no gateway.
_PROVIDERS_OF_HOSTS = {
    r".*\.execute-api\.[a-z0-9-]+\.(?:amazonaws\.com(?:\.cn)?|api\.aws)": "aws",
    r".*\.azure-api\.(?:net|us|cn)": "azure",
    r".*\.gateway\.dev": "google",
    r".*\.lambda-url\.[a-z0-9-]+\.on\.aws": None,
    r".*\.(?:elb\.amazonaws\.com|awsapprunner\.com|execute-api\.[a-z0-9-]+\.vpce\.amazonaws\.com)": None,
    r".*\.(?:azurewebsites\.net|azurecontainerapps\.io|cloudapp\.azure\.com)": None,
    r".*\.(?:run\.app|cloudfunctions\.net|appspot\.com)": None,
    r".*\.(?:snowflakecomputing\.(?:app|com|cn))": None,
}
_GATEWAYS = {"aws": "Amazon API Gateway", "azure": "Azure API Management", "google": "Google API Gateway"}


def refuse_unusable(provider: str, variables: Mapping[str, str]) -> None:
    """Raises ValueError, with the SQL variable and the rule, for values that cannot work together."""
    _check_ids(variables)
    if "url" in variables:
        _check_url(provider, variables["url"])
        _check_prefix(variables["url"], variables.get("allowed_prefix", ""))
        if "api_provider" in variables:
            _check_api_provider(variables["api_provider"], variables["url"])


def _check_url(provider: str, url: str) -> None:
    parts = urlsplit(url)
    path, is_stage_named = parts.path, API_GATEWAY.fullmatch(parts.hostname or "") is not None
    if path.endswith("/") and path.strip("/"):
        raise _invalid("url", "The service answers /classify, not /classify/: leave out the last slash", url)
    if parts.fragment or "//" in path:
        raise _invalid("url", "A URL must have no fragment and no empty folder", url)
    if path.count("/") < (2 if is_stage_named else 1) or path == "/":
        shape = "https://HOST/STAGE/RESOURCE" if is_stage_named else "https://HOST/RESOURCE"
        raise _invalid("url", f"A URL must name the gateway's resource, {shape}", url)
    for pattern, owner in _PROVIDERS_OF_HOSTS.items():
        if owner != provider and re.fullmatch(pattern, parts.hostname or ""):
            raise _invalid("url", f"Snowflake calls only gateways, here {_GATEWAYS[provider]}", url)


def _check_prefix(url: str, prefix: str) -> None:
    if not url.startswith(prefix):
        raise _invalid("allowed_prefix", f"The URL must begin with the prefix, and is {url}", prefix)


def _check_api_provider(api_provider: str, url: str) -> None:
    gateway = API_GATEWAY.fullmatch(urlsplit(url).hostname or "")
    if gateway is None:
        return
    if gateway["endpoint"] and "private" not in api_provider:
        raise _invalid("api_provider", "A URL with a VPC endpoint needs a private provider", api_provider)
    if gateway["region"].startswith("us-gov-") != ("_gov_" in api_provider):
        rule = f"Providers with _gov_ are for the regions us-gov-*, and the URL's is {gateway['region']}"
        raise _invalid("api_provider", rule, api_provider)


def _check_ids(variables: Mapping[str, str]) -> None:
    role = variables.get("aws_role_arn")
    if role is not None and not ROLE_ARN.fullmatch(role):
        rule = "Snowflake assumes a role, arn:aws:iam::123456789012:role/NAME, not a user or a session"
        raise _invalid("aws_role_arn", rule, role)
    service = variables.get("service")
    if service is not None and not all(map(_PLAIN_NAME.fullmatch, parse_identifier(service))):
        rule = "Snowflake knows no quoted names of services, nor of their databases and schemas"
        raise _invalid("service", rule, service)
    application = variables.get("azure_application_id")
    if application is not None and not _GUID.fullmatch(application):
        rule = "An application (client) ID is a GUID, not a name and not the audience api://…"
        raise _invalid("azure_application_id", rule, application)
    tenant = variables.get("azure_tenant_id")
    if tenant is not None and not (_GUID.fullmatch(tenant) or _TENANT_DOMAIN.fullmatch(tenant)):
        raise _invalid("azure_tenant_id", "A tenant ID is a GUID", tenant)
    audience = variables.get("google_audience", "")
    if _GUID.fullmatch(audience) or audience.endswith(".apps.googleusercontent.com"):
        rule = "The audience is the gateway's managed service, not the ID of an application"
        raise _invalid("google_audience", rule, audience)


def _invalid(variable: str, rule: str, received: str) -> ValueError:
    return ValueError(variable, f"{rule}. Received: {received!r}.")


_VPC = "<snowflake-vpc-id: SELECT SYSTEM$GET_SNOWFLAKE_PLATFORM_INFO()>"


class _Shown(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return f"<{name}>"


def describe_trust(provider: str, properties: Mapping[str, str], url: str) -> str:
    """The policies for the integration with these properties of DESC INTEGRATION, as text.

    Properties that this role cannot see remain `<PLACEHOLDERS>`.
    """
    properties = _Shown(properties)
    if provider.startswith("aws"):
        return _describe_aws(properties, url)
    return _describe_azure(properties) if provider.startswith("azure") else _describe_google(properties)


def _describe_aws(properties: Mapping[str, str], url: str) -> str:
    role_arn = properties["API_AWS_ROLE_ARN"]
    return "\n\n".join(
        [
            f"Trust policy of the role {role_arn}:",
            _as_json(_trust_policy(properties)),
            "Resource policy of the REST API (deploy the API again after each change):",
            _as_json(_resource_policy(properties, url)),
        ]
    )


def _trust_policy(properties: Mapping[str, str]) -> dict[str, object]:
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"AWS": properties["API_AWS_IAM_USER_ARN"]},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": properties["API_AWS_EXTERNAL_ID"]}},
        }
    )


def _resource_policy(properties: Mapping[str, str], url: str) -> dict[str, object]:
    """Allows POST, and GET, with which Snowflake polls for deferred (202) responses.

    A private API admits Snowflake's VPC only: SYSTEM$GET_SNOWFLAKE_PLATFORM_INFO names it.
    """
    role, parts = ROLE_ARN.fullmatch(properties["API_AWS_ROLE_ARN"]), urlsplit(url)
    gateway = API_GATEWAY.fullmatch(parts.hostname or "")
    partition, account, name = role.groups() if role else ("aws", "<account>", "<role>")
    api, region = gateway.group("api", "region") if gateway else ("<api-id>", "<region>")
    # A custom domain maps to an API and its stage, so its path begins with the resource.
    path = parts.path.strip("/")
    stage, _, resource = path.partition("/") if gateway else ("<stage>", "/", path)
    has_endpoint = gateway is not None and gateway["endpoint"] is not None
    is_private = has_endpoint or "_private_" in properties["API_PROVIDER"].lower()
    prefix = f"arn:{partition}:execute-api:{region}:{account}:{api}/{stage}"
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:{partition}:sts::{account}:assumed-role/{name}/snowflake"},
            "Action": "execute-api:Invoke",
            "Resource": [f"{prefix}/{method}/{resource}" for method in ("POST", "GET")],
            **({"Condition": {"StringEquals": {"aws:sourceVpc": _VPC}}} if is_private else {}),
        }
    )


def _describe_azure(properties: Mapping[str, str]) -> str:
    tenant, application = properties["AZURE_TENANT_ID"], properties["AZURE_AD_APPLICATION_ID"]
    # The policy accepts only Snowflake's application, not other applications of the tenant.
    [snowflake] = parse_qs(urlsplit(properties["AZURE_CONSENT_URL"]).query).get("client_id", ["<appid>"])
    return f"""An administrator of tenant {tenant} consents once, at:

{properties["AZURE_CONSENT_URL"]}

Snowflake's service principal is {properties["AZURE_MULTI_TENANT_APP_NAME"]}. Inbound policy of the API:

<validate-jwt header-name="Authorization" failed-validation-httpcode="401">
  <openid-config url="https://login.microsoftonline.com/{tenant}/.well-known/openid-configuration" />
  <audiences>
    <audience>{application}</audience>
  </audiences>
  <required-claims>
    <claim name="appid" match="all">
      <value>{snowflake}</value>
    </claim>
  </required-claims>
</validate-jwt>"""


def _describe_google(properties: Mapping[str, str]) -> str:
    account = properties["API_GCP_SERVICE_ACCOUNT"]
    return f"""In the OpenAPI document of the gateway:

securityDefinitions:
  snowflake:
    authorizationUrl: ""
    flow: implicit
    type: oauth2
    x-google-issuer: {account}
    x-google-jwks_uri: https://www.googleapis.com/robot/v1/metadata/jwk/{account}
    x-google-audiences: {properties["GOOGLE_AUDIENCE"]}
security:
  - snowflake: []"""


def _policy(statement: dict[str, object]) -> dict[str, object]:
    return {"Version": "2012-10-17", "Statement": [statement]}


def _as_json(document: object) -> str:
    return json.dumps(document, indent=2)
