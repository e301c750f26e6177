"""python -m app.server.probe: exit with 0 if the service in this container is ready, for a HEALTHCHECK.

Imports only the standard library, because it runs every few seconds.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

_TIMEOUT_SECONDS = 4.0


def is_ready() -> bool:
    host = os.environ.get("EXT_CLASSIFY_HOST", "127.0.0.1")
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - connects, does not listen
    port_text = os.environ.get("EXT_CLASSIFY_PORT", "")
    port = int(port_text) if port_text.isdecimal() else 8000  # Kubernetes service links set it to a URL
    connection = HTTPConnection(address, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready() else 1)
