"""Trust policies for the cloud provider, so that its gateway accepts calls from Snowflake.

Sources: Snowflake documentation, "Creating an external function on AWS", and the pages for Azure and Google
Cloud.
"""

import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from app.provisioning.gateway import API_GATEWAY, ROLE_ARN

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
