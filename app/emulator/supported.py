"""Admits only the functions, the syntax and the names that the emulator answers as Snowflake does.

An allow-list: fakesnow and DuckDB accept much that Snowflake rejects or answers otherwise.

Source: Snowflake documentation, SQL Reference.
"""

from collections.abc import Callable
from typing import Any

import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.dialects.snowflake import Snowflake

from app.emulator.errors import invalid_identifier, syntax_error, unsupported
from app.emulator.expressions import classes, text_of
from app.emulator.inference import FLOATS, INTEGERS, TEXTS, TIMES, VARIANTS, Schema
from app.emulator.semistructured import FUNCTIONS

# Functions with reviewed results (tests/app/emulator/semantics.txt); none was tried on an account.
_NAME_LIST = """
    ABS ADD_MONTHS ANY_VALUE ARRAY_AGG ARRAY_CONSTRUCT ARRAY_SIZE ASCII ATAN2 AVG BASE64_DECODE_BINARY
    BASE64_DECODE_STRING BASE64_ENCODE BITAND BITOR BITXOR BOOLAND_AGG BOOLOR_AGG
    BUILD_SCOPED_FILE_URL BUILD_STAGE_FILE_URL CAST CEIL CHAR CHARINDEX CHR COALESCE CONCAT CONCAT_WS
    CONTAINS CONVERT_TIMEZONE CORR COS COUNT COUNT_IF COVAR_POP COVAR_SAMP CUME_DIST CURRENT_ACCOUNT
    CURRENT_ACCOUNT_NAME CURRENT_CLIENT CURRENT_DATABASE CURRENT_DATE CURRENT_ORGANIZATION_NAME
    CURRENT_REGION CURRENT_ROLE CURRENT_SCHEMA CURRENT_TIMESTAMP CURRENT_USER CURRENT_VERSION
    CURRENT_WAREHOUSE DATE DATEADD DATEDIFF DATE_FROM_PARTS DATE_PART DATE_TRUNC DAY DAYNAME DAYOFMONTH
    DAYOFWEEK DAYOFWEEKISO DAYOFYEAR DECODE DEGREES DENSE_RANK DIRECTORY DIV0 DIV0NULL EDITDISTANCE
    ENDSWITH EQUAL_NULL EXISTS EXP EXTRACT FIRST_VALUE FLATTEN FLOOR FL_GET_CONTENT_TYPE FL_GET_ETAG
    FL_GET_RELATIVE_PATH FL_GET_SCOPED_FILE_URL FL_GET_SIZE FL_GET_STAGE FL_GET_STAGE_FILE_URL FL_IS_IMAGE
    GENERATOR GET GETDATE GET_PATH GET_PRESIGNED_URL GREATEST GREATEST_IGNORE_NULLS GROUPING HASH
    HEX_DECODE_STRING HEX_ENCODE HOUR IDENTIFIER IFF IFNULL ILIKE INFER_SCHEMA INITCAP IS_NULL_VALUE LAG
    LAST_DAY LAST_QUERY_ID
    LAST_VALUE LEAD LEAST LEAST_IGNORE_NULLS LEFT LEN LENGTH LIKE LISTAGG LN LOG LOWER LPAD LTRIM MAX
    MAX_BY MD5 MD5_HEX MEDIAN MIN MINUTE MIN_BY MOD MODE MONTH MONTHNAME NEXTVAL NEXT_DAY NTH_VALUE NTILE
    NULLIF NULLIFZERO NVL NVL2 OBJECT_AGG OBJECT_CONSTRUCT OBJECT_CONSTRUCT_KEEP_NULL
    PARSE_JSON PERCENTILE_CONT PERCENTILE_DISC PERCENT_RANK PI POSITION POW POWER PREVIOUS_DAY QUARTER
    RADIANS RANDOM RANK REGEXP_COUNT REGEXP_INSTR REGEXP_LIKE REGEXP_REPLACE REGEXP_SUBSTR REPEAT REPLACE
    RESULT_SCAN REVERSE RIGHT RLIKE ROUND ROW_NUMBER RPAD RTRIM SECOND SEQ4 SHA1 SHA2 SIGN SIN SPACE SPLIT
    SPLIT_PART SQRT SQUARE STARTSWITH STDDEV STDDEV_POP STDDEV_SAMP STRTOK SUBSTR SUBSTRING SUM
    SYSTEM$ALLOWLIST SYSTEM$ALLOWLIST_PRIVATELINK SYSTEM$CANCEL_ALL_QUERIES SYSTEM$STREAM_HAS_DATA TABLE
    SYSDATE TIMEADD TIMEDIFF TIMESTAMPADD TIMESTAMPDIFF TIME_SLICE
    TO_BINARY TO_BOOLEAN TO_CHAR TO_DATE TO_DECIMAL TO_DOUBLE
    TO_FILE TO_NUMBER TO_NUMERIC TO_TIMESTAMP TO_TIMESTAMP_NTZ TO_VARCHAR TO_VARIANT TRANSLATE TRIM TRUNC
    TRUNCATE TRY_CAST TRY_PARSE_JSON TRY_TO_BOOLEAN TRY_TO_DATE TRY_TO_DECIMAL TRY_TO_DOUBLE TRY_TO_FILE
    TRY_TO_NUMBER TRY_TO_NUMERIC TRY_TO_TIMESTAMP TRY_TO_TIMESTAMP_NTZ
    UNICODE UPPER UUID_STRING VALUES VARIANCE VAR_POP VAR_SAMP WEEK WEEKISO
    WEEKOFYEAR YEAR YEAROFWEEK YEAROFWEEKISO ZEROIFNULL
"""
_NAMES = FUNCTIONS.keys() | _NAME_LIST.split()
# Functions of other databases whose calls sqlglot's parser does not mark.
_REFUSED_NAMES = Snowflake.Parser.FUNCTION_PARSERS.keys() - _NAMES - {"CHAR"}
# Operators of other databases.
_REFUSED_TOKENS = {TokenType.ARROW, TokenType.DARROW, TokenType.NULLSAFE_EQ}
# Types that sqlglot reads as others.
_FOREIGN_TYPES = frozenset(
    {"BLOB", "BYTEA", "CLOB", "JSON", "JSONB", "LONG", "MEDIUMINT", "SHORT", "STR"}
) | {f"INT{size}" for size in (1, 2, 4, 8, 16, 32, 64)}
# Syntax that DuckDB executes as Snowflake does: names and constants, queries, statements, operators.
_SYNTAX = classes("""
    Alias Boolean Column DataType DataTypeParam Dot HexString Star Identifier Kwarg Literal Null Paren
    Interval Placeholder Parameter Tuple RawString Var National Heredoc
    CTE Cube Distinct Except Fetch LimitOptions From Group GroupingSets Having Intersect Join Lateral Limit
    Offset Order Ordered Qualify Rollup Select Subquery Table TableAlias TableFromRows Union Values Where
    TableSample Pivot PivotAlias With Window WindowSpec WithinGroup IgnoreNulls RespectNulls DirectoryStage
    Create Drop Alter Describe Show Set SetItem Transaction Commit Rollback Insert Update Delete Merge When
    Whens TruncateTable Schema ColumnDef AddConstraint AlterColumn AlterRename RenameColumn Clone Properties
    Property SequenceProperties Constraint PrimaryKey ForeignKey Reference ColumnConstraint
    ColumnConstraintKind
    Add Sub Mul Div Mod Neg Not Is In Between EQ NEQ GT GTE LT LTE NullSafeEQ NullSafeNEQ DPipe Like ILike
    Escape Bracket PropertyEQ Any All JSONPath JSONPathRoot JSONPathKey JSONPathSubscript JSONKeyValue
""")
# Functions that a statement need not call by a name with parentheses.
_UNNAMED = classes("""
    Anonymous Case Cast Connector CurrentDate CurrentTimestamp CurrentUser CurrentRole CurrentSchema
    CurrentDatabase CurrentWarehouse Exists Extract If JSONExtract RegexpLike Array Struct Explode Trim
    StrPosition NextValueFor Generator Seq4 DecodeCase GroupConcat JSONObject Substring ArgMax ArgMin Ceil
    Chr Floor ToBoolean Initcap
""")
# Of Snowflake's own views fakesnow has these; DuckDB has others, in other schemas.
_INFORMATION = frozenset({"COLUMNS", "DATABASES", "SCHEMATA", "TABLES", "VIEWS"})
_FOREIGN = ("DUCKDB_", "PG_", "PRAGMA_", "SQLITE_")
_TYPES = (
    (INTEGERS - {"INT128", "UBIGINT"})
    | (VARIANTS - {"JSON", "MAP", "STRUCT"})
    | FLOATS
    | TEXTS
    | TIMES.keys()
    | {"BINARY", "BOOLEAN", "DATE", "DATETIME", "DECIMAL", "TIME", "VARBINARY"}
)


def refuse_unknown(expression: Any, sql: str, is_known: Callable[[Any], bool]) -> None:
    """Raises ProgrammingError for syntax and functions outside the lists above.

    `sql` is the text that was parsed, `is_known` whether a call is one of a function that a user created.
    """
    _refuse_tokens(sql)
    for node in expression.walk():
        if (foreign := _foreign_name(node)) is not None:
            raise unsupported(foreign)
        name = _called_name(node, sql)
        is_users = isinstance(node, exp.Anonymous) and (isinstance(node.parent, exp.Dot) or is_known(node))
        if name is not None and name not in _NAMES and not is_users:
            raise _unknown(name)
        if name is None and not isinstance(node, _UNNAMED if isinstance(node, exp.Func) else _SYNTAX):
            if isinstance(node, exp.Func):
                raise _unknown(node.sql_name())
            if not isinstance(node, exp.Property):
                raise unsupported(text_of(node))


def _refuse_tokens(sql: str) -> None:
    tokens = sqlglot.tokenize(sql, read="snowflake")
    for before, token, after in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        text, kind = sql[token.start : token.end + 1].upper(), token.token_type
        if kind in _REFUSED_TOKENS or text == "==" or text.startswith("0X"):
            raise unsupported(text)
        if text in _FOREIGN_TYPES and before and _is_type_place(tokens[0], before, after):
            raise unsupported(f"the type {text}")
        is_call = after is not None and after.token_type is TokenType.L_PAREN
        if is_call and kind is not TokenType.IDENTIFIER and text in _REFUSED_NAMES:
            raise _unknown(text)
        if before and after and (before.token_type, after.token_type) == (TokenType.LIMIT, TokenType.COMMA):
            raise syntax_error("syntax error: LIMIT takes one number")
        if kind is TokenType.FROM and (before is None or before.token_type is TokenType.L_PAREN):
            raise unsupported("FROM without SELECT")


def _is_type_place(first: Token, before: Token, after: Token | None) -> bool:
    if before.token_type is TokenType.ALIAS:  # of CAST(… AS <type>)
        return after is not None and after.token_type is TokenType.R_PAREN
    is_definition = first.token_type in {TokenType.CREATE, TokenType.ALTER}
    return before.token_type is TokenType.DCOLON or (
        is_definition and before.token_type in {TokenType.VAR, TokenType.IDENTIFIER}
    )


def _foreign_name(node: Any) -> str | None:
    """A type, table or column of DuckDB's that Snowflake lacks, or of Snowflake's that the emulator lacks."""
    if isinstance(node, exp.DataType):
        return None if getattr(node.this, "name", None) in _TYPES else f"the type {text_of(node)}"
    if isinstance(node, exp.CTE) and node.args.get("materialized") is not None:
        return "MATERIALIZED"
    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
        return None
    *schema, name = (part.name.upper() for part in node.parts)
    is_lacking = schema[-1:] == ["INFORMATION_SCHEMA"] and name not in _INFORMATION
    if is_lacking or {"PG_CATALOG", "SNOWFLAKE"} & set(schema) or (not schema and name.startswith(_FOREIGN)):
        return f"the table {text_of(node)}"
    return None


def _called_name(node: Any, sql: str) -> str | None:
    """The name by which the statement calls the function, None for other syntax."""
    if isinstance(node, exp.Anonymous):
        return str(node.name) if getattr(node.this, "quoted", False) else node.name.upper()
    if isinstance(node, exp.Column | exp.Identifier | exp.Literal | exp.Table) or "start" not in node.meta:
        return None
    start, end = node.meta["start"], node.meta["end"] + 1
    return sql[start:end].upper() if sql[end:].lstrip().startswith("(") else None


def _unknown(name: str) -> Exception:
    return unsupported(f"function {name}, which is neither known to it nor created here")


# Names.


# A column that each table of DuckDB has.
_ROW_NUMBER = "ROWID"


def check_names(expression: Any, schema: Schema) -> None:
    """Raises ProgrammingError for names that differ from known names in case: DuckDB ignores case."""
    tables = {
        name: columns
        for database in schema.values()
        for each in database.values()
        for name, columns in each.items()
    }
    known = {column for columns in tables.values() for column in columns}
    known |= {_stored(each) for alias in expression.find_all(exp.Alias) if (each := alias.args.get("alias"))}
    sources = set(tables)
    for alias in expression.find_all(exp.TableAlias):
        known |= {_stored(each) for each in alias.args.get("columns") or []}
        sources |= {_stored(alias.this)} if alias.this else set()
    sources |= {
        _stored(table.this)
        for table in expression.find_all(exp.Table)
        if isinstance(table.this, exp.Identifier)
    }
    by_case = {name.upper(): name for name in known}
    for column in expression.find_all(exp.Column):
        if column.name.upper() == "NEXTVAL":  # of a sequence
            continue
        if column.table and _stored(column.args["table"]) not in sources:
            raise invalid_identifier(column.sql(dialect="snowflake"))
        name = _stored(column.this) if isinstance(column.this, exp.Identifier) else ""
        if name not in known and (name.upper() in by_case or name.upper() == _ROW_NUMBER):
            raise invalid_identifier(column.sql(dialect="snowflake"))
    if len(by_case) < len(known):
        raise unsupported("names of columns that differ only in case")


def _stored(part: Any) -> str:
    return str(part.this) if part.args.get("quoted") else str(part.name).upper()
