"""Flags that select a session with Snowflake or with local SQL."""

import argparse

from app.settings import Settings
from app.snowflake.console import Console, connect_as_service, open_console
from app.snowflake.spcs import is_inside_spcs
from app.sql_command import LOCAL_PORT, connect_locally


def add_connection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--connection",
        metavar="NAME",
        help="connection in connections.toml (default: its default connection)",
    )
    command.add_argument(
        "--local", action="store_true", help="connect to the local server of `ext-classify sql --serve`"
    )
    command.add_argument(
        "--port", type=int, default=LOCAL_PORT, help="port of the local server (default %(default)s)"
    )


def open_session(connection: str | None, local: bool, port: int) -> Console:
    """Open a session. Raises ClientError.

    Inside Snowpark Container Services without a named connection, it logs in with the container's token.
    """
    if local:
        return connect_locally(port)
    if connection is None and is_inside_spcs():
        return connect_as_service(Settings())
    return open_console(connection)
