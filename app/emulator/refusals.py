"""What DuckDB answers otherwise than Snowflake, and no other expression mends: kinds, a condition and words.

Source: Snowflake documentation, SQL Reference.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlglot import exp

from app.emulator.errors import unsupported
from app.emulator.expressions import arguments_of, classes, outermost, text_of
from app.emulator.inference import FLOATING, VARIANTS, Types

_LEAST_MILLISECONDS = 31_536_000_000
_ORDERING = classes("Greatest Least")
_ARITHMETIC = classes("Add Sub Mul Div Mod Neg Round Abs")
# DuckDB's function for an interval of each unit of TIME_SLICE.
SLICES = {unit: f"TO_{unit}S" for unit in ("SECOND", "MINUTE", "HOUR", "DAY", "MONTH", "QUARTER", "YEAR")}
AGGREGATES = classes("Sum Avg Median Stddev")
_BRANCHES = classes("Coalesce If Nvl2 DecodeCase Nullif Case")
_PATTERN_PARTS = {"this", "expression", "replacement", "full_match", "flag", "modifiers", "group"}


def refuse(node: Any, types: Types) -> None:
    """Raises ProgrammingError if a line of the table below applies."""
    for kinds, is_refused, reason in _REFUSALS:
        if isinstance(node, kinds) and is_refused(node, types):
            raise unsupported(f"{text_of(node)}: {reason}")


def _has_negative_index(node: Any, _: Types) -> bool:
    indices = [node.expression] if isinstance(node, exp.GetExtract) else node.expressions
    path = node.expression if isinstance(node, exp.JSONExtract) else None
    if isinstance(path, exp.JSONPath):
        return any(str(each.this).startswith("-") for each in path.find_all(exp.JSONPathSubscript))
    return not all(isinstance(index, exp.Literal) for index in indices)


def _is_of_table_function(node: Any, _: Types) -> bool:
    """Whether this `*` or `f.*` selects the columns of FLATTEN or GENERATOR."""
    column = node.parent if isinstance(node.parent, exp.Column) else node
    select = column.parent
    if not isinstance(select, exp.Select):
        return False
    sources = [
        select.args.get("from_"),
        *(select.args.get("joins") or []),
        *(select.args.get("laterals") or []),
    ]
    functions = [each for each in sources if each is not None and each.find(exp.Explode, exp.Generator)]
    names = {alias.name.upper() for each in functions for alias in each.find_all(exp.TableAlias)}
    return bool(functions) and (not getattr(column, "table", "") or column.table.upper() in names)


def _is_in_milliseconds(node: Any, _: Types) -> bool:
    """Whether this constant is no number of seconds: Snowflake reads texts of such numbers otherwise."""
    digits = node.this.name if isinstance(node.this, exp.Literal) else ""
    return digits.isdecimal() and int(digits) >= _LEAST_MILLISECONDS and not node.args.get("scale")


def _is_of_fractions(node: Any, types: Types) -> bool:
    """Whether this is TO_TIMESTAMP of a number with digits after the point, which DuckDB rounds."""
    return node.name.upper() == "TO_TIMESTAMP" and types.scale(node.expressions[0]) not in (None, 0)


def _is_other_join(node: Any, _: Types) -> bool:
    kind, method = str(node.args.get("kind") or ""), str(node.args.get("method") or "")
    return kind not in {"", "INNER", "OUTER", "CROSS"} or method not in {"", "NATURAL"}


def _is_other_pattern(node: Any, _: Types) -> bool:
    if isinstance(node, exp.RegexpExtract):
        _take_group(node)
    given = {key for key, value in node.args.items() if value is not None and type(value) is not bool}
    group = node.args.get("group")
    return (
        bool(given - _PATTERN_PARTS)
        or not node.expression.is_string
        or (group is not None and not group.name.isdecimal())
    )


def _take_group(extract: Any) -> None:
    """Read REGEXP_SUBSTR(…, 1, 1, 'e', n) as group n of the first match; no group is group 0 to sqlglot."""
    given, options = extract.args, ("position", "occurrence", "parameters")
    position, occurrence, parameters = (given[key].name if given.get(key) else "" for key in options)
    if parameters == "e" and given["group"].name == "0":  # the first group, if there is one
        extract.set(
            "group", exp.Literal.number(min(1, extract.expression.name.replace("\\(", "").count("(")))
        )
    if {position, occurrence} <= {"", "1"} and parameters in {"", "c", "e"}:
        for key in options:
            extract.set(key, None)


def _is_not_selected(ordered: Any, _: Types) -> bool:
    select = ordered.parent.parent
    if not isinstance(select, exp.Select) or not select.args.get("distinct") or select.is_star:
        return False
    names = {column.alias_or_name.upper() for column in select.selects}
    return isinstance(ordered.this, exp.Column) and ordered.this.name.upper() not in names


def _mixes_rows(node: Any, types: Types) -> bool:
    """Whether a column of this UNION or VALUES mixes types, which Snowflake converts to one type."""
    rows = (
        [each.expressions for each in node.expressions]
        if isinstance(node, exp.Values)
        else [
            node.left.selects,
            node.right.selects,
        ]
    )
    columns = [[value.unalias() for value in column] for column in zip(*rows, strict=False)]
    return any(mixes(each, types, "number", "text") or mixes(each, types, "variant") for each in columns)


def _is_other_extract(node: Any, types: Types) -> bool:
    is_path = node.args.get("variant_extract") or node.args.get("requires_json")
    return not is_path or types.kind(node.this) not in {None, "NULL", *VARIANTS}


def _values_of(node: Any) -> list[Any]:
    match node:
        case exp.Case():
            values = [branch.args["true"] for branch in node.args["ifs"]] + [node.args.get("default")]
        case exp.If() | exp.Nvl2():
            values = [node.args["true"], node.args.get("false")]
        case exp.DecodeCase():
            pairs = node.expressions[1:]
            values = [*pairs[1::2], *(pairs[-1:] if len(pairs) % 2 else [])]
        case _:
            values = arguments_of(node)
    return [value for value in values if value is not None]


def _is_not_floating(node: Any, types: Types) -> bool:
    """Whether this statistic is one of numbers other than FLOAT, of which it is a NUMBER."""
    values = arguments_of(node)
    if isinstance(node, exp.PercentileCont):
        values = [each.this for each in outermost(node).find_all(exp.Ordered)]
    return any(types.scale(each) != FLOATING for each in values)


def _are_variants(node: Any, types: Types) -> bool:
    return any(types.is_variant(each) for each in arguments_of(node))


def mixes(nodes: Sequence[Any], types: Types, *pair: str) -> bool:
    """Whether the nodes include both families of the pair; None for any other than the first."""
    families = {types.family(node) for node in nodes if not isinstance(node, exp.Null)}
    return set(pair) <= families if len(pair) > 1 else len({each in pair for each in families}) > 1


_Refusal: TypeAlias = tuple[Any, Callable[[Any, Types], object], str]
_REFUSALS: Sequence[_Refusal] = (
    (exp.Column, lambda node, types: types.has_flatten and node.name.upper() == "SEQ", "SEQ of FLATTEN"),
    (exp.Star, _is_of_table_function, "all columns of a table function; name them"),
    (exp.Generator, lambda node, _: node.args.get("timelimit"), "TIMELIMIT"),
    (exp.Rand, lambda node, _: node.this, "a seed"),
    (exp.Count, lambda node, _: isinstance(node.this, exp.Column) and node.this.is_star, "rows without NULL"),
    (AGGREGATES, lambda node, _: isinstance(node.this, exp.Distinct), "DISTINCT in this aggregate"),
    (
        classes("Variance VariancePop StddevPop Corr CovarSamp CovarPop PercentileCont"),
        _is_not_floating,
        "numbers other than FLOAT; cast them",
    ),
    (
        exp.ToBinary,
        lambda node, _: str(node.args["format"].name if node.args.get("format") else "").upper() != "HEX",
        "TO_BINARY without the format 'HEX'",
    ),
    (
        exp.ConvertTimezone,
        lambda node, _: not node.args.get("source_tz") and node.args["target_tz"].name.upper() != "UTC",
        "a TIMESTAMP_TZ in a time zone other than UTC, which all sessions have",
    ),
    (exp.UnixToTime, _is_in_milliseconds, "times in milliseconds"),
    (exp.Anonymous, _is_of_fractions, "times in parts of a second"),
    (exp.Parameter, lambda node, _: node.name.isdecimal(), "a column by its position"),
    (
        exp.Anonymous,
        lambda node, _: node.name.upper() == "HASH" and node.find_ancestor(exp.Where) is None,
        "hashes, which differ from Snowflake's, outside WHERE",
    ),
    (exp.TableSample, lambda node, _: node.args.get("seed"), "a seed"),
    (exp.TimeSlice, lambda node, _: node.args["unit"].name.upper() not in SLICES, "this unit"),
    (exp.Ordered, _is_not_selected, "not in the columns of SELECT DISTINCT"),
    (exp.StarMap, lambda _, __: True, "an object of all columns"),
    (
        classes("Cast DPipe Concat Group Ordered Min Max"),
        lambda node, types: any(types.kind(each) == "FILE" for each in arguments_of(node)),
        "a FILE",
    ),
    (exp.ToFile, _are_variants, "metadata in place of a file"),
    (exp.Join, _is_other_join, "this kind of join"),
    (exp.Lateral, lambda node, _: not isinstance(node.this, exp.Explode), "LATERAL other than FLATTEN"),
    (exp.Distinct, lambda node, _: node.args.get("on"), "DISTINCT ON"),
    (exp.JSONExtract, _is_other_extract, "a path in what is not semi-structured; write value:path"),
    (
        classes("Bracket GetExtract JSONExtract"),
        _has_negative_index,
        "an index that is not a constant from 0",
    ),
    (_ARITHMETIC, _are_variants, "a VARIANT without a cast"),
    (
        _ARITHMETIC,
        lambda node, types: any(types.family(each) == "text" for each in arguments_of(node)),
        "text without a cast",
    ),
    (_ORDERING, _are_variants, "ordering of VARIANT values without a cast"),
    (
        (exp.Between, exp.Greatest, exp.Least),
        lambda node, types: mixes(list(node.iter_expressions()), types, "number", "text"),
        "text and a number, without a cast",
    ),
    (
        _BRANCHES,
        lambda node, types: mixes(_values_of(node), types, "variant"),
        "a VARIANT next to another type, without a cast",
    ),
    (
        _BRANCHES,
        lambda node, types: mixes(_values_of(node), types, "number", "text"),
        "text next to a number, without a cast",
    ),
    ((exp.SetOperation, exp.Values), _mixes_rows, "different types in one column, without a cast"),
    (exp.Trim, lambda node, _: node.args.get("expression"), "characters to trim"),
    ((exp.Ceil, exp.Floor), lambda node, _: node.args.get("decimals"), "a number of digits"),
    (
        (exp.ArrayAgg, exp.GroupConcat),
        lambda node, _: isinstance(outermost(node), exp.Window),
        "a list as a window function",
    ),
    (
        (exp.RegexpLike, exp.RegexpReplace, exp.RegexpExtract, exp.RegexpInstr),
        _is_other_pattern,
        "anything but a constant pattern and replacement",
    ),
)
