"""Statements on stages and their files.

PUT and GET return the responses with which Snowflake's clients upload and download files. The clients use the
emulator's storage as Google Cloud Storage, the only kind that they access by signed URLs alone. They encrypt
the files of a stage without server-side encryption, as they do in Snowflake.

Source: Snowflake documentation, CREATE, ALTER, DESCRIBE, SHOW and DROP STAGE, LIST, REMOVE, PUT and GET.
"""

import re
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from snowflake.connector.errors import Error

from app.emulator.catalog import TIME_OF_FILES, Stage
from app.emulator.errors import already_exists, invalid, invalid_value, syntax_error, unsupported
from app.emulator.grammar import Tokens
from app.emulator.query import Answer, status
from app.emulator.session import Session
from app.emulator.storage import METADATA_PREFIX, Storage
from app.names import quote_identifier, quote_string

_STAGE_OPTIONS = frozenset({"DIRECTORY", "ENCRYPTION", "COMMENT", "FILE_FORMAT", "COPY_OPTIONS", "URL"})


def create_stage(tokens: Tokens, session: Session, *, replace: bool) -> Answer:
    keep = tokens.take_if_not_exists(replace=replace)
    name = session.qualify(tokens.take_name())
    session.require_schema(*name[:2])
    properties = _properties(tokens.take_options(_STAGE_OPTIONS))
    known = session.catalog.stages
    if name in known and keep:
        return status(f"{name[-1]} already exists, statement succeeded.")
    if name in known and not replace:
        raise already_exists(name[-1])
    known[name] = session.catalog.new_stage(name, **properties)
    session.catalog.drop_grants("STAGE", quote_identifier(*name))
    return status(f"Stage area {name[-1]} successfully created.")


def alter_stage(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    if optional and name not in session.catalog.stages:
        return status()
    stage = session.catalog.stage(name)
    if tokens.take("REFRESH"):
        if tokens.take("SUBPATH"):
            raise unsupported("REFRESH with SUBPATH")
        tokens.require_end()
        return _refresh(stage)
    tokens.require("SET")
    for key, value in _properties(tokens.take_options(_STAGE_OPTIONS), is_new=False).items():
        setattr(stage, key, value)
    if not stage.has_directory:
        stage.directory = []
    return status()


def drop_stage(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    tokens.require_end()
    if optional and name not in session.catalog.stages:
        return status(f"Drop statement executed successfully ({name[-1]} already dropped).")
    del session.catalog.stages[session.catalog.stage(name).name]
    session.catalog.drop_grants("STAGE", quote_identifier(*name))
    return status(f"{name[-1]} successfully dropped.")


def describe_stage(tokens: Tokens, session: Session) -> Answer:
    stage = session.catalog.stage(session.qualify(tokens.take_name()))
    tokens.require_end()
    encryption = "SNOWFLAKE_SSE" if stage.is_server_side_encrypted else "SNOWFLAKE_FULL"
    rows = [
        ["DIRECTORY", "ENABLE", "Boolean", str(stage.has_directory).lower(), "false"],
        ["STAGE_LOCATION", "URL", "String", "", ""],
        ["STAGE_ENCRYPTION", "TYPE", "String", encryption, "SNOWFLAKE_FULL"],
    ]
    return Answer(
        ["parent_property", "property", "property_type", "property_value", "property_default"], rows
    )


_STAGE_COLUMNS = (
    "created_on",
    "name",
    "database_name",
    "schema_name",
    "url",
    "has_credentials",
    "has_encryption_key",
    "owner",
    "comment",
    "region",
    "type",
    "cloud",
    "notification_channel",
    "storage_integration",
    "endpoint",
    "owner_role_type",
    "directory_enabled",
)


def show_stages(tokens: Tokens, session: Session) -> Answer:
    shown = session.take_filter(tokens)
    rows = [_stage_row(stage) for stage in session.catalog.stages.values() if shown(stage.name)]
    return Answer(_STAGE_COLUMNS, rows, {"created_on": pa.timestamp("us", "UTC")})


def _stage_row(stage: Stage) -> list[Any]:
    database, schema, name = stage.name
    row: dict[str, Any] = dict.fromkeys(_STAGE_COLUMNS)
    row |= {
        "created_on": stage.created_on,
        "name": name,
        "database_name": database,
        "schema_name": schema,
        "url": "",
        "has_credentials": "N",
        "has_encryption_key": "N",
        "owner": "PUBLIC",
        "comment": stage.comment,
        "type": _type_of(stage),
        "owner_role_type": "ROLE",
        "directory_enabled": "Y" if stage.has_directory else "N",
    }
    return list(row.values())


def list_files(tokens: Tokens, session: Session) -> Answer:
    stage, prefix = session.find_stage(tokens.take_location())
    if not tokens.at_end:
        raise unsupported("LIST with PATTERN")
    rows = [
        [
            f"{stage.name[-1].lower()}/{file.relative_path}",
            file.size,
            file.md5,
            file.last_modified.strftime(TIME_OF_FILES),
        ]
        for file in stage.list_files(prefix)
    ]
    return Answer(["name", "size", "md5", "last_modified"], rows, {"size": pa.int64()})


def remove_files(tokens: Tokens, session: Session) -> Answer:
    stage, prefix = session.find_stage(tokens.take_location())
    if not tokens.at_end:
        raise unsupported("REMOVE with PATTERN")
    paths = [file.relative_path for file in stage.list_files(prefix)]
    if any(not stage.resolve(path).is_file() for path in paths):
        raise invalid(
            f"REMOVE must leave the mounted folder of stage {stage} as it is. Received: {prefix!r}."
        )
    for path in paths:
        stage.resolve(path).unlink()
        stage.metadata.pop(path, None)
    return Answer(["name", "result"], [[f"{stage.name[-1].lower()}/{path}", "removed"] for path in paths])


def _refresh(stage: Stage) -> Answer:
    if not stage.has_directory:
        raise invalid(f"Stage {stage} has no directory table.")
    before = {file.relative_path for file in stage.directory}
    paths = [file.relative_path for file in stage.refresh()]
    return Answer(["file", "status"], [[path, "REGISTERED_NEW"] for path in paths if path not in before])


def _type_of(stage: Stage) -> str:
    if stage.mounted is not None:
        return "EXTERNAL"
    return "INTERNAL NO CSE" if stage.is_server_side_encrypted else "INTERNAL"


def _properties(options: dict[str, Any], *, is_new: bool = True) -> dict[str, Any]:
    """The stage attributes that the options set. Raises ProgrammingError if unsupported or invalid."""
    if "URL" in options:
        raise unsupported("external stage")
    properties: dict[str, Any] = {}
    if "DIRECTORY" in options:
        properties["has_directory"] = _flag(_nested(options, "DIRECTORY", "ENABLE"), "ENABLE")
    if "ENCRYPTION" in options:
        if not is_new:
            raise invalid("ENCRYPTION of a stage cannot be altered.")
        kind = str(_nested(options, "ENCRYPTION", "TYPE")).upper()
        if kind not in {"SNOWFLAKE_SSE", "SNOWFLAKE_FULL"}:
            raise invalid_value("TYPE", kind)
        properties["is_server_side_encrypted"] = kind == "SNOWFLAKE_SSE"
    if "COMMENT" in options:
        properties["comment"] = str(options["COMMENT"])
    return properties


def _nested(options: dict[str, Any], name: str, key: str) -> Any:
    """The value of `key`. Raises ProgrammingError if it is missing, or if there are other keys."""
    given = options[name]
    if not isinstance(given, dict) or key not in given:
        raise invalid(f"{name} must be ({key} = …).")
    if unknown := given.keys() - {key}:
        raise unsupported(f"{', '.join(sorted(unknown))} of {name}")
    return given[key]


def _flag(value: Any, name: str) -> bool:
    if str(value).upper() not in {"TRUE", "FALSE"}:
        raise invalid_value(name, value)
    return str(value).upper() == "TRUE"


# PUT and GET.

_SIGNED_SECONDS = 3600
_PUT_OPTIONS = frozenset({"AUTO_COMPRESS", "OVERWRITE", "PARALLEL", "SOURCE_COMPRESSION"})
_GET_OPTIONS = frozenset({"PARALLEL", "PATTERN"})
_COMMENT = r"--[^\n]*|//[^\n]*|/\*.*?\*/"
# Not by tokens: connector 4.x repeats the PUT for each file, with the unescaped name between the quotes.
_PUT = re.compile(
    rf"(?:\s|{_COMMENT})*PUT\s+(?:'(?:file://)?(?P<quoted>.*?)'|(?:file://)?(?P<bare>\S+))\s+(?P<rest>'?@.*)",
    re.IGNORECASE | re.DOTALL,
)
_WILDCARD = re.compile(r"[*?\[]")
_STAGE_INFO: dict[str, Any] = {
    "locationType": "GCS",
    "creds": {},
    "region": "us-central1",
    "endPoint": None,
    "storageAccount": None,
    "path": "",
}


def answer_transfer(
    sql: str, session: Session, storage: Storage, bound_stage: str = ""
) -> dict[str, Any] | None:
    """The response data of a PUT or GET, None for other statements. Raises ProgrammingError.

    `bound_stage` is the bind of `PUT 'file://<path>' ?`, which write_pandas sends. Its client does not repeat
    the PUT for each file.
    """
    if bound_stage:
        sql = re.sub(r"\?(?=[^?]*$)", lambda _: quote_string(bound_stage), sql)
    if put := _PUT.fullmatch(sql):
        return _answer_put(put, session, storage, is_bound=bool(bound_stage))
    tokens = Tokens(sql)
    if tokens.take("PUT"):
        raise syntax_error("PUT must be followed by 'file://<path>' and a stage")
    if tokens.take("COPY", "FILES"):  # sqlglot cannot parse it
        raise unsupported("COPY FILES")
    return _answer_get(tokens, session, storage) if tokens.take("GET") else None


def failed_put(sql: str, error: Error, storage: Storage) -> dict[str, Any]:
    """The additional response data of a failed PUT, {} for other statements.

    Connector 4.x ignores the error when it repeats a PUT for a file, and uses the URL of the response in any
    case, so this URL refuses the upload.
    """
    if not _PUT.fullmatch(sql):
        return {}
    refused = {"presignedUrl": storage.refused_url}
    return {"errorCode": f"{error.errno:06d}", "sqlState": error.sqlstate, "stageInfo": _STAGE_INFO | refused}


def _answer_put(put: re.Match[str], session: Session, storage: Storage, *, is_bound: bool) -> dict[str, Any]:
    tokens = Tokens(put["rest"])
    stage, folder = session.find_stage(tokens.take_location())
    options = tokens.take_options(_PUT_OPTIONS)
    source = put["bare"] or re.sub(r"\\\\|''|\\'", lambda match: match[0][1], put["quoted"])
    compresses = _flag(options.get("AUTO_COMPRESS", True), "AUTO_COMPRESS")
    has_known_name = (is_bound or not compresses) and not _WILDCARD.search(source)
    if not has_known_name and (is_bound or not session.repeats_puts):
        raise unsupported("PUT with AUTO_COMPRESS = TRUE or a pattern from this client")
    if "''" in (put["quoted"] or "") and not has_known_name:
        raise unsupported("PUT with AUTO_COMPRESS = TRUE or a pattern for a name with a quote")
    url = storage.sign(
        stage,
        _target(stage, folder, source),
        _SIGNED_SECONDS,
        method="PUT",
        overwrite=_flag(options.get("OVERWRITE", False), "OVERWRITE"),
    )
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
            "creds": {"GCS_ACCESS_TOKEN": "none"} if has_known_name else {},
            "location": f"{stage.name[-1]}/{folder}",
            "presignedUrl": url,
            "isClientSideEncrypted": not stage.is_server_side_encrypted,
        },
    }
    if not stage.is_server_side_encrypted:
        data["encryptionMaterial"] = _encryption_material(stage)
    return data


def _target(stage: Stage, folder: str, source: str) -> str:
    """The file's path in the stage. Raises ProgrammingError for a path that a folder cannot hold."""
    target = (folder.removesuffix("/") + "/" if folder else "") + PurePosixPath(source).name
    try:
        stage.resolve(target)
    except ValueError as error:
        raise invalid(str(error)) from None
    return target


def _answer_get(tokens: Tokens, session: Session, storage: Storage) -> dict[str, Any]:
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
        "presignedUrls": [storage.sign(stage, path, _SIGNED_SECONDS) for path in paths],
        "stageInfo": {**_STAGE_INFO, "location": f"{stage.name[-1]}/"},
    }
    encrypted = [_encryption_material(stage) if _is_encrypted(stage, path) else None for path in paths]
    if any(encrypted):
        data["encryptionMaterial"] = encrypted
    return data


def _parallel(options: dict[str, Any]) -> int:
    value = str(options.get("PARALLEL", 4))
    if not value.isdecimal() or not 1 <= int(value) <= 99:
        raise invalid_value("PARALLEL", value)
    return int(value)


def _encryption_material(stage: Stage) -> dict[str, Any]:
    """The key of a stage. Connector 5.x requires strings."""
    return {"queryStageMasterKey": stage.master_key, "queryId": "local", "smkId": "1"}


def _is_encrypted(stage: Stage, path: str) -> bool:
    return f"{METADATA_PREFIX}encryptiondata" in stage.metadata.get(path, {})
