"""Snowflake's errors with their number, SQL state and message, and the one error of the emulator's own."""

from snowflake.connector.errors import ProgrammingError


def unsupported(feature: str) -> ProgrammingError:
    """A feature that the emulator lacks: it fails instead of returning a result that may be wrong."""
    return ProgrammingError(msg=f"Not supported by the emulator: {feature}.", errno=2, sqlstate="0A000")


def own_error(number: str, sql_state: str, message: str) -> ProgrammingError:
    """An error of ours that passed through DuckDB."""
    return ProgrammingError(msg=message, errno=int(number), sqlstate=sql_state)


def unreadable(line: str, column: str) -> ProgrammingError:
    return syntax_error(f"syntax error, or syntax that the emulator lacks, line {line} at position {column}")


def unparsed_time(text: str) -> ProgrammingError:
    return ProgrammingError(msg=f"Can't parse '{text}' in the given format", errno=100096, sqlstate="22007")


def several_statements(count: int) -> ProgrammingError:
    return ProgrammingError(
        msg=f"Actual statement count {count} did not match the desired statement count 1.",
        errno=8,
        sqlstate="0A000",
    )


def no_warehouse() -> ProgrammingError:
    return ProgrammingError(
        msg="No active warehouse selected in the current session. Select an active warehouse with the 'use "
        "warehouse' command.",
        errno=606,
        sqlstate="57P03",
    )


def no_current_schema() -> ProgrammingError:
    return ProgrammingError(
        msg="Cannot perform operation. This session does not have a current database and schema. Call 'USE "
        "SCHEMA', or use a qualified name.",
        errno=90105,
        sqlstate="22000",
    )


def not_recognized(kind: str, value: object) -> ProgrammingError:
    if kind in {"Date", "Timestamp", "Time"}:
        number = 100040 if kind == "Date" else 100035
        return ProgrammingError(msg=f"{kind} '{value}' is not recognized", errno=number, sqlstate="22007")
    number = 100037 if kind == "Boolean" else 100038
    return ProgrammingError(msg=f"{kind} value '{value}' is not recognized", errno=number, sqlstate="22018")


def out_of_range(value: str) -> ProgrammingError:
    return ProgrammingError(
        msg=f"Number out of representable range: type FIXED, value {value}", errno=100046, sqlstate="22003"
    )


def too_long() -> ProgrammingError:
    return ProgrammingError(msg="String is too long and would be truncated", errno=100078, sqlstate="22000")


def empty_statement() -> ProgrammingError:
    return _compilation_error("Empty SQL statement.", 900, "42601")


def syntax_error(message: str) -> ProgrammingError:
    return _compilation_error(message, 1003, "42000")


def invalid(message: str) -> ProgrammingError:
    return _compilation_error(message, 1008, "42601")


def invalid_value(name: str, value: object) -> ProgrammingError:
    return invalid(f"invalid value [{value}] for parameter '{name}'")


def invalid_arguments(function: str, given: str, known: str) -> ProgrammingError:
    return _compilation_error(
        f"Invalid argument types for function '{function}': ({given}); known signatures: {known}",
        1044,
        "42P13",
    )


def already_exists(name: str) -> ProgrammingError:
    return _compilation_error(f"Object '{name}' already exists.", 2002, "42710")


def not_found(kind: str, name: str) -> ProgrammingError:
    return _compilation_error(f"{kind} '{name}' does not exist or not authorized.", 2003, "02000")


def unknown_function(name: str) -> ProgrammingError:
    return _compilation_error(f"Unknown function {name}.", 2140, "42601")


def invalid_identifier(name: str) -> ProgrammingError:
    return _compilation_error(f"error line 1 at position 0\ninvalid identifier '{name}'", 904, "42000")


def no_such_statement(query_id: str) -> ProgrammingError:
    return ProgrammingError(msg=f"Statement {query_id} not found", errno=709, sqlstate="02000")


def no_such_variable(name: str) -> ProgrammingError:
    return _compilation_error(f"Session variable '{name}' does not exist", 2211, "02000")


def wrong_count(expected: str, received: str) -> ProgrammingError:
    text = f"Insert value list does not match column list expecting {expected} but got {received}"
    return _compilation_error(text, 2020, "21S01")


def wrong_type(column: str, expected: str, received: str) -> ProgrammingError:
    text = f"Expression type does not match column data type, expecting {expected} but got {received}"
    return _compilation_error(f"{text} for column {column}", 2023, "22000")


def no_such_file(location: str) -> ProgrammingError:
    return ProgrammingError(msg=f"Remote file '{location}' was not found.", errno=91016, sqlstate="22000")


def unset_bind() -> ProgrammingError:
    return _compilation_error("Bind variable ? not set.", 2049, "42601")


def no_cast(function: str, source: str, target: str) -> ProgrammingError:
    return _compilation_error(
        f"Function {function} cannot be used with arguments of types {source} and {target}", 1065, "22023"
    )


def not_in_values(expression: str) -> ProgrammingError:
    return _compilation_error(f"Invalid expression [{expression}] in VALUES clause", 2014, "22000")


def not_grouped(name: str) -> ProgrammingError:
    return _compilation_error(f"[{name}] is not a valid group by expression", 979, "42601")


def malformed_json(text: str) -> ProgrammingError:
    return ProgrammingError(msg=f"Error parsing JSON: {text}", errno=100069, sqlstate="22P02")


def ambiguous(name: str) -> ProgrammingError:
    return _compilation_error(f"ambiguous column name '{name}'", 2028, "42601")


def several_rows() -> ProgrammingError:
    return ProgrammingError(
        msg="Single-row subquery returns more than one row.", errno=90150, sqlstate="22000"
    )


def unequal_branches() -> ProgrammingError:
    return _compilation_error(
        "invalid number of result columns for set operator input branches", 1789, "42601"
    )


def null_in_column() -> ProgrammingError:
    return ProgrammingError(msg="NULL result in a non-nullable column", errno=100072, sqlstate="22000")


def division_by_zero() -> ProgrammingError:
    return ProgrammingError(msg="Division by zero", errno=100051, sqlstate="22012")


def _compilation_error(message: str, number: int, sql_state: str) -> ProgrammingError:
    return ProgrammingError(msg=f"SQL compilation error:\n{message}", errno=number, sqlstate=sql_state)
