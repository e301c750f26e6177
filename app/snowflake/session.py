"""The service's pool of Snowflake connections.

A connection runs one statement at a time. There are at most as many connections as threads, so a burst of
batches queues for connections instead of opening more. The connector never runs on the event loop.
"""

import asyncio
import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from app.errors import SnowflakeUnavailable
from app.log import logger
from app.settings import Settings
from app.snowflake.credentials import connect_arguments, is_configured
from app.snowflake.download import download_file
from app.snowflake.failures import is_session_over, login_failure, no_answer, statement_failure
from model.errors import InputError

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
        self._open: set[Any] = set()
        self._idle: list[Any] = []
        self._login_lock = threading.RLock()
        self._failed_login: tuple[float, InputError] | None = None

    async def query(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, in one round trip. Raises the InputErrors of app.snowflake.failures."""
        return await self._with_connection(lambda connection: _fetch_all(connection, statement, parameters))

    async def download(self, stage: tuple[str, ...], path: str, max_bytes: int) -> bytes:
        """A staged file, decrypted by the connector. Raises FileMissing, ImageTooLarge, or as query()."""
        return await self._with_connection(
            lambda connection: download_file(connection, stage, path, max_bytes)
        )

    async def __aenter__(self) -> Self:
        """Start to log in if there is an account; neither batches nor readiness wait for it."""
        if is_configured(self._settings):
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

    async def _with_connection(self, work: Callable[[Any], _Result]) -> _Result:
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

    def _work(self, work: Callable[[Any], _Result]) -> _Result:
        try:
            return self._attempt(self._take_connection(), work)
        except _SessionExpired:
            return self._attempt(self._log_in(), work)

    def _attempt(self, connection: Any, work: Callable[[Any], _Result]) -> _Result:
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

    def _take_connection(self) -> Any:
        """The most recently used idle connection, or a new one."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with self._login_lock:
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            return self._log_in()

    def _log_in(self) -> Any:
        with self._login_lock:  # one login at a time, so that a failure stops the others
            if self._failed_login and time.monotonic() < self._failed_login[0]:
                raise self._failed_login[1].anew()
            connector = importlib.import_module("snowflake.connector")  # imported lazily: 48 MB
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

    def _close(self, connection: Any) -> None:
        self._open.discard(connection)
        with contextlib.suppress(Exception):  # its session has expired anyway
            connection.close()


def _log(error: Exception) -> None:
    """For the operator only: callers get the error number, not the message."""
    logger.warning("Snowflake: %s: %s", type(error).__name__, " ".join(str(error).split())[:500])


def _fetch_all(connection: Any, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        rows: list[tuple[Any, ...]] = cursor.execute(statement, tuple(parameters) or None).fetchall()
        return rows
