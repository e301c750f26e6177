import builtins

import pytest
from snowflake.connector import errors
from snowflake.connector.vendored.requests.exceptions import ConnectionError as RequestsConnectionError

from app.errors import (
    SnowflakeLoginFailed,
    SnowflakeRefused,
    SnowflakeUnavailable,
    StageNotAuthorized,
    WarehouseUnavailable,
)
from app.snowflake.session import is_session_over, login_failure, statement_failure
from model.errors import InputError

NAMES = "object 'PAYROLL.SALARIES' of user 'ANNA'"


def refused(number: int) -> Exception:
    """The connector's exception for an error of Snowflake's server."""
    return errors.ProgrammingError(msg=f"SQL compilation error:\n{NAMES}", errno=number, sqlstate="02000")


@pytest.mark.parametrize(
    ("number", "error", "retryable"),
    [
        (2003, StageNotAuthorized, False),
        (2043, StageNotAuthorized, False),
        (3001, StageNotAuthorized, False),
        (3003, StageNotAuthorized, False),
        (606, WarehouseUnavailable, True),
        (608, WarehouseUnavailable, True),
        (90073, WarehouseUnavailable, True),
        (604, SnowflakeRefused, False),
        (1003, SnowflakeRefused, False),
        (100038, SnowflakeRefused, False),
        (290503, SnowflakeUnavailable, True),
        (390104, SnowflakeUnavailable, True),
    ],
)
def test_error_number_of_a_statement_determines_the_error(
    number: int, error: type[InputError], retryable: bool
) -> None:
    failure = statement_failure(refused(number))
    assert type(failure) is error
    assert failure.retryable is retryable


@pytest.mark.parametrize(
    "error",
    [
        errors.OperationalError(msg="HTTP", errno=250003),
        errors.OperationalError(msg="timed out", errno=14),
        errors.InterfaceError(msg="HTTP", errno=290404),
        errors.InternalError(msg="Invalid response", errno=6),
        errors.HttpError(msg="HTTP", errno=290500),
        errors.RevocationCheckError(msg="revoked"),
        RequestsConnectionError("reset"),
        builtins.ConnectionResetError(104, "reset"),
        TimeoutError("timed out"),
    ],
)
def test_network_errors_mean_unavailable(error: Exception) -> None:
    for failure in (statement_failure(error), login_failure(error)):
        if getattr(error, "errno", None) == 290404 and isinstance(failure, SnowflakeLoginFailed):
            continue  # at login, 404 means that the account does not exist
        assert type(failure) is SnowflakeUnavailable
        assert failure.retryable


@pytest.mark.parametrize(
    "error",
    [
        errors.DatabaseError(msg="Incorrect username or password was specified.", errno=390100),
        errors.DatabaseError(msg="JWT token is invalid.", errno=390144),
        errors.DatabaseError(msg="Failed to login", errno=250001),
        errors.ForbiddenError(msg="account", errno=250001),
        errors.HttpError(msg="404 Not Found", errno=290404),
        errors.ProgrammingError(msg="private key", errno=251008),
        FileNotFoundError(2, "No such file or directory", "/run/secrets/key.p8"),
        PermissionError(13, "Permission denied", "/run/secrets/token"),
        ValueError("Could not deserialize key data."),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"),
    ],
)
def test_credential_errors_mean_login_failed(error: Exception) -> None:
    failure = login_failure(error)
    assert type(failure) is SnowflakeLoginFailed
    assert not failure.retryable
    assert "/run/secrets" not in failure.message


@pytest.mark.parametrize(
    "error",
    [
        errors.DatabaseError(msg="Network policy is required.", errno=390432),
        errors.DatabaseError(
            msg="250001 (08001): Failed to connect to DB: a:443. Network policy is required.", errno=250001
        ),
        errors.OperationalError(msg="Login failed: Network policy is required.", errno=250001),
    ],
)
def test_missing_network_policy_is_named(error: Exception) -> None:
    failure = login_failure(error)
    assert type(failure) is SnowflakeLoginFailed
    assert "NETWORK_POLICY" in failure.message
    assert not failure.retryable


@pytest.mark.parametrize(
    "error",
    [
        refused(2003),
        refused(606),
        refused(1003),
        errors.OperationalError(msg=NAMES, errno=1),
    ],
)
def test_error_message_has_the_number_and_no_object_names(error: Exception) -> None:
    for failure in (statement_failure(error), login_failure(error)):
        assert NAMES not in failure.message
        assert f"error {error.errno}" in failure.message  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [250001, 250002, 290401, 390104, 390111, 390112, 390114, 390115, 390195])
def test_expired_session_is_recognized(number: int) -> None:
    assert is_session_over(refused(number))


@pytest.mark.parametrize("number", [2003, 606, 250003, 390100, 390144, 290503])
def test_other_errors_do_not_mean_an_expired_session(number: int) -> None:
    assert not is_session_over(refused(number))
    assert not is_session_over(OSError(number, "not a Snowflake error number"))
