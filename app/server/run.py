"""ext-classify serve: run the app under uvicorn, in this process or in several workers."""

import functools
import gc
import os
import resource
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from app.server.connection import HttpProtocol
from app.server.uvicorn_server import GracefulServer, Supervisor, stop_with_supervisor
from app.settings import Settings
from app.workers.starting import ClassifierProcesses
from model.errors import ModelError

if TYPE_CHECKING:
    from app.api.asgi import Service

# uvicorn's own log lines must not block the event loop either if the log's reader is slow.
_LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": "app.telemetry.log.LineFormatter"}},
    "handlers": {"background": {"class": "app.telemetry.log.BackgroundHandler", "formatter": "lines"}},
    "loggers": {"uvicorn": {"handlers": ["background"], "propagate": False}},
}

# After the grace period, the time to send 503 to the requests that are left.
_ANSWERING_SECONDS = 2
# The supervisor kills a worker that does not answer it for so long. On a machine that is short of CPU time, a
# worker takes more than uvicorn's 5 seconds to import its modules.
_HEALTHCHECK_SECONDS = 30

# Under overload a thousand requests wait, and with Python's threshold of 700 objects to traverse them took a
# quarter of this process's CPU time. Few objects are in cycles.
_GC_THRESHOLD = 20_000

# prometheus_client's files of one process: one for each kind of metric and each mode of gauges.
_FILE_BYTES = {
    "counter": 128 * 1024,
    "histogram": 128 * 1024,
    "gauge_livesum": 64 * 1024,
    "gauge_livemax": 64 * 1024,
    "gauge_livemin": 64 * 1024,
}


def serve(settings: Settings, flags: Mapping[str, Any], *, announces: bool = False) -> None:
    """Return after the service has stopped. `flags` are the settings given as flags, for the workers.

    `announces` prints the service's address on stderr once it is ready, for people.

    Raises ModelError, SystemExit if the workers cannot start, and KeyboardInterrupt after Ctrl-C.
    """
    _allow_open_files()
    announce = functools.partial(_announce, settings) if announces else lambda: None
    if settings.workers == 1:
        _serve_alone(settings, announce)
    else:
        _serve_in_workers(settings, flags, announce)


def _announce(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}{settings.root_path}"
    print(f"Serving {settings.model_path.stem} on {url}/ until Ctrl-C.", file=sys.stderr)
    print(f"Open it in a browser, or POST images to {url}/classify.", file=sys.stderr)


def _serve_alone(settings: Settings, announce: Callable[[], None]) -> None:
    config = uvicorn.Config(start_app(settings), **_options(settings))
    server = GracefulServer(config, announce)
    # asyncio's own socket for `::` accepts IPv6 only; this one accepts both families, as that of workers.
    server.run([config.bind_socket()] if ":" in settings.host else None)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def start_app(settings: Settings) -> "Service":
    """The app, with its permanent objects frozen, so that the garbage collector skips them."""
    processes = ClassifierProcesses(settings)
    from app.main import create_app  # noqa: PLC0415 - imported while the processes load the network

    app = create_app(settings, processes)
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    gc.enable()
    return app


def worker() -> "Service":
    """The app of one worker. If it cannot start, exits with STARTUP_FAILURE, which stops the service."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    stop_with_supervisor(folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        _reserve_metrics(folder)
        return start_app(Settings())
    except (ModelError, OSError) as error:
        _print_once(folder, f"ext-classify: {error}")
        sys.exit(STARTUP_FAILURE)


def _print_once(folder: Path, message: str) -> None:
    """Print the message unless another worker has: all fail to start for the same reason."""
    try:
        (folder / f"fault_{zlib.crc32(message.encode())}").touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError:  # no room for the file; then print it more than once
        pass
    print(message, file=sys.stderr)


def _serve_in_workers(settings: Settings, flags: Mapping[str, Any], announce: Callable[[], None]) -> None:
    os.environ.update({f"EXT_CLASSIFY_{name.upper()}": str(value) for name, value in flags.items()})
    config = uvicorn.Config(
        f"{__name__}:{worker.__name__}", factory=True, workers=settings.workers, **_options(settings)
    )
    with tempfile.TemporaryDirectory(prefix="ext-classify-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # so that each worker returns the metrics of all
        _require_room(Path(folder), settings.workers)
        supervisor = Supervisor(config, [config.bind_socket()], announce)
        supervisor.run()
    if supervisor.has_failed:
        sys.exit(1)
    if supervisor.is_interrupted:
        raise KeyboardInterrupt


def _require_room(folder: Path, workers: int) -> None:
    """Raises OSError unless the metrics files of this many workers fit."""
    probe = folder / "probe"
    try:
        _allocate(probe, workers * sum(_FILE_BYTES.values()))
    finally:
        probe.unlink(missing_ok=True)


def _reserve_metrics(folder: Path) -> None:
    """Allocate this process's metrics files, before prometheus_client is imported. Raises OSError.

    prometheus_client maps sparse files into memory. A write to a page for which the file system has no room
    kills the process with SIGBUS; allocating the pages first raises an error instead.
    """
    for kind, size_bytes in _FILE_BYTES.items():
        _allocate(folder / f"{kind}_{os.getpid()}.db", size_bytes)


def _allocate(path: Path, size_bytes: int) -> None:
    try:
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        raise OSError(
            f"The metrics of the workers need {size_bytes} bytes in {path.parent}: {error.strerror}. "
            "Set TMPDIR to another folder."
        ) from None


def _allow_open_files() -> None:
    """Raise the limit of open files to the maximum, because each connection uses one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports a higher maximum than it allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_level": settings.log_level,
        "log_config": _LOG_CONFIG,
        "access_log": False,
        "proxy_headers": False,  # the service does not use clients' addresses
        "timeout_keep_alive": settings.keep_alive_seconds,
        "server_header": False,
        "timeout_graceful_shutdown": settings.stop_grace_seconds + _ANSWERING_SECONDS,
        "timeout_worker_healthcheck": _HEALTHCHECK_SECONDS,
        "http": HttpProtocol(),
        "ws": "none",
    }
