"""Maps Snowflake's errors to row errors.

Error numbers: Snowflake's server and the connector's `errorcode` and `network` modules. Snowflake's messages
are not passed on: they contain names of objects that the caller may not be allowed to see.
"""

from app.errors import (
    FetchFailed,
    SnowflakeLoginFailed,
    SnowflakeRefused,
    SnowflakeUnavailable,
    StageNotAuthorized,
    WarehouseUnavailable,
)
from model.errors import InputError

# Object does not exist or not authorized; operation cannot be performed; insufficient privileges.
_NOT_AUTHORIZED = frozenset({2003, 2043, 3001, 3003})
# No active warehouse; it cannot be resumed, or its resource monitor has stopped it.
_NO_WAREHOUSE = frozenset({606, 607, 608, 609, 90064, 90073})
# The session or its tokens have expired or cannot be renewed, or the connection was closed.
_SESSION_OVER = frozenset(
    {250001, 250002, 290401, 390104, 390110, 390111, 390112, 390113, 390114, 390115, 390195, 390318}
)
# The transfer of one file failed.
_ONE_FILE = range(253_000, 254_000)
# HTTP 403 and 404 at login: there is no such account at that host.
_NO_SUCH_ACCOUNT = frozenset({290403, 290404})
# Source: Snowflake documentation, "Using programmatic access tokens for authentication".
NETWORK_POLICY_RULE = (
    "A programmatic access token of a user of TYPE=SERVICE is valid only under a network policy: ALTER USER "
    "… SET NETWORK_POLICY = …, with a rule that allows the service's address."
)
# "Network policy is required", also as the text of a failed connection.
_NO_NETWORK_POLICY = 390432
_UNREACHABLE_CLASSES = frozenset(
    {"OperationalError", "InterfaceError", "InternalError", "HttpError", "RevocationCheckError"}
)


def is_session_over(error: Exception) -> bool:
    """Whether the same statement may succeed after a new login."""
    return _number(error) in _SESSION_OVER


def login_failure(error: Exception) -> InputError:
    number = _number(error)
    if number == _NO_NETWORK_POLICY or "network policy is required" in str(error).lower():
        return SnowflakeLoginFailed(f"{NETWORK_POLICY_RULE} Received: error {number}.")
    if number not in _NO_SUCH_ACCOUNT and (_is_unreachable(error) or 290_000 <= number < 300_000):
        return no_answer(number)
    return SnowflakeLoginFailed(
        "The service must be able to log in: check the account, the user and the key or token in its "
        f"EXT_CLASSIFY_SNOWFLAKE_ settings. Received: error {number or type(error).__name__}."
    )


def statement_failure(error: Exception) -> InputError:
    number = _number(error)
    if number in _NOT_AUTHORIZED:
        return StageNotAuthorized(
            "The stage must exist, and the service's role must be granted READ on it (USAGE if it is "
            f"external) and USAGE on its database and schema. Received: error {number}."
        )
    if number in _NO_WAREHOUSE:
        return WarehouseUnavailable(
            "The service's warehouse must run or resume by itself: set EXT_CLASSIFY_SNOWFLAKE_WAREHOUSE, "
            "grant USAGE on it, and ALTER WAREHOUSE … RESUME or raise its resource monitor. "
            f"Received: error {number}.",
            retryable=True,
        )
    if number in _ONE_FILE:
        return FetchFailed(
            f"The connector must be able to transfer a staged file. Received: error {number}.", retryable=True
        )
    if _is_unreachable(error) or number >= 250000:
        return no_answer(number)
    return SnowflakeRefused(f"Snowflake must execute the service's statement. Received: error {number}.")


def no_answer(number: int = 0) -> SnowflakeUnavailable:
    """The row error for a timeout or an unreachable Snowflake."""
    return SnowflakeUnavailable(
        f"Snowflake must answer in time. Received: {f'error {number}' if number else 'no answer'}.",
        retryable=True,
    )


def _is_unreachable(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return False  # from a key or token file, not from the network
    return isinstance(error, OSError) or bool(
        _UNREACHABLE_CLASSES & {base.__name__ for base in type(error).__mro__}
    )


def _number(error: Exception) -> int:
    number = None if isinstance(error, OSError) else getattr(error, "errno", None)
    return number if isinstance(number, int) and number > 0 else 0
