"""The flags by which a command finds its session with Snowflake, or with local SQL."""

import argparse

from app.settings import Settings
from app.snowflake.console import Console, connect_as_service, open_console
from app.snowflake.spcs import is_inside_spcs
from app.sql_command import LOCAL_PORT, connect_locally


def add_connection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--connection", metavar="NAME", help="of connections.toml (default: its default)")
    command.add_argument("--local", action="store_true", help="the server of ext-classify sql --serve")
    command.add_argument("--port", type=int, default=LOCAL_PORT, help="of that server (default %(default)s)")


def open_session(connection: str | None, local: bool, port: int) -> Console:
    """By the container's own token in Snowpark Container Services, if none is named. Raises ClientError."""
    if local:
        return connect_locally(port)
    if connection is None and is_inside_spcs():
        return connect_as_service(Settings())
    return open_console(connection)
