"""ext-classify serve: the app under uvicorn, in this process or in several."""

import gc
import os
import resource
import sys
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE

from app.server import metrics_files
from app.server.connection import HttpProtocol
from app.server.supervisor import Workers, stop_with_supervisor
from app.server.uvicorn_server import LastCallServer
from app.settings import Settings
from app.workers.host import ClassifierProcesses
from model.errors import ModelError

if TYPE_CHECKING:
    from app.api.asgi import Service

# uvicorn's own lines, tracebacks among them, do not wait for the log's reader either.
_LOG_HANDLERS = {"default": {"class": "app.telemetry.log.BackgroundHandler", "formatter": "default"}}
_LOG_CONFIG = {**LOGGING_CONFIG, "handlers": {**LOGGING_CONFIG["handlers"], **_LOG_HANDLERS}}

# Gateways hold idle connections for a minute or so; closing first would race their next request.
KEEP_ALIVE_SECONDS = 75
# For those who are refused when the grace period is over to hear of it.
_ANSWERING_SECONDS = 2


def serve(settings: Settings, flags: Mapping[str, Any]) -> None:
    """Return when the service was stopped. `flags` are the settings that no environment variable says.

    Raises ModelError, or SystemExit when the workers could not start.
    """
    _allow_open_files()
    if settings.workers == 1:
        _serve_alone(settings)
    else:
        _serve_in_workers(settings, flags)


def _serve_alone(settings: Settings) -> None:
    server = LastCallServer(uvicorn.Config(start_app(settings), **_options(settings)))
    with suppress(KeyboardInterrupt):  # it raises anew what it has heard
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def start_app(settings: Settings) -> "Service":
    """The app, with what it holds for ever out of the garbage collector's way."""
    processes = ClassifierProcesses(settings)
    from app.main import create_app  # noqa: PLC0415 - imported while the processes open the network

    app = create_app(settings, processes)
    gc.freeze()
    gc.enable()
    return app


def worker() -> "Service":
    """What each worker serves. A fault that keeps all of them from starting ends the service."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    stop_with_supervisor(folder)
    try:
        metrics_files.reserve(folder)
        return start_app(Settings())
    except (ModelError, OSError) as error:
        _say_once(folder, f"ext-classify: {error}")
        sys.exit(STARTUP_FAILURE)


def _say_once(folder: Path, message: str) -> None:
    """All workers meet the same fault at their start."""
    try:
        (folder / f"fault_{zlib.crc32(message.encode())}").touch(exist_ok=False)
    except FileExistsError:
        return
    except OSError:  # no room, and better said twice than never
        pass
    print(message, file=sys.stderr)


def _serve_in_workers(settings: Settings, flags: Mapping[str, Any]) -> None:
    os.environ.update({f"EXT_CLASSIFY_{name.upper()}": str(value) for name, value in flags.items()})
    config = uvicorn.Config(
        f"{__name__}:{worker.__name__}", factory=True, workers=settings.workers, **_options(settings)
    )
    with tempfile.TemporaryDirectory(prefix="ext-classify-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # whichever worker is asked answers for all
        metrics_files.require_room(Path(folder), settings.workers)
        workers = Workers(config, [config.bind_socket()])
        workers.run()
    if workers.has_failed:
        sys.exit(1)


def _allow_open_files() -> None:
    """As many as the system does: connections that nobody uses are not to keep out those that are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a lower limit than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_level": settings.log_level,
        "log_config": _LOG_CONFIG,
        "access_log": False,
        "proxy_headers": False,  # nothing here asks for a caller's address
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "server_header": False,
        "timeout_graceful_shutdown": settings.stop_grace_seconds + _ANSWERING_SECONDS,
        "http": HttpProtocol(),
        "ws": "none",
    }
