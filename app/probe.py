"""python -m app.probe: exit 0 if the service in this container is ready, for a HEALTHCHECK.

Without the command line's imports, for it runs every few seconds.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

_TIMEOUT_SECONDS = 4.0


def is_ready() -> bool:
    host = os.environ.get("EXT_CLASSIFY_HOST", "127.0.0.1")
    reached_at = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not to listen on
    said = os.environ.get("EXT_CLASSIFY_PORT", "")
    port = int(said) if said.isdecimal() else 8000  # Kubernetes may say something else by it
    connection = HTTPConnection(reached_at, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready() else 1)
