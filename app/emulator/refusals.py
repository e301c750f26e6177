"""Snowflake's errors with their number, SQL state and message."""

from snowflake.connector.errors import ProgrammingError


def unsupported(feature: str) -> ProgrammingError:
    """A feature that the emulator lacks: it fails instead of returning a result that may be wrong."""
    return ProgrammingError(
        msg=f"Unsupported feature '{feature}' (in local SQL; Snowflake may have it).",
        errno=2,
        sqlstate="0A000",
    )


def syntax_error(message: str) -> ProgrammingError:
    return ProgrammingError(msg=f"SQL compilation error:\n{message}", errno=1003, sqlstate="42000")


def empty_statement() -> ProgrammingError:
    return ProgrammingError(msg="SQL compilation error:\nEmpty SQL statement.", errno=900, sqlstate="42601")


def several_statements(count: int) -> ProgrammingError:
    return ProgrammingError(
        msg=f"Actual statement count {count} did not match the desired statement count 1.",
        errno=8,
        sqlstate="0A000",
    )


def unknown_function(name: str) -> ProgrammingError:
    return ProgrammingError(
        msg=f"SQL compilation error:\nUnknown function {name}.", errno=2140, sqlstate="42601"
    )


def invalid_arguments(function: str, given: str, known: str) -> ProgrammingError:
    return ProgrammingError(
        msg=f"SQL compilation error:\nInvalid argument types for function '{function}': ({given}); "
        f"known signatures: {known}",
        errno=1044,
        sqlstate="42P13",
    )


def no_current_schema() -> ProgrammingError:
    return ProgrammingError(
        msg="Cannot perform operation. This session does not have a current database and schema. Call 'USE "
        "SCHEMA', or use a qualified name.",
        errno=90105,
        sqlstate="22000",
    )


def not_found(kind: str, name: str) -> ProgrammingError:
    return ProgrammingError(
        msg=f"SQL compilation error:\n{kind} '{name}' does not exist or not authorized.",
        errno=2003,
        sqlstate="02000",
    )


def already_exists(name: str) -> ProgrammingError:
    return ProgrammingError(
        msg=f"SQL compilation error:\nObject '{name}' already exists.", errno=2002, sqlstate="42710"
    )


def no_warehouse() -> ProgrammingError:
    return ProgrammingError(
        msg="No active warehouse selected in the current session. Select an active warehouse with the 'use "
        "warehouse' command.",
        errno=606,
        sqlstate="57P03",
    )


def invalid(message: str) -> ProgrammingError:
    return ProgrammingError(msg=f"SQL compilation error:\n{message}", errno=1008, sqlstate="42601")


def refuse_both(replace: bool, keep: bool) -> None:
    """Raises ProgrammingError for a CREATE with both OR REPLACE and IF NOT EXISTS."""
    if replace and keep:
        raise invalid("options IF NOT EXISTS and OR REPLACE are incompatible.")
