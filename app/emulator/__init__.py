"""Local SQL: a Snowflake emulator on fakesnow and DuckDB that calls the service as Snowflake does."""

from app.emulator.catalog import ACCOUNT, ACCOUNT_HOST, DATABASE, SCHEMA, Name, Stage
from app.emulator.grammar import split_statements
from app.emulator.remote import Chaos
from app.emulator.server import LocalServer

__all__ = [
    "ACCOUNT",
    "ACCOUNT_HOST",
    "DATABASE",
    "SCHEMA",
    "Chaos",
    "LocalServer",
    "Name",
    "Stage",
    "split_statements",
]
