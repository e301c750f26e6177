"""The part of Snowflake's REST API that `snow object create` uses, as statements.

Source: Snowflake REST API reference: databases, schemas, tables, views and stages.
"""

from collections.abc import Callable
from typing import Any

from snowflake.connector.errors import Error
from starlette.responses import JSONResponse, Response

from app.emulator.emulation import LocalConnection
from app.emulator.errors import already_exists, not_found, unsupported
from app.names import parse_identifier, quote_identifier, quote_string

_MODES = {"orReplace": ("OR REPLACE ", ""), "ifNotExists": ("", "IF NOT EXISTS ")}
_STATUS = {already_exists("").errno: 409, not_found("", "").errno: 404}


def answer_rest(
    method: str, path: str, mode: str, body: dict[str, Any], session: LocalConnection
) -> Response:
    """The response to a request under /api/v2. A GET only says whether there is such a resource."""
    names = [part for part in path.split("/") if part]
    kinds, parents = names[::2], names[1::2]
    if kinds not in [["databases"], ["databases", "schemas"]] and (
        kinds[:2] != ["databases", "schemas"] or len(kinds) != 3 or kinds[2] not in _CLAUSES
    ):
        return _failure(404, unsupported(f"/api/v2/{path}"))
    try:
        if len(names) % 2 == 0 and not session.has_schema(*map(_stored, parents)):
            raise not_found("Object", ".".join(parents))
        if method == "GET":
            return JSONResponse({"name": parents[-1]} if len(names) % 2 == 0 else [])
        session.cursor().execute(_create(kinds[-1], parents, mode, dict(body)))
    except Error as error:
        return _failure(_STATUS.get(error.errno, 400), error)
    except KeyError as missing:
        return _failure(400, unsupported(f"a request without {missing}"))
    return JSONResponse({"status": f"{body['name']} successfully created."})


def _create(kind: str, parents: list[str], mode: str, body: dict[str, Any]) -> str:
    """The CREATE statement for a resource. Raises ProgrammingError for a property that it lacks."""
    before, after = _MODES.get(mode, ("", ""))
    name = quote_identifier(*map(_stored, [*parents, str(body.pop("name", ""))]))
    clauses = _CLAUSES[kind](body) if kind in _CLAUSES else ""
    comment = f" COMMENT = {quote_string(body.pop('comment'))}" if body.get("comment") else ""
    if body:
        raise unsupported(f"{', '.join(sorted(body))} in a request for {kind}")
    words = f"CREATE {before}{kind.removesuffix('s').upper()} {after}{name}"
    return f"{words}{comment}{clauses}" if kind == "views" else f"{words}{clauses}{comment}"


def _table(body: dict[str, Any]) -> str:
    columns = [
        f"{quote_identifier(_stored(column['name']))} {column['datatype']}"
        f"{' NOT NULL' if column.get('nullable') is False else ''}"
        for column in body.pop("columns", [])
    ]
    return f" ({', '.join(columns)})"


def _view(body: dict[str, Any]) -> str:
    body.pop("columns", None)
    return f" AS {body.pop('query', '')}"


def _stage(body: dict[str, Any]) -> str:
    directory, encryption = body.pop("directory_table", {}), body.pop("encryption", {})
    enables = f" DIRECTORY = (ENABLE = {directory['enable']})" if "enable" in directory else ""
    return enables + (
        f" ENCRYPTION = (TYPE = {quote_string(encryption['type'])})" if "type" in encryption else ""
    )


_CLAUSES: dict[str, Callable[[dict[str, Any]], str]] = {"tables": _table, "views": _view, "stages": _stage}


def _stored(name: str) -> str:
    """Raises ProgrammingError for what is no name."""
    try:
        return parse_identifier(name, max_parts=1)[0]
    except ValueError as error:
        raise unsupported(str(error)) from None


def _failure(status: int, error: Error) -> Response:
    return JSONResponse({"code": f"{error.errno:06d}", "message": error.msg}, status)
