import json

import pytest

from app.provisioning.gateway import describe_trust

AWS = {
    "API_AWS_ROLE_ARN": "arn:aws-us-gov:iam::123456789012:role/path/to/gateway",
    "API_AWS_IAM_USER_ARN": "arn:aws:iam::210987654321:user/abc",
    "API_AWS_EXTERNAL_ID": "X_SFCRole=2_a=",
}
URL = "https://abc123.execute-api.eu-central-1.amazonaws.com/prod/steel/classify"


def policies(text: str) -> list[dict[str, object]]:
    return [json.loads("{" + part.partition("\n\n")[0]) for part in text.split(":\n\n{")[1:]]


def test_role_trusts_snowflakes_user_with_its_whole_external_id() -> None:
    trust, _ = policies(describe_trust("aws", AWS, URL))
    assert trust["Statement"] == [
        {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::210987654321:user/abc"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "X_SFCRole=2_a="}},
        }
    ]


def test_resource_policy_allows_post_and_get_on_exactly_the_resource() -> None:
    _, resource = policies(describe_trust("aws", AWS, URL))
    prefix = "arn:aws-us-gov:execute-api:eu-central-1:123456789012:abc123/prod"
    assert resource["Statement"] == [
        {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws-us-gov:sts::123456789012:assumed-role/gateway/snowflake"},
            "Action": "execute-api:Invoke",
            "Resource": [f"{prefix}/POST/steel/classify", f"{prefix}/GET/steel/classify"],
        }
    ]


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("abc123-vpce-0f12ab34", "aws_private_api_gateway"),
        ("abc123-vpce-0f12ab34", "AWS_GOV_PRIVATE_API_GATEWAY"),
        ("abc123", "aws_private_api_gateway"),
        ("abc123-vpce-0f12ab34", ""),
    ],
)
def test_private_api_is_named_without_its_endpoint_and_admits_snowflakes_vpc(
    host: str, provider: str
) -> None:
    properties = AWS | {"API_PROVIDER": provider}
    _, resource = policies(describe_trust("aws", properties, URL.replace("abc123", host)))
    [statement] = json.loads(json.dumps(resource["Statement"]))
    assert {arn.split(":")[5].split("/")[0] for arn in statement["Resource"]} == {"abc123"}
    assert "SYSTEM$GET_SNOWFLAKE_PLATFORM_INFO()" in statement["Condition"]["StringEquals"]["aws:sourceVpc"]


def test_unknown_parts_of_the_url_are_placeholders() -> None:
    text = describe_trust("aws", AWS, "https://classify.mill.example.com/classify")
    assert "execute-api:<region>:123456789012:<api-id>/<stage>/POST/classify" in text


@pytest.mark.parametrize(
    ("provider", "properties", "shown"),
    [
        (
            "azure",
            {
                "AZURE_TENANT_ID": "tenant",
                "AZURE_AD_APPLICATION_ID": "application",
                "AZURE_CONSENT_URL": "https://login.example.com/consent?client_id=4f-1&response_type=code",
                "AZURE_MULTI_TENANT_APP_NAME": "snowflake_app",
            },
            [
                "https://login.example.com/consent?client_id=4f-1&response_type=code",
                '<claim name="appid" match="all">\n      <value>4f-1</value>',
                "<audience>application</audience>",
                "snowflake_app",
                "/tenant/",
            ],
        ),
        (
            "google",
            {"API_GCP_SERVICE_ACCOUNT": "a@b.iam.gserviceaccount.com", "GOOGLE_AUDIENCE": "audience"},
            ["x-google-issuer: a@b.iam.gserviceaccount.com", "x-google-audiences: audience"],
        ),
    ],
)
def test_policies_for_azure_and_google(provider: str, properties: dict[str, str], shown: list[str]) -> None:
    text = describe_trust(provider, properties, URL)
    assert [part for part in shown if part not in text] == []


def test_hidden_properties_are_placeholders() -> None:
    trust, _ = policies(describe_trust("aws", {"API_AWS_ROLE_ARN": AWS["API_AWS_ROLE_ARN"]}, URL))
    assert "<API_AWS_EXTERNAL_ID>" in json.dumps(trust)
