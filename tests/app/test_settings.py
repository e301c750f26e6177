import logging

import pytest
from pydantic import ValidationError

from app.main import create_app
from app.settings import Settings, unknown_variables


def test_knobs_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_impossible_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EXT_CLASSIFY_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_misspelt_knob_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_PROT", "9000")
    monkeypatch.setenv("EXT_CLASSIFY_PORT", "9000")
    logger = logging.getLogger("ext_classify")
    logger.addHandler(caplog.handler)
    try:
        create_app(Settings())
    finally:
        logger.removeHandler(caplog.handler)
    warnings = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert warnings == {"There is no such setting. Received: 'EXT_CLASSIFY_PROT'"}


def test_every_knob_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_what_kubernetes_says_of_a_service_of_our_name_is_not_meant_for_us(
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
