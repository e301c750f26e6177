"""ext-classify sql: run SQL on an emulated Snowflake, without an account."""

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.cli.command_line import Add, end_well_when_stopped
from app.cli.service_process import reach_loopback_directly
from app.client import ClientError
from app.provisioning.console import Console, connect
from model.defaults import SAMPLES

LOCAL_PORT = 8100
LOCAL_DATABASE = "LOCAL"


def sql(
    statement: str | None,
    images: Path,
    url: str | None,
    as_json: bool,
    chaos: bool,
    seed: int,
    serve: bool,
    local: bool,
    port: int,
) -> None:
    if serve and (local or statement is not None):
        received = "`--local`" if local else "a statement"
        raise ClientError(f"`--serve` takes neither a statement nor `--local`. Received: {received}.")
    shell = import_local("app.cli.sql_shell")
    end_well_when_stopped()
    reach_loopback_directly()
    if local:
        with connect_locally(port) as console:
            shell.Shell(console).answer(statement, as_json=as_json)
        return
    running = shell.local_sql(images, url=url, chaos_seed=seed if chaos else None, port=port if serve else 0)
    with running as (session, service_url, _):
        if serve:
            with suppress(KeyboardInterrupt):
                shell.serve(session.server, service_url)
        else:
            session.answer(statement, as_json=as_json, banner=shell.banner(session, service_url, images))


def add_commands(add: Add) -> None:
    command = add(
        "sql", sql, "run SQL on an emulation of Snowflake that calls the service; no account needed"
    )
    command.add_argument(
        "statement", nargs="?", metavar="SQL", help="statement to run (default: read statements from stdin)"
    )
    command.add_argument(
        "--images", type=Path, default=SAMPLES, help="folder to mount as @images (default: the samples)"
    )
    command.add_argument("--url", help="URL of a running service (default: start one)")
    command.add_argument(
        "--json", action="store_true", dest="as_json", help="print each row as a line of JSON"
    )
    command.add_argument(
        "--chaos", action="store_true", help="repeat, delay, drop and reorder batches at random"
    )
    command.add_argument("--seed", type=int, default=0, help="random seed of --chaos (default %(default)s)")
    command.add_argument("--serve", action="store_true", help="accept other clients on --port")
    command.add_argument("--local", action="store_true", help="connect to the server of --serve on --port")
    command.add_argument(
        "--port", type=int, default=LOCAL_PORT, help="port of the emulator (default %(default)s)"
    )


def connect_locally(port: int) -> Console:
    """Connect to the server of `sql --serve`. Raises ClientError."""
    reach_loopback_directly()
    return connect(
        advice="Start one: ext-classify sql --serve" + (f" --port {port}." if port != LOCAL_PORT else "."),
        account="local",
        user="LOCAL",
        password="any",  # noqa: S106 - the emulator accepts any password
        protocol="http",
        host="127.0.0.1",
        port=port,
        database=LOCAL_DATABASE,
        schema="PUBLIC",
    )


def import_local(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ClientError(
            f"This command needs the sql extra, which make setup installs. Missing: {error.name}."
        ) from None
