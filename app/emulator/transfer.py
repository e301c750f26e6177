"""PUT and GET: the responses with which Snowflake's clients upload and download the files of a stage.

The clients use this storage as Google Cloud Storage, the only kind that they access by signed URLs alone.
They encrypt the files of a stage without server-side encryption, as they do in Snowflake.
"""

import re
from pathlib import PurePosixPath
from typing import Any

from snowflake.connector.errors import Error

from app.emulator.catalog import Stage
from app.emulator.grammar import Tokens
from app.emulator.refusals import invalid, syntax_error, unsupported
from app.emulator.session import LocalConnection
from app.emulator.storage import METADATA_PREFIX

_SIGNED_SECONDS = 3600
_PUT_OPTIONS = dict.fromkeys(("AUTO_COMPRESS", "OVERWRITE", "PARALLEL", "SOURCE_COMPRESSION"), "")
_GET_OPTIONS = dict.fromkeys(("PARALLEL", "PATTERN"), "")
_COMMENT = r"--[^\n]*|//[^\n]*|/\*.*?\*/"
# Not by tokens: connector 4.x repeats the PUT for each file, with the unescaped name between the quotes.
_PUT = re.compile(
    rf"(?:\s|{_COMMENT})*PUT\s+(?:'(?:file://)?(?P<quoted>.*?)'|(?:file://)?(?P<bare>\S+))\s+(?P<rest>'?@.*)",
    re.IGNORECASE | re.DOTALL,
)
_PATTERN = re.compile(r"[*?\[]")


def answer_transfer(sql: str, session: LocalConnection) -> dict[str, Any] | None:
    """The response data of a PUT or GET, None for other statements. Raises ProgrammingError."""
    if put := _PUT.fullmatch(sql):
        return _answer_put(put, session)
    tokens = Tokens(sql)
    if tokens.take("PUT"):
        raise syntax_error("PUT must be followed by 'file://<path>' and a stage")
    return _answer_get(tokens, session) if tokens.take("GET") else None


def is_put(sql: str) -> bool:
    return _PUT.fullmatch(sql) is not None


def failed_put(error: Error, session: LocalConnection) -> dict[str, Any]:
    """The response data of a failed PUT. Connector 4.x ignores the error when it repeats a PUT for a file.

    It uses the URL of the response in any case, so this one refuses the upload.
    """
    refused = {"presignedUrl": session.local.uploads.refused_url}
    return {"errorCode": f"{error.errno:06d}", "sqlState": error.sqlstate, "stageInfo": _STAGE_INFO | refused}


def _answer_put(put: re.Match[str], session: LocalConnection) -> dict[str, Any]:
    tokens = Tokens(put["rest"])
    stage, folder = session.find_stage(tokens.take_location())
    options = tokens.take_options(_PUT_OPTIONS)
    if stage.is_users_folder:
        raise invalid(f"PUT is not allowed on stage {stage}, a mounted folder.")
    source = put["bare"] or re.sub(r"\\\\|''|\\'", lambda match: match[0][1], put["quoted"])
    compresses = _flag(options, "AUTO_COMPRESS", default=True)
    is_single_uncompressed = not compresses and not _PATTERN.search(source)
    if not is_single_uncompressed and not session.repeats_puts:
        raise unsupported("PUT with AUTO_COMPRESS = TRUE or a pattern from this client")
    if "''" in (put["quoted"] or "") and not is_single_uncompressed:
        raise unsupported("PUT with AUTO_COMPRESS = TRUE or a pattern for a name with a quote")
    data = {
        "command": "UPLOAD",
        "src_locations": [source],
        "autoCompress": compresses,
        "sourceCompression": str(options.get("SOURCE_COMPRESSION", "auto_detect")).lower(),
        "overwrite": True,  # the storage enforces OVERWRITE
        "parallel": _parallel(options),
        "stageInfo": {
            **_STAGE_INFO,
            # With a token the client uses the URL; without one it repeats the PUT with each file's name.
            "creds": {"GCS_ACCESS_TOKEN": "none"} if is_single_uncompressed else {},
            "location": f"{stage.name[-1]}/{folder}",
            "presignedUrl": session.local.uploads.sign(
                stage,
                _target(stage, folder, source),
                _SIGNED_SECONDS,
                method="PUT",
                overwrite=_flag(options, "OVERWRITE", default=False),
            ),
            "isClientSideEncrypted": not stage.is_server_side_encrypted,
        },
    }
    if not stage.is_server_side_encrypted:
        data["encryptionMaterial"] = _key_of(stage)
    return data


def _target(stage: Stage, folder: str, source: str) -> str:
    """The file's path in the stage. Raises ProgrammingError for a path that a folder cannot hold."""
    target = (folder.removesuffix("/") + "/" if folder else "") + PurePosixPath(source).name
    try:
        stage.place_of(target)
    except ValueError as error:
        raise invalid(str(error)) from None
    return target


def _answer_get(tokens: Tokens, session: LocalConnection) -> dict[str, Any]:
    stage, prefix = session.find_stage(tokens.take_location())
    target = tokens.take_file_url().removeprefix("file://")
    options = tokens.take_options(_GET_OPTIONS)
    if "PATTERN" in options:
        raise unsupported("GET with PATTERN")
    paths = [file.relative_path for file in stage.list_files(prefix)]
    data = {
        "command": "DOWNLOAD",
        "src_locations": paths,
        "localLocation": target,
        "parallel": _parallel(options),
        "presignedUrls": [session.local.uploads.sign(stage, path, _SIGNED_SECONDS) for path in paths],
        "stageInfo": {**_STAGE_INFO, "location": f"{stage.name[-1]}/"},
    }
    encrypted = [_key_of(stage) if _is_encrypted(stage, path) else None for path in paths]
    if any(encrypted):
        data["encryptionMaterial"] = encrypted
    return data


_STAGE_INFO: dict[str, Any] = {
    "locationType": "GCS",
    "creds": {},
    "region": "us-central1",
    "endPoint": None,
    "storageAccount": None,
    "path": "",
}


def _flag(options: dict[str, Any], name: str, *, default: bool) -> bool:
    value = str(options.get(name, default)).upper()
    if value not in {"TRUE", "FALSE"}:
        raise invalid(f"invalid value [{value}] for parameter '{name}'")
    return value == "TRUE"


def _parallel(options: dict[str, Any]) -> int:
    value = str(options.get("PARALLEL", 4))
    if not value.isdecimal() or not 1 <= int(value) <= 99:
        raise invalid(f"invalid value [{value}] for parameter 'PARALLEL'")
    return int(value)


def _key_of(stage: Stage) -> dict[str, Any]:
    """The encryption material of a stage. Connector 5.x requires strings."""
    return {"queryStageMasterKey": stage.master_key, "queryId": "local", "smkId": "1"}


def _is_encrypted(stage: Stage, path: str) -> bool:
    return f"{METADATA_PREFIX}encryptiondata" in stage.metadata.get(path, {})
