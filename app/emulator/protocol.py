"""Snowflake's protocol over HTTP: fakesnow's server, with the logins, transfers and errors of Snowflake."""

import gzip
import json
import logging
import secrets
from typing import Any

from fakesnow.server import monitoring_query, query_request, routes, sessions
from fakesnow.server import session as end_session
from fakesnow.transforms import SERVER_VERSION
from snowflake.connector.errors import Error
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message

from app.emulator.emulation import LocalConnection, LocalSnowflake, parse_statement
from app.emulator.errors import unsupported
from app.emulator.rest import answer_rest
from app.emulator.rowsets import as_json
from app.emulator.session import Session
from app.emulator.stages import answer_transfer, failed_put
from app.names import parse_identifier, quote_string

# Connector 5.x requires every key.
_LOGIN = {
    "serverVersion": SERVER_VERSION,
    "validityInSeconds": 3600,
    "masterValidityInSeconds": 14_400,
    "sessionId": 1,
    "firstLogin": False,
    "healthCheckInterval": 45,
}
logging.getLogger("fakesnow.server").setLevel(logging.CRITICAL)  # its errors are in the responses
# fakesnow's server parses a statement before its cursor does; its module has the name of a function.
query_request.__globals__["parse_one"] = parse_statement
FAKESNOW_ROUTES = (
    "/session/heartbeat",
    "/queries/v1/abort-request",
    "/monitoring/queries/{sfqid}",
)


def create_protocol_app(local: LocalSnowflake) -> Starlette:
    """The ASGI application. Sessions are in fakesnow's module, shared by all servers of the process."""

    async def log_in(request: Request) -> Response:
        return await _log_in(request, local)

    async def answer_query(request: Request) -> Response:
        return await _answer_query(request, local)

    async def answer_result(request: Request) -> Response:
        return await _answer_query(_request_of_result(request), local)

    return Starlette(
        routes=[
            Route("/session/v1/login-request", log_in, methods=["POST"]),
            Route("/queries/v1/query-request", answer_query, methods=["POST"]),
            Route("/queries/{sfqid}/result", answer_result),
            Route("/session", _end_session, methods=["POST"]),
            Route("/telemetry/send", _discard, methods=["POST"]),
            Route("/api/v2/{path:path}", _answer_rest, methods=["GET", "POST"]),
            *(route for route in routes if route.path in FAKESNOW_ROUTES),
            Route("/monitoring/queries//{sfqid}", monitoring_query),  # as connector 5 sends it
            Mount("/", local.uploads.app()),
        ],
        # Prevents DNS rebinding: a web page must not read staged files under its own host name.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


def close_sessions(local: LocalSnowflake) -> None:
    """Close the sessions of this emulator."""
    for token, session in list(sessions.items()):
        if isinstance(session, Session) and session.catalog is local.catalog:
            session.close()
            del sessions[token]


async def _log_in(request: Request, local: LocalSnowflake) -> Response:
    login, query = (await _read_json(request))["data"], request.query_params
    parameters = login.get("SESSION_PARAMETERS") or {}
    autocommit = parameters.get("AUTOCOMMIT", True)
    session = local.connect(
        _stored(query.get("databaseName")), _stored(query.get("schemaName")), autocommit=autocommit
    )
    session.user = str(login.get("LOGIN_NAME") or session.user).upper()
    session.role = _stored(query.get("roleName")) or session.role
    session.warehouse = _stored(query.get("warehouse")) or session.warehouse
    session.repeats_puts = str(login.get("CLIENT_APP_VERSION", "")).startswith(("3.", "4."))
    session.reads_arrow = login.get("CLIENT_APP_ID") != "JavaScript"
    token = secrets.token_urlsafe(32)
    sessions[token] = session
    data = {
        "token": token,
        "masterToken": token,
        "displayUserName": session.user,
        "parameters": [
            {"name": "AUTOCOMMIT", "value": autocommit},
            {"name": "CLIENT_SESSION_KEEP_ALIVE_HEARTBEAT_FREQUENCY", "value": 3600},
            {"name": "CLIENT_STAGE_ARRAY_BINDING_THRESHOLD", "value": 0},  # send arrays in the request
        ],
        "sessionInfo": {
            "databaseName": session.database,
            "schemaName": session.schema,
            "warehouseName": session.warehouse,
            "roleName": session.role,
        },
    }
    return JSONResponse({"code": None, "message": None, "success": True, "data": _LOGIN | data})


async def _end_session(request: Request) -> Response:
    ended = sessions.get(_token(request))
    response: Response = await end_session(request)
    if isinstance(ended, Session) and _token(request) not in sessions:
        async with ended.turn:
            await run_in_threadpool(ended.close)
    return response


async def _discard(_: Request) -> Response:
    """The response to a client's telemetry."""
    return JSONResponse({"data": "Log Received", "code": None, "message": None, "success": True})


async def _answer_query(request: Request, local: LocalSnowflake) -> Response:
    session = sessions.get(_token(request))
    if not isinstance(session, Session):
        return await query_request(request)  # answers 390104: log in again
    body = await _read_json(request)
    sql, binds = str(body["sqlText"]), body.get("bindings") or {}
    stage = str(binds["1"]["value"]) if list(binds) == ["1"] and sql.lstrip()[:4].upper() == "PUT " else ""
    try:
        transfer = await run_in_threadpool(answer_transfer, sql, session, local.uploads, stage)
        if transfer is not None:
            return JSONResponse({"data": transfer, "code": None, "message": None, "success": True})
        async with session.turn:
            response = await query_request(request)
        if response.status_code >= 500:
            return _failure(unsupported("this statement"))
        return response if session.reads_arrow else JSONResponse(as_json(bytes(response.body)))
    except Error as error:
        return _failure(error, failed_put(sql, error, local.uploads))
    except Exception:  # noqa: BLE001 - clients retry an HTTP 500 for minutes
        return _failure(unsupported("this statement"))


def _request_of_result(request: Request) -> Request:
    """The request of version 4 of the connector for the result of a query."""
    query_id = quote_string(request.path_params["sfqid"])
    sql = f"SELECT * FROM TABLE(RESULT_SCAN({query_id}))"  # noqa: S608 - quoted
    body = json.dumps({"sqlText": sql}).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


async def _answer_rest(request: Request) -> Response:
    session = sessions.get(_token(request))
    if not isinstance(session, LocalConnection):
        return JSONResponse({"code": "390104", "message": "Log in again."}, 401)
    body = await _read_json(request) if request.method == "POST" else {}
    mode = request.query_params.get("createMode", "")
    async with session.turn:
        path = request.path_params["path"]
        return await run_in_threadpool(answer_rest, request.method, path, mode, body, session)


def _stored(name: str | None) -> str | None:
    """A client's name of an object in the form that Snowflake stores."""
    try:
        return parse_identifier(name, max_parts=1)[0] if name else None
    except ValueError:
        return name


def _token(request: Request) -> str:
    """The token of `Authorization: Snowflake Token="…"`."""
    return request.headers.get("Authorization", "").partition('"')[2].rstrip('"')


async def _read_json(request: Request) -> Any:
    body = await request.body()
    return json.loads(gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body)


def _failure(error: Error, data: dict[str, Any] | None = None) -> Response:
    code = f"{error.errno:06d}"
    return JSONResponse(
        {
            "data": {"errorCode": code, "sqlState": error.sqlstate, **(data or {})},
            "code": code,
            "message": error.msg,
            "success": False,
        }
    )
