"""Snowflake through its connector, for the service.

A connection serves one statement at a time, and there are at most as many as threads here, so that a burst
of batches queues instead of logging in again and again. The connector never runs on the event loop.
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

# A login that failed is not tried again before: Snowflake locks users who fail too often.
LOGIN_PAUSE_SECONDS = 15.0

_Result = TypeVar("_Result")

# The connector raises what it logs, and then it is here in one line.
logging.getLogger("snowflake.connector").setLevel(logging.CRITICAL)


class _SessionOver(SnowflakeUnavailable):
    """A new login may let the same statement through."""


class SnowflakeSession:
    """Statements to one account, as one user; safe to use from any coroutine of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.snowflake_timeout_seconds
        self._turns = asyncio.Semaphore(settings.snowflake_max_connections)
        self._silent_at = float("-inf")
        self._threads = ThreadPoolExecutor(settings.snowflake_max_connections, "snowflake")
        self._open: set[Any] = set()
        self._idle: list[Any] = []
        self._login_lock = threading.RLock()
        self._failed_login: tuple[float, InputError] | None = None

    async def query(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement, one round trip. Raises the InputErrors of app.snowflake.failures."""
        return await self._with_connection(lambda connection: _fetch_all(connection, statement, parameters))

    async def download(self, stage: tuple[str, ...], path: str, max_bytes: int) -> bytes:
        """A staged file, decrypted by the connector. Raises FileMissing, ImageTooLarge, or as query does."""
        return await self._with_connection(
            lambda connection: download_file(connection, stage, path, max_bytes)
        )

    async def __aenter__(self) -> Self:
        """Begins to log in, if there is an account; batches need not wait for it, nor does readiness."""
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
        with contextlib.suppress(InputError):  # it is logged, and the batches meet it
            await self._run(self._log_in_ahead)

    async def _with_connection(self, work: Callable[[Any], _Result]) -> _Result:
        return await self._run(lambda: self._work(work))

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        """In one of the threads. Whoever queued while Snowflake was silent has waited as long as any."""
        asked_at = time.monotonic()
        await self._turns.acquire()
        if self._silent_at > asked_at:
            self._turns.release()
            raise no_answer()
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            result = await self._answer_in_time(running)
        except asyncio.CancelledError:  # whoever asked has left, and the thread is busy until it is done
            running.add_done_callback(self._end_abandoned)
            raise
        except BaseException:
            self._turns.release()
            raise
        self._turns.release()
        return result

    async def _answer_in_time(self, running: "asyncio.Future[_Result]") -> _Result:
        try:
            async with asyncio.timeout(self._timeout_seconds):  # the connector's own limits are loose
                return await asyncio.shield(running)
        except TimeoutError:
            running.cancel()
            self._silent_at = time.monotonic()
            raise no_answer() from None
        except SnowflakeUnavailable:
            self._silent_at = time.monotonic()
            raise

    def _end_abandoned(self, running: "asyncio.Future[Any]") -> None:
        self._turns.release()
        if not running.cancelled():
            running.exception()  # which nobody is there to hear

    def _work(self, work: Callable[[Any], _Result]) -> _Result:
        try:
            return self._attempt(self._take_connection(), work)
        except _SessionOver:
            return self._attempt(self._log_in(), work)

    def _attempt(self, connection: Any, work: Callable[[Any], _Result]) -> _Result:
        is_over = False
        try:
            return work(connection)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the connector raises
            _log(error)
            failure, is_over = statement_failure(error), is_session_over(error)
            raise (_SessionOver(failure.message, retryable=True) if is_over else failure) from None
        finally:
            if is_over:
                self._close(connection)
            else:
                self._idle.append(connection)

    def _log_in_ahead(self) -> None:
        with self._login_lock:
            if not self._open:  # a batch may have been first
                self._idle.append(self._log_in())

    def _take_connection(self) -> Any:
        """The one that was used last, or a new one; whoever waits for a login may find one given back."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        with self._login_lock:
            with contextlib.suppress(IndexError):
                return self._idle.pop()
            return self._log_in()

    def _log_in(self) -> Any:
        with self._login_lock:  # one at a time, so that a failure is known before the next one tries
            if self._failed_login and time.monotonic() < self._failed_login[0]:
                raise self._failed_login[1].anew()
            connector = importlib.import_module("snowflake.connector")  # 48 MB, for those who need it
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
        with contextlib.suppress(Exception):  # whose session is over anyway
            connection.close()


def _log(error: Exception) -> None:
    """For whoever runs the service; callers get less to know."""
    logger.warning("Snowflake: %s: %s", type(error).__name__, " ".join(str(error).split())[:500])


def _fetch_all(connection: Any, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        rows: list[tuple[Any, ...]] = cursor.execute(statement, tuple(parameters) or None).fetchall()
        return rows
