"""Snowflake's URLs of staged files."""

import re
import secrets
from base64 import urlsafe_b64encode
from urllib.parse import quote

from app.emulator.catalog import Name, Stage

# The account in the service's settings. Random, so that a service which reads from another emulator refuses
# these file URLs instead of classifying its own files of the same names.
ACCOUNT = f"local-{secrets.token_hex(4)}"
ACCOUNT_HOST = f"{ACCOUNT}.snowflakecomputing.com"


def file_url(stage: Stage, relative_path: str) -> str:
    """The file URL of a directory table, in which dots and slashes are percent-encoded too."""
    return f"https://{ACCOUNT_HOST}/api/files/{_encode_name(stage.name)}/{_encode(relative_path)}"


def scoped_url(query_id: str, stage: Stage, relative_path: str) -> str:
    token = urlsafe_b64encode(f"{stage}/{relative_path}".encode()).decode().rstrip("=")
    return f"https://{ACCOUNT_HOST}/api/files/{query_id}/{token}"


def _encode_name(name: Name) -> str:
    return "/".join(map(_encode, name))


def _encode(text: str) -> str:
    encoded = quote(text, safe="").replace(".", "%2e")
    return re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), encoded)
