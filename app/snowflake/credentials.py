"""The service's Snowflake credentials: settings to arguments of the connector's connect()."""

import math
import os
from pathlib import Path
from typing import Any

from app.settings import SPCS_TOKEN_FILE, Settings

_RENAMED_IN_5 = {
    "private_key_file_pwd": "private_key_password",
    "network_timeout": "query_timeout",
    "socket_timeout": "request_timeout",
}


def account_and_host(settings: Settings) -> tuple[str, str | None]:
    """The account, and the host to log in to, None for the account's default host."""
    if settings.snowflake_account is not None:
        return settings.snowflake_account, settings.snowflake_host
    return os.environ.get("SNOWFLAKE_ACCOUNT", ""), os.environ.get("SNOWFLAKE_HOST")


def connect_arguments(settings: Settings, connector_version: int) -> dict[str, Any]:
    """Arguments of connect(); token files are read at each login, as they are renewed. Raises OSError."""
    account, host = account_and_host(settings)
    timeout_seconds = math.ceil(settings.snowflake_timeout_seconds)  # 0 means no timeout
    arguments: dict[str, Any] = {
        "account": account,
        "host": host,
        "port": settings.snowflake_port,
        "protocol": settings.snowflake_protocol,
        "user": settings.snowflake_user,
        "role": settings.snowflake_role,
        "warehouse": settings.snowflake_warehouse,
        "database": os.environ.get("SNOWFLAKE_DATABASE") if settings.snowflake_account is None else None,
        "schema": os.environ.get("SNOWFLAKE_SCHEMA") if settings.snowflake_account is None else None,
        "application": "ext_classify",
        "paramstyle": "qmark",
        "login_timeout": timeout_seconds,
        "network_timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,  # 4.x checks the others only between requests
        # A cached result could hold signed URLs that have expired.
        "session_parameters": {
            "QUERY_TAG": "ext-classify",
            "CLIENT_TELEMETRY_ENABLED": False,
            "USE_CACHED_RESULT": False,
        },
        **_credentials(settings),
    }
    if connector_version >= 5:
        arguments = {_RENAMED_IN_5.get(name, name): value for name, value in arguments.items()}
        arguments["logout_total_timeout_seconds"] = timeout_seconds
        arguments["enable_server_session_keep_alive_auto_detection"] = False
    return {name: value for name, value in arguments.items() if value is not None}


def _credentials(settings: Settings) -> dict[str, Any]:
    if settings.snowflake_account is None:
        return {"authenticator": "OAUTH", "token": _read_token(SPCS_TOKEN_FILE)}
    provider = settings.snowflake_workload_identity_provider
    if provider is not None:
        return {
            "authenticator": "WORKLOAD_IDENTITY",
            "workload_identity_provider": provider,
            "workload_identity_aws_use_outbound_token": (
                settings.snowflake_workload_identity_aws_outbound_token or None
            ),
            "token": _token(settings) if provider == "OIDC" else None,
        }
    if settings.snowflake_private_key_file is not None:
        passphrase = settings.snowflake_private_key_passphrase
        return {
            "authenticator": "SNOWFLAKE_JWT",
            "private_key_file": str(settings.snowflake_private_key_file),
            "private_key_file_pwd": passphrase.get_secret_value() if passphrase else None,
        }
    token = _token(settings)
    return {} if token is None else {"authenticator": settings.snowflake_token_type, "token": token}


def _token(settings: Settings) -> str | None:
    if settings.snowflake_token_file is not None:
        return _read_token(settings.snowflake_token_file)
    return settings.snowflake_token.get_secret_value() if settings.snowflake_token else None


def _read_token(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
