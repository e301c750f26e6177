"""Admits only what DuckDB answers as Snowflake does, and rewrites what it answers differently.

An allow-list: a part of a statement that is not listed here is refused, because fakesnow and DuckDB accept
much that Snowflake rejects or answers otherwise. A rule takes an expression and returns the one to run.

Source: Snowflake documentation, SQL Reference: functions, data type conversion, arithmetic operators, and
VALUES.
"""

from collections.abc import Callable, Sequence
from typing import Any

import sqlglot
from sqlglot import TokenType, exp

from app.emulator.errors import invalid_identifier, no_cast, not_in_values, unsupported
from app.emulator.inference import FLOATING, FLOATS, INTEGERS, VARIANTS, Schema, Types

# Functions with reviewed results (tests/app/emulator/semantics.txt); none was tried on an account.
_NAME_LIST = """
    ABS ADD_MONTHS ANY_VALUE ARRAY_AGG ARRAY_CONSTRUCT ARRAY_SIZE ASCII AVG BASE64_ENCODE BOOLAND_AGG
    BOOLOR_AGG BUILD_SCOPED_FILE_URL BUILD_STAGE_FILE_URL CAST CEIL CHARINDEX CHR COALESCE CONCAT
    CONCAT_WS CONTAINS CONVERT_TIMEZONE COUNT COUNT_IF CURRENT_ACCOUNT CURRENT_ACCOUNT_NAME
    CURRENT_CLIENT CURRENT_DATABASE CURRENT_DATE CURRENT_ORGANIZATION_NAME CURRENT_REGION CURRENT_ROLE
    CURRENT_SCHEMA CURRENT_TIMESTAMP CURRENT_USER CURRENT_VERSION CURRENT_WAREHOUSE DATE DATEADD
    DATEDIFF DATE_PART DATE_TRUNC DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR DECODE DENSE_RANK DIV0
    DIV0NULL ENDSWITH EQUAL_NULL EXISTS EXP EXTRACT FIRST_VALUE FLATTEN FLOOR GENERATOR GET GETDATE
    GET_PATH GET_PRESIGNED_URL GREATEST GREATEST_IGNORE_NULLS HASH HEX_ENCODE HOUR IDENTIFIER IFF IFNULL
    ILIKE IS_NULL_VALUE LAG LAST_DAY LAST_VALUE LEAD LEAST LEAST_IGNORE_NULLS LEFT LEN LENGTH LIKE
    LISTAGG LN LOWER LPAD LTRIM MAX MAX_BY MD5 MEDIAN MIN MINUTE MIN_BY MOD MONTH MONTHNAME NEXTVAL
    NEXT_DAY NTILE NULLIF NULLIFZERO NVL NVL2 OBJECT_AGG OBJECT_CONSTRUCT OBJECT_CONSTRUCT_KEEP_NULL
    PARSE_JSON POSITION POW POWER QUARTER RANDOM RANK REGEXP_COUNT REGEXP_LIKE REGEXP_REPLACE
    REGEXP_SUBSTR REPEAT REPLACE RESULT_SCAN REVERSE RIGHT RLIKE ROUND ROW_NUMBER RPAD RTRIM SECOND SEQ4
    SHA2 SIGN SPLIT SPLIT_PART SQRT STARTSWITH STDDEV SUBSTR SUBSTRING SUM SYSTEM$ALLOWLIST
    SYSTEM$ALLOWLIST_PRIVATELINK TABLE TIMEADD TIMEDIFF TIMESTAMPADD TIMESTAMPDIFF TO_BINARY TO_BOOLEAN
    TO_CHAR TO_DATE TO_DECIMAL TO_DOUBLE TO_NUMBER TO_NUMERIC TO_TIMESTAMP TO_TIMESTAMP_NTZ TO_VARCHAR
    TO_VARIANT TRIM TRUNC TRUNCATE TRY_CAST TRY_PARSE_JSON TRY_TO_DATE TRY_TO_NUMBER UPPER UUID_STRING
    VALUES YEAR ZEROIFNULL
"""
_NAMES = frozenset(_NAME_LIST.split())
# Operators of other databases.
_REFUSED_TOKENS = {
    TokenType.ARROW: "->",
    TokenType.DARROW: "->>",
    TokenType.NULLSAFE_EQ: "<=>",
}
# Syntax that DuckDB executes as Snowflake does.
_SYNTAX = (
    *(exp.Alias, exp.Boolean, exp.Column, exp.DataType, exp.DataTypeParam, exp.Dot, exp.HexString, exp.Star),
    *(exp.Identifier, exp.Kwarg, exp.Literal, exp.Null, exp.Paren, exp.Placeholder, exp.Parameter, exp.Tuple),
    *(exp.RawString, exp.Var, exp.National, exp.Heredoc),
    # Queries.
    *(exp.CTE, exp.Cube, exp.Distinct, exp.Except, exp.Fetch, exp.From, exp.Group, exp.GroupingSets),
    *(exp.Having, exp.Intersect, exp.Join, exp.Lateral, exp.Limit, exp.Offset, exp.Order, exp.Ordered),
    *(exp.Qualify, exp.Rollup, exp.Select, exp.Subquery, exp.Table, exp.TableAlias, exp.TableFromRows),
    *(exp.Union, exp.Values, exp.Where, exp.With, exp.Window, exp.WindowSpec, exp.WithinGroup),
    *(exp.IgnoreNulls, exp.RespectNulls, exp.DirectoryStage),
    # Statements.
    *(exp.Create, exp.Drop, exp.Alter, exp.Describe, exp.Show, exp.Set, exp.SetItem, exp.Transaction),
    *(exp.Commit, exp.Rollback, exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.When, exp.Whens),
    *(exp.TruncateTable, exp.Schema, exp.ColumnDef, exp.AddConstraint, exp.AlterColumn, exp.AlterRename),
    *(exp.RenameColumn, exp.Clone, exp.Properties, exp.Property, exp.Constraint, exp.PrimaryKey),
    *(exp.ForeignKey, exp.Reference, exp.ColumnConstraint, exp.ColumnConstraintKind),
    # Operators.
    *(exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.Not, exp.Is, exp.In, exp.Between, exp.EQ),
    *(exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.NullSafeNEQ, exp.DPipe, exp.Like),
    *(exp.ILike, exp.Escape, exp.Bracket, exp.PropertyEQ, exp.Any, exp.All, exp.JSONPath, exp.JSONPathRoot),
    *(exp.JSONPathKey, exp.JSONPathSubscript, exp.JSONKeyValue),
)
# Functions that a statement need not call by a name with parentheses.
_UNNAMED = (
    *(
        exp.Anonymous,
        exp.Case,
        exp.Cast,
        exp.Connector,
        exp.CurrentDate,
        exp.CurrentTimestamp,
        exp.CurrentUser,
    ),
    *(exp.CurrentRole, exp.CurrentSchema, exp.CurrentDatabase, exp.CurrentWarehouse, exp.Exists, exp.Extract),
    *(exp.If, exp.JSONExtract, exp.RegexpLike, exp.Array, exp.Struct, exp.Explode, exp.Trim, exp.StrPosition),
    *(
        exp.NextValueFor,
        exp.Generator,
        exp.Seq4,
        exp.DecodeCase,
        exp.GroupConcat,
        exp.JSONObject,
        exp.Substring,
    ),
    *(exp.ArgMax, exp.ArgMin, exp.Ceil, exp.Chr, exp.Floor),
)
_TEXTS = frozenset({"VARCHAR", "TEXT", "CHAR", "NCHAR", "NVARCHAR"})
_TIMES = {
    "TIMESTAMP": "%Y-%m-%d %H:%M:%S.%g",
    "TIMESTAMPNTZ": "%Y-%m-%d %H:%M:%S.%g",
    "TIMESTAMPTZ": "%Y-%m-%d %H:%M:%S.%g +0000",
    "TIMESTAMPLTZ": "%Y-%m-%d %H:%M:%S.%g +0000",
}
"""Snowflake's default output format of each type; the time zone of the emulator is UTC."""
_UNITS = frozenset({"YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND"})
_PARTS = (_UNITS - {"WEEK"}) | {"DAYOFWEEK", "DAYOFYEAR", "EPOCH_SECOND"}
_FORMAT = {"YYYY": "%Y", "MM": "%m", "DD": "%d", "HH24": "%H", "MI": "%M", "SS": "%S"}
_MAX_DIGITS = 18
_COMPARISONS = (exp.Predicate, exp.In)
_ORDERING = (exp.Ordered, exp.Min, exp.Max, exp.Between, exp.Greatest, exp.Least)
_TEXT_FUNCTIONS = (
    *(
        exp.Like,
        exp.ILike,
        exp.DPipe,
        exp.Concat,
        exp.ConcatWs,
        exp.Length,
        exp.Substring,
        exp.Trim,
        exp.Replace,
    ),
    *(exp.StartsWith, exp.EndsWith, exp.Contains, exp.RegexpLike, exp.RegexpReplace, exp.RegexpExtract),
    *(exp.Split, exp.SplitPart, exp.Upper, exp.Lower, exp.Left, exp.Right, exp.GroupConcat, exp.Pad, exp.MD5),
    *(exp.SHA2, exp.Reverse, exp.Repeat, exp.StrPosition),
)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod, exp.Neg, exp.Sum, exp.Avg, exp.Round, exp.Abs)
_BRANCHES = (exp.Coalesce, exp.If, exp.Nvl2, exp.DecodeCase, exp.Nullif)
_NOT_IN_VALUES = (exp.ParseJSON, exp.Struct, exp.JSONObject, exp.Array, exp.ToVariant)


def refuse_unknown(expression: Any, sql: str, is_known: Callable[[Any], bool]) -> None:
    """Raises ProgrammingError for syntax and functions outside the lists above.

    `sql` is the text that was parsed, `is_known` whether a call is one of a function that a user created.
    """
    for token in sqlglot.tokenize(sql, read="snowflake"):
        if token.token_type in _REFUSED_TOKENS or (token.token_type is TokenType.EQ and token.text == "=="):
            raise unsupported(f"the operator {token.text}")
    for node in expression.walk():
        name = _called_name(node, sql)
        is_users = isinstance(node, exp.Anonymous) and (isinstance(node.parent, exp.Dot) or is_known(node))
        if name is not None and name not in _NAMES and not is_users:
            raise unsupported(f"function {name}, which is neither known to it nor created here")
        if name is None and not isinstance(node, _UNNAMED if isinstance(node, exp.Func) else _SYNTAX):
            if not isinstance(node, exp.Func | exp.Property):
                raise unsupported(_words(node))
            if isinstance(node, exp.Func):
                raise unsupported(f"function {node.sql_name()}")


def _called_name(node: Any, sql: str) -> str | None:
    """The name by which the statement calls the function, None for other syntax."""
    if isinstance(node, exp.Anonymous):
        return node.name.upper()
    if isinstance(node, exp.Column | exp.Identifier | exp.Table) or "start" not in node.meta:
        return None
    start, end = node.meta["start"], node.meta["end"] + 1
    return sql[start:end].upper() if sql[end:].lstrip().startswith("(") else None


def _words(node: Any) -> str:
    return f"{type(node).__name__} in {' '.join(node.sql(dialect='snowflake').split())[:80]}"


# Rules.


def adapt(expression: Any, get_types: Callable[[], Types]) -> None:
    """Change the expression in place. Raises ProgrammingError for what DuckDB answers differently.

    Inner queries come first: the types of their columns are those of the adapted expressions.
    """
    selects = [*reversed(list(expression.find_all(exp.Select, exp.Values))), None]
    nodes: dict[int, list[Any]] = {id(select): [] for select in selects}
    for node in expression.walk():  # parents first: a rule sees its operands unchanged
        nodes[id(node.find_ancestor(exp.Select, exp.Values))].append(node)
    for select in selects:
        types = get_types()
        for node in nodes[id(select)]:
            for kinds, rule in _RULES:
                if isinstance(node, kinds):
                    rule(node, types)


def _wrap(node: Any, make: Callable[[Any], Any]) -> None:
    """Put the result of `make` in the place of the node, which it may contain."""
    hole = exp.Placeholder()
    node.replace(hole)
    hole.replace(make(node))


def _cast_to(node: Any, kind: str) -> Any:
    return exp.cast(node, kind, copy=False)  # a copy would hide the operands from their rules


def _outermost(aggregate: Any) -> Any:
    """The aggregate with its WITHIN GROUP, IGNORE NULLS and OVER."""
    parent = aggregate.parent
    if isinstance(parent, exp.WithinGroup | exp.Window | exp.IgnoreNulls) and parent.this is aggregate:
        return _outermost(parent)
    return aggregate


def _number(scale: int) -> str:
    return f"DECIMAL(38, {scale})"


def _divide(node: Any, types: Types) -> None:
    arguments = (node.this, node.expression) if isinstance(node, exp.Div) else (node.this,)
    scale = types.quotient_scale(*arguments)
    if scale is None:
        raise unsupported(f"{_text(node)} of operands whose types it cannot tell; cast them to FLOAT")
    if scale != FLOATING:
        _wrap(
            _outermost(node),
            lambda quotient: _cast_to(
                exp.Round(this=quotient, decimals=exp.Literal.number(scale)), _number(scale)
            ),
        )


def _sum(node: Any, types: Types) -> None:
    if types.kind(node.this) in _TEXTS:
        raise unsupported(f"{_text(node)}: a sum of text without a cast")
    if types.scale(node.this) == 0:  # DuckDB's sum of integers has 128 bits, which Arrow lacks
        _wrap(_outermost(node), lambda total: _cast_to(total, "BIGINT"))


def _widen(node: Any, types: Types) -> None:
    """Compute with constants in 64 bits: DuckDB gives them the smallest type."""
    if isinstance(node.this, exp.Literal) and types.kind(node.this) == types.kind(node.expression) == "INT":
        if len(node.this.name) > _MAX_DIGITS:
            raise unsupported(f"{_text(node)}: arithmetic with more than 64 bits")
        _wrap(node.this, lambda literal: _cast_to(literal, "BIGINT"))


def _refuse_variants(node: Any, types: Types) -> None:
    operands = [node.this, node.args.get("expression")]
    if any(isinstance(each, exp.Expr) and types.is_variant(each) for each in operands):
        raise unsupported(f"{_text(node)}: a VARIANT without a cast")


def _branch(node: Any, types: Types) -> None:
    """DuckDB converts a VARIANT next to another type to its JSON text."""
    are_variants = {types.is_variant(value) for value in _values_of(node) if not isinstance(value, exp.Null)}
    if len(are_variants) > 1:
        raise unsupported(f"{_text(node)}: a VARIANT next to another type, without a cast")


def _values_of(node: Any) -> list[Any]:
    match node:
        case exp.Case():
            branches = [branch.args["true"] for branch in node.args["ifs"]]
            return [*branches, *([node.args["default"]] if node.args.get("default") else [])]
        case exp.If():
            false = node.args.get("false")
            return [node.args["true"], *([false] if false is not None else [])]
        case exp.DecodeCase():
            pairs = node.expressions[1:]
            return [*pairs[1::2], *(pairs[-1:] if len(pairs) % 2 else [])]
    return [node.this, *node.expressions, *filter(None, [node.args.get("expression")])]


def _order(node: Any, types: Types) -> None:
    operands = [node.this, *(node.expressions if isinstance(node, exp.Greatest | exp.Least) else [])]
    if any(types.is_variant(operand) for operand in operands):
        raise unsupported("ordering of VARIANT values without a cast")


def _compare(node: Any, types: Types) -> None:
    """Cast VARIANT operands: Snowflake compares their values, DuckDB their JSON texts."""
    is_assignment = isinstance(node.parent, exp.Update | exp.SetItem)
    if is_assignment or isinstance(
        node, exp.Is | exp.Exists | exp.Between | exp.Like | exp.ILike | exp.RegexpLike
    ):
        return
    operands = [node.this, *(node.expressions or [node.args.get("expression")])]
    variants = [each for each in operands if isinstance(each, exp.Expr) and types.is_variant(each)]
    others = [each for each in operands if isinstance(each, exp.Expr) and each not in variants]
    kinds = {_type_of(other) for other in others}
    if variants and (len(kinds) != 1 or None in kinds):
        raise unsupported("comparison of a VARIANT with anything but a constant, without a cast")
    for variant in variants:
        _wrap(variant, lambda each: _cast_variant(each, str(*kinds)))


def _type_of(constant: Any) -> str | None:
    if isinstance(constant, exp.Boolean):
        return "BOOLEAN"
    if isinstance(constant, exp.Neg):
        constant = constant.this
    if isinstance(constant, exp.Literal):
        return "VARCHAR" if constant.is_string else "DOUBLE"
    return None


def _cast_variant(node: Any, kind: str) -> Any:
    text = exp.Anonymous(this="JSON_EXTRACT_STRING", expressions=[node, exp.Literal.string("$")])
    return text if kind == "VARCHAR" else _cast_to(text, kind)


def _text_function(node: Any, types: Types) -> None:
    for argument in [node.this, node.args.get("expression"), *node.expressions]:
        if isinstance(argument, exp.Expr) and types.is_variant(argument):
            _wrap(argument, lambda each: _cast_variant(each, "VARCHAR"))


def _cast(node: Any, types: Types) -> None:
    target, kind = node.to.this.name, types.kind(node.this)
    if isinstance(node, exp.TryCast) and kind not in _TEXTS | {"NULL", None}:
        raise no_cast("TRY_CAST", str(kind), node.to.sql(dialect="snowflake"))
    if target in _TEXTS:
        if node.to.expressions:
            raise unsupported(f"{_text(node)}: a cast to text of a given length")
        _convert_to_text(node, types)
    elif kind in VARIANTS and target not in VARIANTS and not isinstance(node.this, exp.JSONExtract):
        _wrap(node.this, lambda each: _cast_variant(each, "VARCHAR"))
    elif target in INTEGERS | {"DECIMAL"} and types.scale(node.this) == FLOATING:
        scale = node.to.expressions[1].this.copy() if len(node.to.expressions) > 1 else exp.Literal.number(0)
        _wrap(node.this, lambda each: exp.Round(this=each, decimals=scale))
    elif target == "BOOLEAN" and kind in _TEXTS and node.this.is_string:
        value = {"on": "true", "off": "false"}.get(node.this.name.lower())
        node.this.replace(exp.Literal.string(value or node.this.name))


def _convert_to_text(node: Any, types: Types) -> None:
    kind = types.kind(node.this)
    if kind in FLOATS or types.scale(node.this) == FLOATING:
        raise unsupported(f"{_text(node)}: a FLOAT as text; cast it to a NUMBER first")
    if kind in {"TIME", "BINARY", "VARBINARY"}:
        raise unsupported(f"{_text(node)}: {kind} as text")
    if kind in _TIMES:
        _wrap(
            node,
            lambda each: exp.Anonymous(
                this="STRFTIME", expressions=[each.this, exp.Literal.string(_TIMES[str(kind)])]
            ),
        )
    elif kind in VARIANTS:
        _wrap(node, lambda each: _cast_variant(each.this, "VARCHAR"))
    elif isinstance(node, exp.ToChar):
        _wrap(node, lambda each: _cast_to(each.this, "VARCHAR"))


def _to_char(node: Any, types: Types) -> None:
    template = node.args.get("format")
    if template is None:
        _convert_to_text(node, types)
        return
    if types.kind(node.this) not in {"DATE", *_TIMES} or not template.is_string:
        raise unsupported(f"{_text(node)}: a format for anything but a date or a timestamp")
    text = template.name
    if isinstance(node, exp.ToChar):
        for element, code in _FORMAT.items():
            text = text.replace(element, code)
    rest = text
    for code in _FORMAT.values():
        rest = rest.replace(code, "")
    if any(character.isalnum() or character == "%" for character in rest):
        raise unsupported(f"{_text(node)}: format elements other than {', '.join(_FORMAT)}")
    _wrap(
        node, lambda each: exp.Anonymous(this="STRFTIME", expressions=[each.this, exp.Literal.string(text)])
    )


def _to_date(node: Any, _: Types) -> None:
    template = node.args.get("format")
    if template is not None and not all(
        part in "%Ymd-/. "
        for part in template.name.replace("YYYY", "%Y").replace("MM", "%m").replace("DD", "%d")
    ):
        raise unsupported(f"{_text(node)}: format elements other than YYYY, MM, DD")


def _date_part(node: Any, types: Types) -> None:
    unit = node.args.get("unit") or node.this
    known = _PARTS if isinstance(node, exp.Extract) else _UNITS
    if str(unit.name).upper() not in known:
        raise unsupported(f"{_text(node)}: the date part {unit.name}")
    if isinstance(node, exp.DateTrunc | exp.TimestampTrunc) and types.kind(node.this) == "DATE":
        _wrap(node, lambda each: _cast_to(each, "DATE"))


def _trim(node: Any, _: Types) -> None:
    if node.expression is not None and node.args.get("expression"):
        raise unsupported(f"{_text(node)}: characters to trim")


def _digits(node: Any, _: Types) -> None:
    if node.args.get("decimals"):
        raise unsupported(f"{_text(node)}: a number of digits")


def _list_aggregate(node: Any, _: Types) -> None:
    if isinstance(_outermost(node), exp.Window):
        raise unsupported(f"{_text(node)} as a window function")
    empty: Any = exp.Literal.string("")
    if isinstance(node, exp.ArrayAgg):
        empty = exp.ParseJSON(this=exp.Literal.string("[]"))
    _wrap(_outermost(node), lambda each: exp.Coalesce(this=each, expressions=[empty]))


def _object(node: Any, _: Types) -> None:
    """Write {'key': value} as a call, because fakesnow changes the key to upper case."""
    if any(
        isinstance(pair, exp.PropertyEQ) and isinstance(pair.this, exp.Identifier)
        for pair in node.expressions
    ):
        parts = [
            part for pair in node.expressions for part in (exp.Literal.string(pair.name), pair.expression)
        ]
        node.replace(exp.Anonymous(this="OBJECT_CONSTRUCT", expressions=parts))


def _array(node: Any, _: Types) -> None:
    if any(isinstance(element, exp.Null) for element in node.expressions):
        raise unsupported(f"{_text(node)}: NULL in an array")


def _bracket(node: Any, _: Types) -> None:
    if not all(isinstance(index, exp.Literal) for index in node.expressions):
        raise unsupported(f"{_text(node)}: an index that is not a constant")


def _extract(node: Any, types: Types) -> None:
    if not (node.args.get("variant_extract") or node.args.get("requires_json")):
        raise unsupported(f"{_text(node)}; write value:path")
    if types.kind(node.this) not in {None, "NULL", *VARIANTS}:
        raise unsupported(f"{_text(node)}: a path in {types.kind(node.this)}, which is not semi-structured")


def _flatten(node: Any, _: Types) -> None:
    options = {
        each.this.name.upper(): each.expression
        for each in [node.this, *node.expressions]
        if isinstance(each, exp.Kwarg)
    }
    if unknown := options.keys() - {"INPUT"}:
        raise unsupported(f"FLATTEN with {', '.join(sorted(unknown))}")


def _join(node: Any, _: Types) -> None:
    kind, method = str(node.args.get("kind") or ""), str(node.args.get("method") or "")
    if kind not in {"", "INNER", "OUTER", "CROSS"} or method not in {"", "NATURAL"}:
        raise unsupported(f"{method} {kind} JOIN".strip())


def _column(node: Any, types: Types) -> None:
    if types.has_flatten and node.name.upper() == "SEQ":
        raise unsupported("SEQ of FLATTEN")


def _merge(node: Any, _: Types) -> None:
    """Computed values are refused: fakesnow passes on only the columns that the values name."""
    values = [each.expression for update in node.find_all(exp.Update) for each in update.expressions]
    values += [value for insert in node.find_all(exp.Insert) for value in insert.expression.expressions]
    if not all(isinstance(value, exp.Column | exp.Literal | exp.Null | exp.Boolean) for value in values):
        raise unsupported("MERGE with computed values; compute them in the USING query")


def _binary(node: Any, _: Types) -> None:
    encoding = node.args.get("format")
    if encoding is None or encoding.name.upper() != "HEX":
        raise unsupported(f"{_text(node)}: TO_BINARY without the format 'HEX'")


def _time_zone(node: Any, _: Types) -> None:
    if node.args.get("source_tz") or node.args["target_tz"].name.upper() != "UTC":
        raise unsupported(f"{_text(node)}: time zones other than UTC, which all sessions have")


def _parameter(node: Any, _: Types) -> None:
    if node.name.isdecimal():
        raise unsupported(f"{_text(node)}: a column by its position")


def _hash(node: Any, _: Types) -> None:
    """DuckDB's hashes are not Snowflake's: they may only part rows, as in MOD(ABS(HASH(x)), 8)."""
    if node.name.upper() == "HASH" and node.find_ancestor(exp.Mod) is None:
        raise unsupported(f"{_text(node)} outside MOD: its hashes differ from Snowflake's")


def _lateral(node: Any, _: Types) -> None:
    if not isinstance(node.this, exp.Explode):
        raise unsupported("LATERAL other than FLATTEN")


def _distinct(node: Any, _: Types) -> None:
    if node.args.get("on"):
        raise unsupported("DISTINCT ON")


def _pattern(node: Any, _: Types) -> None:
    given = {key for key, value in node.args.items() if value is not None and value is not False}
    if given - {"this", "expression", "replacement", "full_match", "flag", "modifiers", "group"} or not (
        node.expression.is_string
    ):
        raise unsupported(f"{_text(node)}: anything but a constant pattern and replacement")


def _values(node: Any, _: Types) -> None:
    """Values of a VALUES clause must be constants or simple expressions."""
    if (found := node.find(*_NOT_IN_VALUES)) is not None:
        raise not_in_values(_text(found))


def _text(node: Any) -> str:
    return " ".join(node.sql(dialect="snowflake").split())[:80]


_RULES: Sequence[tuple[Any, Callable[[Any, Types], None]]] = (
    (exp.Values, _values),
    (exp.Column, _column),
    (exp.Merge, _merge),
    (exp.ToBinary, _binary),
    (exp.ConvertTimezone, _time_zone),
    (exp.Parameter, _parameter),
    (exp.Anonymous, _hash),
    (exp.Join, _join),
    (exp.Lateral, _lateral),
    (exp.Explode, _flatten),
    (exp.Distinct, _distinct),
    (exp.JSONExtract, _extract),
    (exp.Bracket, _bracket),
    (_ARITHMETIC, _refuse_variants),
    (_ORDERING, _order),
    ((*_BRANCHES, exp.Case), _branch),
    (_TEXT_FUNCTIONS, _text_function),
    (_COMPARISONS, _compare),
    ((exp.Cast, exp.TryCast), _cast),
    ((exp.Div, exp.Avg), _divide),
    (exp.Sum, _sum),
    ((exp.Add, exp.Sub, exp.Mul), _widen),
    ((exp.ToChar, exp.TimeToStr), _to_char),
    (exp.TsOrDsToDate, _to_date),
    ((exp.DateAdd, exp.DateDiff, exp.DateTrunc, exp.TimestampTrunc, exp.Extract), _date_part),
    (exp.Trim, _trim),
    ((exp.Ceil, exp.Floor), _digits),
    ((exp.ArrayAgg, exp.GroupConcat), _list_aggregate),
    (exp.Struct, _object),
    (exp.Array, _array),
    ((exp.RegexpLike, exp.RegexpReplace, exp.RegexpExtract), _pattern),
)


# Names.


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
        if column.table and _stored(column.args["table"]) not in sources:
            raise invalid_identifier(column.sql(dialect="snowflake"))
        name = _stored(column.this) if isinstance(column.this, exp.Identifier) else ""
        if name not in known and name.upper() in by_case:
            raise invalid_identifier(column.sql(dialect="snowflake"))
    if len(by_case) < len(known):
        raise unsupported("names of columns that differ only in case")


def _stored(part: Any) -> str:
    return str(part.this) if part.args.get("quoted") else str(part.name).upper()
