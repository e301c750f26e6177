"""Values that Snowflake accepts and that cannot work, refused before any statement."""

import pytest

from app.provisioning.gateway import refuse_unusable
from tests.running import usage_error

GUID = "7b1c2d3e-0000-4000-8000-123456789abc"
API = "abc123.execute-api.eu-central-1.amazonaws.com"
PRIVATE = "abc123-vpce-0f12ab34.execute-api.eu-central-1.amazonaws.com"
GOV = "abc123.execute-api.us-gov-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("provider", "url", "works"),
    [
        ("aws", f"https://{API}/prod/classify", True),
        ("aws", f"https://{API}/prod/steel/classify", True),
        ("aws", "https://abc123.execute-api.eu-central-1.api.aws/prod/classify", True),
        ("aws", f"https://{PRIVATE}/prod/classify", True),
        ("aws", "https://classify.mill.example.com/classify", True),
        ("aws", "http://127.0.0.1:8000/classify", True),
        ("azure", "https://mill.azure-api.net/classify", True),
        ("google", "https://mill-4x.ew.gateway.dev/classify", True),
        ("google", "https://classify.example.com/classify?key=a", True),
        ("aws", f"https://{API}/prod/classify/", False),
        ("azure", "https://mill.azure-api.net/classify/", False),
        ("aws", f"https://{API}", False),
        ("aws", f"https://{API}/", False),
        ("aws", f"https://{API}/prod", False),
        ("aws", f"https://{API}/prod/", False),
        ("aws", f"https://{API}/classify", False),
        ("azure", "https://mill.azure-api.net", False),
        ("google", "https://mill-4x.ew.gateway.dev/", False),
        ("aws", f"https://{API}//classify", False),
        ("aws", f"https://{API}/prod/classify#a", False),
        ("aws", "https://abc123.lambda-url.eu-central-1.on.aws/classify", False),
        ("aws", "https://vpce-0f12ab34-x.execute-api.eu-central-1.vpce.amazonaws.com/prod/classify", False),
        ("aws", "https://mill-1234.eu-central-1.elb.amazonaws.com/classify", False),
        ("aws", "https://mill.azure-api.net/classify", False),
        ("azure", f"https://{API}/prod/classify", False),
        ("azure", "https://mill.azurewebsites.net/api/classify", False),
        ("azure", "https://mill.blue.westeurope.azurecontainerapps.io/classify", False),
        ("google", "https://mill-4x-ew.a.run.app/classify", False),
        ("google", "https://europe-west3-mill.cloudfunctions.net/classify", False),
        ("google", "https://x.snowflakecomputing.app/classify", False),
    ],
)
def test_url_must_be_a_resource_of_the_providers_gateway(provider: str, url: str, works: bool) -> None:
    assert is_accepted(provider, url=url) == works


@pytest.mark.parametrize(
    ("prefix", "works"),
    [
        (f"https://{API}/prod/classify", True),
        (f"https://{API}/prod", True),
        (f"https://{API}/", True),
        (f"https://{API}/prod/classify/", False),
        (f"https://{API}/test/", False),
        (f"https://{API}/prod/Classify", False),
        ("https://other.example.com/", False),
    ],
)
def test_prefix_must_cover_the_url(prefix: str, works: bool) -> None:
    assert is_accepted("aws", url=f"https://{API}/prod/classify", allowed_prefix=prefix) == works


@pytest.mark.parametrize(
    ("host", "api_provider", "works"),
    [
        (API, "aws_api_gateway", True),
        (API, "aws_private_api_gateway", True),
        (PRIVATE, "aws_private_api_gateway", True),
        (PRIVATE, "aws_api_gateway", False),
        (GOV, "aws_gov_api_gateway", True),
        (GOV, "aws_gov_private_api_gateway", True),
        (GOV, "aws_api_gateway", False),
        (API, "aws_gov_api_gateway", False),
        ("classify.mill.example.com/prod", "aws_gov_private_api_gateway", True),
    ],
)
def test_api_provider_must_fit_the_host(host: str, api_provider: str, works: bool) -> None:
    assert is_accepted("aws", url=f"https://{host}/prod/classify", api_provider=api_provider) == works


@pytest.mark.parametrize(
    ("variable", "value", "works"),
    [
        ("aws_role_arn", "arn:aws:iam::123456789012:role/path/gateway", True),
        ("aws_role_arn", "arn:aws-us-gov:iam::123456789012:role/gateway", True),
        ("aws_role_arn", "arn:aws:iam::123456789012:user/gateway", False),
        ("aws_role_arn", "arn:aws:sts::123456789012:assumed-role/gateway/snowflake", False),
        ("aws_role_arn", "arn:aws:iam::123456789012:role/", False),
        ("aws_role_arn", "arn:aws:iam::12345:role/gateway", False),
        ("aws_role_arn", "gateway", False),
        ("service", "plant.steel.classifier", True),
        ("service", '"PLANT"."STEEL"."CLASSIFIER"', True),
        ("service", 'plant.steel."my service"', False),
        ("service", 'plant."steel".classifier', False),
        ("azure_application_id", GUID, True),
        ("azure_application_id", GUID.upper(), True),
        ("azure_application_id", f"api://{GUID}", False),
        ("azure_application_id", "ext-classify", False),
        ("azure_tenant_id", GUID, True),
        ("azure_tenant_id", "mill.onmicrosoft.com", True),
        ("azure_tenant_id", "mill", False),
        ("google_audience", "ext-classify-0x1.apigateway.mill.cloud.goog", True),
        ("google_audience", "my-own-audience", True),
        ("google_audience", GUID, False),
        ("google_audience", "123-abc.apps.googleusercontent.com", False),
    ],
)
def test_ids_must_be_of_their_kind(variable: str, value: str, works: bool) -> None:
    assert is_accepted("aws", **{variable: value}) == works


def is_accepted(provider: str, **variables: str) -> bool:
    try:
        refuse_unusable(provider, variables)
    except ValueError as error:
        variable, rule = error.args
        assert variable in variables
        assert f"Received: {variables[variable]!r}." in rule
        return False
    return True


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--url", f"https://{API}/prod/classify/"),
        ("--allowed-prefix", f"https://{API}/test/"),
        ("--role-arn", "arn:aws:iam::123456789012:user/gateway"),
        ("--api-provider", "aws_gov_api_gateway"),
    ],
)
def test_dry_run_names_the_flag(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    given = {"--url": f"https://{API}/prod/classify", "--role-arn": "arn:aws:iam::123456789012:role/gateway"}
    flags = [part for pair in (given | {flag: value}).items() for part in pair]
    arguments = ["register", "--dry-run", "--provider", "aws", "--database", "mill", *flags]
    assert f"Invalid value for {flag}. " in usage_error(arguments, capsys)
