import logging
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.cli.command_line import describe_settings_faults
from app.main import create_app
from app.settings import Settings, unknown_variables


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_MAX_ROWS", "7")
    monkeypatch.setenv("EXT_CLASSIFY_ALLOWED_URL_HOSTS", "a.example.com, .b.example.com,c.example.com:9000")
    settings = Settings()
    assert settings.max_rows == 7
    assert settings.allowed_url_hosts == ("a.example.com", ".b.example.com", "c.example.com:9000")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_ROWS", "0"),
        ("MAX_BODY_BYTES", "many"),
        ("PORT", "65536"),
        ("ENGINE", "onnx"),
        ("FETCH_TIMEOUT_SECONDS", "0"),
        ("ALLOWED_URL_HOSTS", "https://a.example.com"),
        ("ALLOWED_URL_HOSTS", "*"),
        ("ALLOWED_URL_HOSTS", "a..b"),
    ],
)
def test_invalid_value_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EXT_CLASSIFY_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def warnings_at_start(caplog: pytest.LogCaptureFixture) -> list[str]:
    logger = logging.getLogger("ext_classify")
    logger.addHandler(caplog.handler)
    try:
        create_app(Settings())
    finally:
        logger.removeHandler(caplog.handler)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_misspelt_variable_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_PROT", "9000")
    monkeypatch.setenv("EXT_CLASSIFY_PORT", "9000")
    [warning] = warnings_at_start(caplog)
    assert "EXT_CLASSIFY_PROT" in warning


@pytest.mark.parametrize(
    "url",
    ["http://h", "redis://:secret@h:99x9/0", "redis://:se:cret@h:x/0", "redis://h/0?max_connections=abc"],
)
def test_invalid_redis_url_is_rejected_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_REDIS_URL", url)
    with pytest.raises(ValidationError) as rejected:
        Settings()
    message = describe_settings_faults(rejected.value)
    assert message.startswith("EXT_CLASSIFY_REDIS_URL: A Redis URL must be ")
    assert "cret" not in message


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_of_a_kubernetes_service_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Source: Kubernetes documentation, "Service", on environment variables."""
    links = {
        "EXT_CLASSIFY_PORT": "tcp://10.0.0.1:8000",
        "EXT_CLASSIFY_SERVICE_HOST": "10.0.0.1",
        "EXT_CLASSIFY_SERVICE_PORT": "8000",
        "EXT_CLASSIFY_SERVICE_PORT_HTTP": "8000",
        "EXT_CLASSIFY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "EXT_CLASSIFY_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    assert unknown_variables() == []


LOGIN = {"snowflake_account": "org-steel", "snowflake_user": "classifier"}


@pytest.mark.parametrize(
    ("content", "rule"), [(None, "point to a file"), (" \n", "hold the token"), ("ü", "be readable")]
)
def test_token_file_must_hold_a_token(tmp_path: Path, content: str | None, rule: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValidationError, match=rule):
        Settings(**LOGIN | {"snowflake_token_file": path})


def test_workload_identity_by_oidc_needs_a_token(tmp_path: Path) -> None:
    login = LOGIN | {"snowflake_workload_identity_provider": "OIDC"}
    with pytest.raises(ValidationError) as raised:
        Settings(**login)
    assert "SNOWFLAKE_TOKEN_FILE" in describe_settings_faults(raised.value)
    (tmp_path / "token").write_text("a.b.c")
    Settings(**login | {"snowflake_token_file": tmp_path / "token"})
    Settings(**login | {"snowflake_token": "a.b.c"})


@pytest.mark.parametrize("provider", [None, "GCP", "AZURE"])
def test_outbound_token_needs_an_aws_identity(provider: str | None) -> None:
    login = LOGIN | {"snowflake_workload_identity_aws_outbound_token": True}
    with pytest.raises(ValidationError, match="SNOWFLAKE_WORKLOAD_IDENTITY_PROVIDER=AWS"):
        Settings(**login | {"snowflake_workload_identity_provider": provider})
    Settings(**login | {"snowflake_workload_identity_provider": "AWS"})


@pytest.mark.parametrize(
    ("account", "identifier"),
    [
        ("myorg.mill", "myorg-mill"),
        ("MYORG.STEEL_MILL", "MYORG-STEEL_MILL"),
        ("myorg/mill", "myorg-mill"),
        ("https://app.snowflake.com/myorg/mill/", "myorg-mill"),
        ("myorg-mill.snowflakecomputing.com", "myorg-mill"),
        ("https://myorg-mill.snowflakecomputing.com/", "myorg-mill"),
        ("myorg.mill.snowflakecomputing.com", "myorg-mill"),
        ("xy12345.eu-central-1.snowflakecomputing.com", "xy12345.eu-central-1"),
        ("xy12345.cn-northwest-1.aws.snowflakecomputing.cn", "xy12345.cn-northwest-1.aws"),
    ],
)
def test_account_in_another_form_is_refused_with_its_identifier(account: str, identifier: str) -> None:
    with pytest.raises(ValidationError, match=rf"write {re.escape(identifier)}\b"):
        Settings(**LOGIN | {"snowflake_account": account})
    Settings(**LOGIN | {"snowflake_account": account, "snowflake_host": "mill.example"})


@pytest.mark.parametrize(
    "account",
    [
        "myorg-mill",
        "MYORG-STEEL_MILL",
        "xy12345",
        "xy12345.us-east-1",
        "xy12345.us-east-2.aws",
        "xy12345.mexicocentral.azure",
        "xy12345.fhplus.us-gov-west-1.aws",
        "xy12345.us-gov-virginia.azure",
        "xy12345.europe-west4.gcp",
        "myorg-mill.privatelink",
        "xy12345.privatelink",
        "xy12345.us-east-1.privatelink",
        "mill-x1y2z3.global",
    ],
)
def test_each_documented_form_of_an_account_is_accepted(account: str) -> None:
    assert Settings(**LOGIN | {"snowflake_account": account}).reads_stages
