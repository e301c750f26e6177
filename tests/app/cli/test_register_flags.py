"""The command line of register: missing and unsupported flags."""

from pathlib import Path

import pytest

from app.cli.main import main
from tests.running import usage_error

ROLE = ["--role-arn", "arn:aws:iam::123456789012:role/gateway"]
URL = ["--url", "https://a.example.com/classify"]
AWS = ["--provider", "aws", "--database", "mill", *URL]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--provider", "aws"], "--provider aws needs --database, --url, --role-arn."),
        (
            ["--provider", "azure", "--database", "d", *URL],
            "--provider azure needs --tenant-id, --application-id.",
        ),
        (["--provider", "google", "--database", "d", *URL], "--provider google needs --audience."),
        (["--provider", "spcs", "--database", "d"], "--provider spcs needs --service."),
        (["--provider", "aws", "--no-integration"], "with --no-integration needs --database, --url."),
        ([*AWS, *ROLE, "--audience", "g"], "--provider aws does not accept --audience."),
        (
            ["--provider", "spcs", "--database", "d", "--service", "s", *URL, "--integration", "i"],
            "--provider spcs does not accept --integration, --url.",
        ),
        ([*AWS, "--no-integration", *ROLE], "with --no-integration does not accept --role-arn."),
        ([*AWS, *ROLE, "--warehouse", "w"], "--warehouse needs --service-role."),
        (
            [*AWS, *ROLE, "--owner-role", "r", "--caller-role", "c"],
            "--owner-role cannot be combined with --caller-role.",
        ),
        (
            [*AWS, "--no-integration", "--owner-role", "r"],
            "--no-integration and --owner-role cannot be combined",
        ),
        (
            ["--provider", "spcs", "--no-integration"],
            "--no-integration and --provider spcs cannot be combined",
        ),
        ([*AWS, "--role-arn", ""], "Invalid value for --role-arn. A text must not be empty"),
        (
            [*AWS, *ROLE, "--url", "a.example.com"],
            "Invalid value for --url. A URL must begin with https://",
        ),
        ([*AWS, *ROLE, "--max-batch-rows", "0"], "Invalid value for --max-batch-rows. A number must be"),
    ],
)
def test_error_message_names_the_flags(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in usage_error(["register", "--dry-run", *flags], capsys)


@pytest.mark.parametrize(
    "flags",
    [
        ["--provider", "spcs", "--database", "d", "--service", "s"],
        ["--provider", "google", "--database", "d", *URL, "--audience", "g"],
    ],
)
def test_api_key_is_rejected_for_providers_without_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "key").write_text("hush", encoding="utf-8")
    arguments = ["register", "--dry-run", *flags, "--api-key-file", str(tmp_path / "key")]
    assert "does not accept --api-key-file" in usage_error(arguments, capsys)


def test_key_comes_from_a_file_and_is_not_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush\n", encoding="utf-8")
    assert main(["register", "--dry-run", *AWS, *ROLE, "--api-key-file", str(tmp_path / "key")]) == 0
    printed = capsys.readouterr().out
    assert "API_KEY = '***'" in printed
    assert "hush" not in printed
    (tmp_path / "key").write_text("\n", encoding="utf-8")
    assert main(["register", "--dry-run", *AWS, *ROLE, "--api-key-file", str(tmp_path / "key")]) == 1
    assert "must hold one key" in capsys.readouterr().err


def test_dry_run_with_an_owner_role_prints_only_the_integration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["register", "--dry-run", *AWS, *ROLE, "--owner-role", "builder"]) == 0
    printed = capsys.readouterr().out
    assert 'GRANT USAGE ON INTEGRATION "EXT_CLASSIFY_API" TO ROLE "BUILDER";' in printed
    assert "CREATE OR REPLACE" not in printed
