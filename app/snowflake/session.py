"""The service's Snowflake session: a pool of connections that runs statements and downloads staged files.

Also its credentials, as arguments of the connector's connect(), and Snowflake's errors as row errors.

A connection runs one statement at a time. There are at most as many connections as threads, so a burst of
batches queues for connections instead of opening more. The connector never runs on the event loop.
"""

import asyncio
import contextlib
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from app.errors import FileMissing, SnowflakeRefused, SnowflakeUnavailable
from app.names import quote_identifier, quote_string
from app.settings import Settings
from app.telemetry.log import logger
from model.errors import ImageTooLarge, InputError

if TYPE_CHECKING:
    from snowflake.connector import SnowflakeConnection

import math
import os

from app.errors import (
    FetchFailed,
    SnowflakeLoginFailed,
    StageNotAuthorized,
    WarehouseUnavailable,
)
from app.settings import SPCS_TOKEN_FILE

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


# Pause after a failed login: Snowflake locks users after too many failures.
LOGIN_PAUSE_SECONDS = 15.0

_Result = TypeVar("_Result")

# The connector raises what it logs; _log writes each error once, on one line.
logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)


class _SessionExpired(SnowflakeUnavailable):
    """The session has expired; the same statement may succeed after a new login."""


class SnowflakeSession:
    """Runs statements in one account as one user; safe for all coroutines of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.snowflake_timeout_seconds
        self._turns = asyncio.Semaphore(settings.snowflake_max_connections)
        self._unavailable_at = float("-inf")
        self._threads = ThreadPoolExecutor(settings.snowflake_max_connections, "snowflake")
        self._open: set[SnowflakeConnection] = set()
        self._idle: list[SnowflakeConnection] = []
        self._login_lock = threading.RLock()
        self._failed_login: tuple[float, InputError] | None = None

    async def query(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, in one round trip. Raises the InputErrors of app.snowflake.session."""

        def fetch(connection: "SnowflakeConnection") -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, tuple(parameters) or None)
                return cursor.fetchall()

        return await self._with_connection(fetch)

    async def query_dicts(self, statement: str) -> list[dict[str, Any]]:
        """As query(), with the columns by their names: those of SHOW may move."""

        def fetch(connection: "SnowflakeConnection") -> list[dict[str, Any]]:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return await self._with_connection(fetch)

    async def download(self, stage: tuple[str, ...], path: str, max_bytes: int) -> bytes:
        """A staged file, decrypted by the connector. Raises FileMissing, ImageTooLarge, or as query()."""
        return await self._with_connection(
            lambda connection: download_file(connection, stage, path, max_bytes)
        )

    async def __aenter__(self) -> Self:
        """Start to log in if there is an account; neither batches nor readiness wait for it."""
        if self._settings.reads_stages:
            self._warming = asyncio.ensure_future(self._warm())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        closing = [asyncio.to_thread(connection.close) for connection in list(self._open)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.gather(*closing, return_exceptions=True)

    async def _warm(self) -> None:
        with contextlib.suppress(InputError):  # already logged; batches get the same error
            await self._run(self._log_in_ahead)

    async def _with_connection(self, work: Callable[["SnowflakeConnection"], _Result]) -> _Result:
        return await self._run(lambda: self._work(work))

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        """Run in a thread. Calls that were already queued when Snowflake failed to answer fail at once."""
        queued_at = time.monotonic()
        await self._turns.acquire()
        if self._unavailable_at > queued_at:
            self._turns.release()
            raise no_answer()
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            result = await self._with_timeout(running)
        except asyncio.CancelledError:  # the caller has left, but the thread is busy until the statement ends
            running.add_done_callback(self._release_abandoned)
            raise
        except BaseException:
            self._turns.release()
            raise
        self._turns.release()
        return result

    async def _with_timeout(self, running: "asyncio.Future[_Result]") -> _Result:
        try:
            async with asyncio.timeout(self._timeout_seconds):  # the connector's own do not cap the total
                return await asyncio.shield(running)
        except TimeoutError:
            running.cancel()
            self._unavailable_at = time.monotonic()
            raise no_answer() from None
        except SnowflakeUnavailable:
            self._unavailable_at = time.monotonic()
            raise

    def _release_abandoned(self, running: "asyncio.Future[Any]") -> None:
        self._turns.release()
        if not running.cancelled():
            running.exception()  # retrieved, so that asyncio does not log it

    def _work(self, work: Callable[["SnowflakeConnection"], _Result]) -> _Result:
        try:
            return self._attempt(self._take_connection(), work)
        except _SessionExpired:
            return self._attempt(self._log_in(), work)

    def _attempt(
        self, connection: "SnowflakeConnection", work: Callable[["SnowflakeConnection"], _Result]
    ) -> _Result:
        is_expired = False
        try:
            return work(connection)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - the connector raises many types
            _log(error)
            failure, is_expired = statement_failure(error), is_session_over(error)
            raise (_SessionExpired(failure.message, retryable=True) if is_expired else failure) from None
        finally:
            if is_expired:
                self._close(connection)
            else:
                self._idle.append(connection)

    def _log_in_ahead(self) -> None:
        with self._login_lock:
            if not self._open:  # a batch may have logged in first
                self._idle.append(self._log_in())

    def _take_connection(self) -> "SnowflakeConnection":
        """The most recently used idle connection, or a new one."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with self._login_lock:
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            return self._log_in()

    def _log_in(self) -> "SnowflakeConnection":
        with self._login_lock:  # one login at a time, so that a failure stops the others
            if self._failed_login and time.monotonic() < self._failed_login[0]:
                raise self._failed_login[1].without_traceback()
            from snowflake import connector  # noqa: PLC0415 - takes 48 MB of memory

            try:
                version = int(connector.__version__.partition(".")[0])
                connection = connector.connect(**connect_arguments(self._settings, version))
            except Exception as error:  # noqa: BLE001
                _log(error)
                failure = login_failure(error)
                self._failed_login = (time.monotonic() + LOGIN_PAUSE_SECONDS, failure)
                raise failure from None
            self._failed_login = None
            self._open.add(connection)
            return connection

    def _close(self, connection: "SnowflakeConnection") -> None:
        self._open.discard(connection)
        with contextlib.suppress(Exception):  # its session has expired anyway
            connection.close()


def _log(error: Exception) -> None:
    """For the operator only: callers get the error number, not the message."""
    logger.warning("Snowflake: %s: %s", type(error).__name__, " ".join(str(error).split())[:500])


# AES in CBC mode pads each file by 1 to 16 bytes.
_BLOCK_BYTES = 16


def download_file(
    connection: "SnowflakeConnection", stage: tuple[str, ...], path: str, max_bytes: int
) -> bytes:
    """The decrypted content. Raises FileMissing, ImageTooLarge, or the connector's errors.

    GET treats its path as a prefix, so the matching files are listed first.
    """
    location = quote_string(f"@{quote_identifier(*stage)}/{path}")
    name = path.rpartition("/")[2]
    with connection.cursor() as cursor, tempfile.TemporaryDirectory(prefix="ext-classify-") as folder:
        cursor.execute(f"LIST {location}")
        listed = cursor.fetchall()
        _refuse_bytes(_listed_bytes(listed, path) - _BLOCK_BYTES, max_bytes)
        pattern = f" PATTERN = {quote_string(f'.*{re.escape(name)}')}" if len(listed) > 1 else ""
        cursor.execute(f"GET {location} {quote_string(f'file://{folder}/')}{pattern}")
        content = _read(Path(folder) / name)
        _refuse_bytes(len(content), max_bytes)
        return content


def _read(path: Path) -> bytes:
    """The connector lengthens file names while it decrypts, and fails silently if they get too long."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SnowflakeRefused(
            "A staged file that is not fetched by a presigned URL must have a name of at most 200 bytes. "
            f"Received: {len(path.name.encode())} bytes."
        ) from None


def _listed_bytes(listed: list[tuple[Any, ...]], path: str) -> int:
    """The size of the file at exactly `path`. Names in LIST begin with the stage's name or URL."""
    behind = f"/{path}"
    sizes = [int(size) for name, size, *_ in listed if name.partition(behind)[1:] == (behind, "")]
    if len(sizes) != 1:
        raise FileMissing(
            "A staged file must exist. Received: none at this path; check the path, and run "
            "ALTER STAGE … REFRESH if a directory table still lists it."
        )
    if sum(name.rpartition("/")[2] == path.rpartition("/")[2] for name, *_ in listed) > 1:
        raise SnowflakeRefused(
            "A staged file must not share its path with a folder that contains a file of the same name: GET "
            "would confuse them."
        )
    return sizes[0]


def _refuse_bytes(image_bytes: int, max_bytes: int) -> None:
    if image_bytes > max_bytes:
        raise ImageTooLarge(f"An image must have at most {max_bytes} bytes. Received: more than that.")
