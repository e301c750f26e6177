"""Statements on stages: create, alter, describe, show, list, remove, drop.

Source: Snowflake documentation, CREATE, ALTER, DESCRIBE, SHOW and DROP STAGE, LIST and REMOVE.
"""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from app.emulator.answer import Answer, status
from app.emulator.catalog import Stage
from app.emulator.filters import take_filter
from app.emulator.grammar import Tokens
from app.emulator.refusals import already_exists, invalid, not_found, refuse_both, unsupported
from app.names import quote_identifier

if TYPE_CHECKING:
    from app.emulator.session import LocalConnection

_OPTIONS = dict.fromkeys(("DIRECTORY", "ENCRYPTION", "COMMENT", "FILE_FORMAT", "COPY_OPTIONS", "URL"), "")
_LISTED = ["name", "size", "md5", "last_modified"]


def create_stage(tokens: Tokens, session: "LocalConnection") -> Answer:
    tokens.require("CREATE")
    replace = tokens.take("OR", "REPLACE")
    _ = tokens.take("TEMPORARY") or tokens.take("TEMP")
    tokens.require("STAGE")
    keep = tokens.take("IF", "NOT", "EXISTS")
    refuse_both(replace, keep)
    name = session.qualify(tokens.take_name())
    session.require_schema(*name[:2])
    properties = _properties(tokens.take_options(_OPTIONS))
    known = session.local.catalog.stages
    if name in known and keep:
        return status(f"{name[-1]} already exists, statement succeeded.")
    if name in known and not replace:
        raise already_exists(name[-1])
    known[name] = session.local.new_stage(name, **properties)
    session.local.catalog.drop_grants("STAGE", quote_identifier(*name))
    return status(f"Stage area {name[-1]} successfully created.")


def alter_stage(tokens: Tokens, session: "LocalConnection") -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    stage = session.local.catalog.stages.get(name)
    if stage is None:
        if optional:
            return status("Statement executed successfully.")
        raise not_found("Stage", quote_identifier(*name))
    if tokens.take("REFRESH"):
        tokens.require_end()
        if not stage.has_directory:
            raise invalid(f"Stage {stage} has no directory table.")
        before = {file.relative_path for file in stage.directory}
        rows = [
            [file.relative_path, "REGISTERED_NEW"]
            for file in stage.refresh()
            if file.relative_path not in before
        ]
        return Answer(["file", "status"], rows)
    tokens.require("SET")
    for key, value in _properties(tokens.take_options(_OPTIONS), is_new=False).items():
        setattr(stage, key, value)
    if not stage.has_directory:
        stage.directory = []
    return status("Statement executed successfully.")


def drop_stage(tokens: Tokens, session: "LocalConnection") -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    tokens.require_end()
    if session.local.catalog.stages.pop(name, None) is None and not optional:
        raise not_found("Stage", quote_identifier(*name))
    session.local.catalog.drop_grants("STAGE", quote_identifier(*name))
    return status(f"{name[-1]} successfully dropped.")


def describe_stage(tokens: Tokens, session: "LocalConnection") -> Answer:
    name = session.qualify(tokens.take_name())
    tokens.require_end()
    stage = session.local.catalog.stages.get(name)
    if stage is None:
        raise not_found("Stage", quote_identifier(*name))
    encryption = "SNOWFLAKE_SSE" if stage.is_server_side_encrypted else "SNOWFLAKE_FULL"
    rows = [
        ["DIRECTORY", "ENABLE", "Boolean", str(stage.has_directory).lower(), "false"],
        ["STAGE_LOCATION", "URL", "String", "", ""],
        ["STAGE_ENCRYPTION", "TYPE", "String", encryption, "SNOWFLAKE_FULL"],
    ]
    return Answer(
        ["parent_property", "property", "property_type", "property_value", "property_default"], rows
    )


def show_stages(tokens: Tokens, session: "LocalConnection") -> Answer:
    shown = take_filter(tokens, session)
    rows = [
        [
            stage.name[-1],
            *stage.name[:2],
            _type_of(stage),
            "Y" if stage.has_directory else "N",
            stage.comment,
        ]
        for stage in session.local.catalog.stages.values()
        if shown(stage.name)
    ]
    return Answer(["name", "database_name", "schema_name", "type", "directory_enabled", "comment"], rows)


def _type_of(stage: Stage) -> str:
    if stage.is_users_folder:
        return "EXTERNAL"
    return "INTERNAL NO CSE" if stage.is_server_side_encrypted else "INTERNAL"


def list_files(tokens: Tokens, session: "LocalConnection") -> Answer:
    stage, prefix = session.find_stage(tokens.take_location())
    if not tokens.at_end:
        raise unsupported("LIST with PATTERN")
    rows = [
        [
            f"{stage.name[-1].lower()}/{file.relative_path}",
            file.size,
            file.md5,
            file.last_modified.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        ]
        for file in stage.list_files(prefix)
    ]
    return Answer(_LISTED, rows, {"size": pa.int64()})


def remove_files(tokens: Tokens, session: "LocalConnection") -> Answer:
    stage, prefix = session.find_stage(tokens.take_location())
    if not tokens.at_end:
        raise unsupported("REMOVE with PATTERN")
    if stage.is_users_folder:
        raise invalid(f"REMOVE is not allowed on stage {stage}, a mounted folder.")
    paths = [file.relative_path for file in stage.list_files(prefix)]
    for path in paths:
        (stage.folder / path).unlink()
        stage.metadata.pop(path, None)
    return Answer(["name", "result"], [[f"{stage.name[-1].lower()}/{path}", "removed"] for path in paths])


def _properties(options: dict[str, Any], *, is_new: bool = True) -> dict[str, Any]:
    """The stage attributes that the options set. Raises ProgrammingError if unsupported or invalid."""
    if "URL" in options:
        raise unsupported("external stage")
    properties: dict[str, Any] = {}
    if "DIRECTORY" in options:
        enable = str(_suboption(options, "DIRECTORY", "ENABLE")).upper()
        if enable not in {"TRUE", "FALSE"}:
            raise invalid(f"invalid value [{enable}] for parameter 'ENABLE'")
        properties["has_directory"] = enable == "TRUE"
    if "ENCRYPTION" in options:
        if not is_new:
            raise invalid("ENCRYPTION of a stage cannot be altered.")
        kind = str(_suboption(options, "ENCRYPTION", "TYPE")).upper()
        if kind not in {"SNOWFLAKE_SSE", "SNOWFLAKE_FULL"}:
            raise invalid(f"invalid value [{kind}] for parameter 'TYPE'")
        properties["is_server_side_encrypted"] = kind == "SNOWFLAKE_SSE"
    if "COMMENT" in options:
        properties["comment"] = str(options["COMMENT"])
    return properties


def _suboption(options: dict[str, Any], name: str, key: str) -> Any:
    """The value of `key`. Raises ProgrammingError if it is missing, or if there are other keys."""
    given = options[name]
    if not isinstance(given, dict) or key not in given:
        raise invalid(f"{name} must be ({key} = …).")
    if unknown := given.keys() - {key}:
        raise unsupported(f"{', '.join(sorted(unknown))} of {name}")
    return given[key]
