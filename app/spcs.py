"""Detects Snowpark Container Services and locates the token that it mounts."""

import os
from pathlib import Path

# Snowflake renews the mounted token every few minutes; a login needs the newest.
# Source: Snowflake documentation, "Connect to Snowflake from within a container".
TOKEN_FILE = Path("/snowflake/session/token")


def is_inside_spcs() -> bool:
    return "SNOWFLAKE_HOST" in os.environ and TOKEN_FILE.is_file()
