"""Checks whether a port is free before anything is started that listens on it."""

import errno
import socket

from app.errors import CommandError

MOST_PORT = 65535


def refuse_taken_port(host: str, port: int) -> None:
    """Raises CommandError, with what to do. A port of 0 is any that is free."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        is_taken = error.errno == errno.EADDRINUSE and port < MOST_PORT
        advice = f"; another port: --port {port + 1}" if is_taken else ""
        raise CommandError(f"{host}:{port} cannot be listened on ({reason}){advice}") from None
