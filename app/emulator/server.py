"""The emulator's two servers on loopback: Snowflake's protocol over HTTP, its storage over HTTPS."""

import asyncio
import socket
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import trustme
import uvicorn
from starlette.applications import Starlette

from app.emulator.catalog import ACCOUNT, DATABASE, SCHEMA, Name, Stage
from app.emulator.emulation import LocalSnowflake
from app.emulator.protocol import close_sessions, create_protocol_app
from app.emulator.query import Query
from app.emulator.remote import CONCURRENT_BATCHES, RETRY_SECONDS, Chaos, RemoteService

HOST = "127.0.0.1"


class LocalServer:
    """Runs both servers in threads until the context exits. Port 0 selects a free port."""

    def __init__(
        self,
        port: int = 0,
        *,
        chaos: Chaos | None = None,
        retry_seconds: float = RETRY_SECONDS,
        concurrent_batches: int = CONCURRENT_BATCHES,
        refused_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._exit = ExitStack()
        self._protocol_socket = _listen(port)
        self._storage_socket = _listen(0)
        self.port: int = self._protocol_socket.getsockname()[1]
        self.storage_host = f"localhost:{self._storage_socket.getsockname()[1]}"
        self.local = LocalSnowflake(
            f"https://{self.storage_host}",
            f"http://{HOST}:{self.port}",
            RemoteService(
                chaos,
                retry_seconds=retry_seconds,
                concurrent_batches=concurrent_batches,
                refused_seconds=refused_seconds,
            ),
        )

    def __enter__(self) -> Self:
        folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="ext-classify-local-")))
        self.authority_file = folder / "authority.pem"
        certificate, key = _issue_certificate(self.authority_file)
        self._exit.callback(self.local.close)
        self._exit.callback(close_sessions, self.local)
        self._serve(create_protocol_app(self.local), self._protocol_socket)
        self._serve(self.local.storage.app(), self._storage_socket, ssl_certfile=certificate, ssl_keyfile=key)
        self._exit.callback(self.cancel_queries)  # runs first: a stop waits for running queries
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def mount(self, folder: Path, name: str = "IMAGES") -> Stage:
        """Show the images of a folder in a stage with a current directory table; clients can add others."""
        catalog = self.local.catalog
        stage = catalog.new_stage(
            (DATABASE, SCHEMA, name), mounted=folder, has_directory=True, is_server_side_encrypted=True
        )
        stage.refresh()
        catalog.stages[stage.name] = stage
        return stage

    def run_service(self, name: Name, url: str) -> None:
        """Let service functions call the service at `url` by this name, with the endpoint `api`."""
        self.local.catalog.services[name] = {"api": url}

    def query(self, query_id: str) -> Query | None:
        """The query, with the counts of its calls; None unless it is one of the latest finished ones."""
        return self.local.queries.finished.get(query_id)

    @property
    def sent_rows(self) -> int:
        """Rows that the running queries have sent to services so far."""
        return sum(query.counts["rows"] for query in list(self.local.queries.running.values()))

    def cancel_queries(self) -> None:
        self.local.queries.cancel()

    @property
    def connect_arguments(self) -> dict[str, Any]:
        """Arguments of the connector's connect()."""
        return {
            "account": ACCOUNT,
            "user": "LOCAL",
            "password": "any",
            "host": HOST,
            "port": self.port,
            "protocol": "http",
            "database": DATABASE,
            "schema": SCHEMA,
            "session_parameters": {"CLIENT_TELEMETRY_ENABLED": False},
        }

    @property
    def service_environment(self) -> dict[str, str]:
        """Environment variables for a service that reads these stages."""
        settings = {
            "ALLOWED_URL_HOSTS": self.storage_host,
            "ALLOW_PRIVATE_ADDRESSES": "true",
            "SNOWFLAKE_ACCOUNT": ACCOUNT,
            "SNOWFLAKE_USER": "CLASSIFIER",
            "SNOWFLAKE_TOKEN": "any",
            "SNOWFLAKE_HOST": HOST,
            "SNOWFLAKE_PORT": str(self.port),
            "SNOWFLAKE_PROTOCOL": "http",
        }
        environment = {f"EXT_CLASSIFY_{name}": value for name, value in settings.items()}
        return environment | {"SSL_CERT_FILE": str(self.authority_file)}

    def _serve(self, app: Starlette, listening: socket.socket, **options: Any) -> None:
        # uvicorn's logging would close every handler of the process, and with absl's the process's stderr.
        options |= {"log_config": None, "log_level": "warning", "access_log": False}
        config = uvicorn.Config(app, lifespan="off", **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=asyncio.run, args=(server.serve(sockets=[listening]),), daemon=True, name="local-sql"
        )
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()
            listening.close()

        self._exit.callback(stop)


def _listen(port: int) -> socket.socket:
    listening = socket.create_server((HOST, port))
    # asyncio does not set it on sockets created without a protocol; without it an answer takes 40 ms more.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _issue_certificate(authority_file: Path) -> tuple[Path, Path]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(authority_file)
    issued = authority.issue_cert("localhost", HOST)
    certificate, key = authority_file.with_name("storage.pem"), authority_file.with_name("storage.key")
    issued.private_key_pem.write_to_path(key)
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(certificate, append=index > 0)
    return certificate, key
