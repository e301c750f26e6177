"""What the connector's write_pandas sends: COPY INTO a table, INFER_SCHEMA and CREATE TEMPORARY FILE FORMAT.

Source: Snowflake documentation, COPY INTO <table>, INFER_SCHEMA and CREATE FILE FORMAT; snowflake.connector,
pandas_tools.py.
"""

import gzip
import io
import json
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from app.emulator.catalog import Name, Stage
from app.emulator.errors import invalid_identifier, not_found, unsupported, wrong_count
from app.emulator.grammar import Tokens
from app.emulator.query import Answer, status
from app.emulator.semistructured import write
from app.emulator.session import Session
from app.emulator.storage import METADATA_PREFIX
from app.names import quote_identifier

_COPIED = "_LOCAL_COPIED"
_FIELD = r'\$1:"((?:[^"]|"")*)"(?:::[A-Z_]+(?:\([\d, ]+\))?)?'
_COPY_OPTIONS = frozenset({"FILE_FORMAT", "ON_ERROR", "PURGE"})
_FORMAT_OPTIONS = frozenset(
    {"TYPE", "COMPRESSION", "USE_VECTORIZED_SCANNER", "BINARY_AS_TEXT", "USE_LOGICAL_TYPE"}
)
_COUNTS = ("rows_parsed", "rows_loaded", "error_limit", "errors_seen")
_FIRST_ERROR = ("first_error", "first_error_line", "first_error_character", "first_error_column_name")


class _Target(NamedTuple):
    """A table, the types of its columns, and the field of the files for each column that COPY INTO loads."""

    name: Name
    kinds: dict[str, str]
    fields: dict[str, str]


def copy_into(tokens: Tokens, session: Session) -> Answer:
    """Load fields of Parquet files, and remove the files: the emulator does not keep what it loaded."""
    if tokens.take("@"):
        raise unsupported("COPY INTO a stage")
    name = session.qualify(tokens.take_name())
    kinds = {column: kind for table, column, kind in session.columns(*name) if table == name[-1]}
    if not kinds:
        raise not_found("Table", quote_identifier(*name))
    columns = list(kinds)
    if tokens.words(1) == ("(",):
        columns = [part for [part] in tokens.take_list(lambda: tokens.take_name(max_parts=1))]
    if unknown := [column for column in columns if column not in kinds]:
        raise invalid_identifier(quote_identifier(*unknown))
    if not tokens.take("FROM", "(", "SELECT"):
        raise unsupported('COPY INTO other than FROM (SELECT $1:"<field>", … FROM @<stage>)')
    fields = _read_fields(tokens.take_text("FROM"))
    if len(fields) != len(columns):
        raise wrong_count(str(len(columns)), str(len(fields)))
    tokens.require("FROM")
    location = tokens.take_location()
    stage, prefix = session.find_stage(location.removesuffix(")"))
    if not location.endswith(")"):  # else the stage is unquoted, without a blank after it
        tokens.require(")")
    _check_options(tokens.take_options(_COPY_OPTIONS))
    target = _Target(name, kinds, dict(zip(columns, fields, strict=True)))
    rows = [_load(stage, path, target, session) for path in _paths(stage, prefix)]
    if not rows:
        return status("Copy executed with 0 files processed.")
    return Answer(["file", "status", *_COUNTS, *_FIRST_ERROR], rows, dict.fromkeys(_COUNTS, pa.int64()))


def create_file_format(tokens: Tokens, session: Session) -> Answer:
    """Only a temporary one for INFER_SCHEMA, which reads Parquet whatever its file format."""
    name = session.qualify(tokens.take_name())
    _check_format(tokens.take_options(_FORMAT_OPTIONS))
    return status(f"File format {name[-1]} successfully created.")


def infer_schema(location: str, session: Session) -> Any:
    """The table of columns that INFER_SCHEMA returns for Parquet files."""
    stage, prefix = session.find_stage(location)
    found: dict[str, dict[str, Any]] = {}
    for path in _paths(stage, prefix):
        for field in _read(stage, path).schema:
            kind = _type_of(field.type)
            row = {"COLUMN_NAME": field.name, "TYPE": kind, "NULLABLE": field.nullable}
            row |= {"EXPRESSION": f"$1:{field.name}::{kind}", "FILENAMES": path, "ORDER_ID": len(found)}
            found.setdefault(field.name, row)
    return pa.Table.from_pylist(list(found.values()))


def _read_fields(text: str) -> list[str]:
    if not re.fullmatch(rf"{_FIELD}(\s*,\s*{_FIELD})*", text):
        raise unsupported('COPY INTO of anything but $1:"<field>"')
    return [field.replace('""', '"') for field in re.findall(_FIELD, text)]


def _check_options(options: dict[str, Any]) -> None:
    _check_format(options.get("FILE_FORMAT", {}))
    if str(options.get("PURGE")).upper() != "TRUE":
        raise unsupported("COPY INTO without PURGE = TRUE")
    if str(options.get("ON_ERROR", "ABORT_STATEMENT")).upper() != "ABORT_STATEMENT":
        raise unsupported("ON_ERROR other than ABORT_STATEMENT")


def _check_format(options: Any) -> None:
    if not isinstance(options, dict) or str(options.get("TYPE")).upper() != "PARQUET":
        raise unsupported("a file format other than (TYPE = PARQUET …)")


def _paths(stage: Stage, prefix: str) -> list[str]:
    paths = [file.relative_path for file in stage.list_files(prefix)]
    if not all(stage.resolve(path).is_file() for path in paths):
        raise unsupported("loading of files from a mounted folder")
    return paths


def _load(stage: Stage, path: str, target: _Target, session: Session) -> list[Any]:
    """Insert the file's rows and remove it; return its row of COPY INTO."""
    read = _read(stage, path)
    columns = {
        f"c{number}": read[field] if field in read.column_names else pa.nulls(read.num_rows, pa.string())
        for number, field in enumerate(target.fields.values())
    }
    values = ", ".join(
        _value(name, column.type, target.kinds[loaded])
        for (name, column), loaded in zip(columns.items(), target.fields, strict=True)
    )
    plain = pa.table({name: _plain(column) for name, column in columns.items()})
    session.duck_conn.register(_COPIED, plain)
    table = f"{quote_identifier(*target.name)} ({', '.join(map(quote_identifier, target.fields))})"
    session.duck_conn.execute(f"INSERT INTO {table} SELECT {values} FROM temp.main.{_COPIED}")  # noqa: S608 - quoted
    stage.resolve(path).unlink()
    stage.metadata.pop(path, None)
    return [f"{stage.name[-1].lower()}/{path}", "LOADED", *[read.num_rows] * 2, 1, 0, *[None] * 4]


def _plain(column: Any) -> Any:
    """The column, with the JSON of nested values."""
    if not pa.types.is_nested(column.type):
        return column
    return pa.array([None if each is None else write(each) for each in column.to_pylist()], pa.string())


def _value(name: str, source: Any, target: str) -> str:
    """The expression that DuckDB converts to the target's type as Snowflake does."""
    _type_of(source)
    if target == "JSON" and not pa.types.is_nested(source):
        return f"TO_JSON({name})"
    if pa.types.is_floating(source) and target == "VARCHAR":
        raise unsupported("a FLOAT of a file as text")
    scale = re.fullmatch(r"(?:BIGINT|INTEGER|DECIMAL\(\d+,(\d+)\))", target)
    return f"ROUND({name}, {scale[1] or 0})" if pa.types.is_floating(source) and scale else name


def _type_of(kind: Any) -> str:
    """Snowflake's type of a Parquet column."""
    types = pa.types
    if types.is_timestamp(kind) and kind.tz:
        raise unsupported("a timestamp with a time zone in Parquet")
    if types.is_decimal(kind):
        return f"NUMBER({kind.precision}, {kind.scale})"
    tests = {
        "NUMBER(38, 0)": types.is_integer,
        "REAL": types.is_floating,
        "BOOLEAN": types.is_boolean,
        "DATE": types.is_date,
        "TIME": types.is_time,
        "TIMESTAMP_NTZ": types.is_timestamp,
        "BINARY": types.is_binary,
        "VARIANT": types.is_nested,
    }
    return next((name for name, is_type in tests.items() if is_type(kind)), "TEXT")


def _read(stage: Stage, path: str) -> Any:
    """The Parquet file as an Arrow table."""
    content = stage.resolve(path).read_bytes()
    encryption = stage.metadata.get(path, {}).get(f"{METADATA_PREFIX}encryptiondata")
    if encryption:
        content = _decrypt(content, json.loads(encryption), stage.master_key)
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    try:
        return pq.read_table(io.BytesIO(content))
    except pa.ArrowInvalid:
        raise unsupported(f"{path}, which is not a Parquet file") from None


def _decrypt(content: bytes, encryption: dict[str, Any], master_key: str) -> bytes:
    from snowflake.connector.constants import EncryptionMetadata  # noqa: PLC0415 - connector 5 lacks it
    from snowflake.connector.encryption_util import SnowflakeEncryptionUtil  # noqa: PLC0415
    from snowflake.connector.storage_client import SnowflakeFileEncryptionMaterial  # noqa: PLC0415

    key = encryption["WrappedContentKey"]["EncryptedKey"]
    metadata = EncryptionMetadata(key, encryption["ContentEncryptionIV"], "")
    decrypted = io.BytesIO()
    material = SnowflakeFileEncryptionMaterial(master_key, "", 1)
    SnowflakeEncryptionUtil.decrypt_stream(metadata, material, io.BytesIO(content), decrypted)
    return decrypted.getvalue()
