"""The files of the pages, from memory: no path reaches the file system, and slow clients hold no copies."""

import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# A client may send a list of many; those that are longer get the file.
_MAX_CONDITION_BYTES = 256


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


class StaticFiles:
    """An ASGI application that answers GET and HEAD for the files of one folder, without subfolders.

    Raises HTTPException for other methods and paths.
    """

    def __init__(self, folder: Path, headers: Mapping[str, str] | None = None) -> None:
        self._files = {path.name: _read(path) for path in sorted(folder.iterdir()) if _is_page_file(path)}
        self._headers = dict(headers or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        name = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")
        if name not in self._files:
            raise HTTPException(404)
        await self.response(name, Headers(scope=scope))(scope, receive, send)

    def response(self, name: str, request_headers: Mapping[str, str]) -> Response:
        """A file, or 304 where the client has it (RFC 9110, section 13.1.2)."""
        file = self._files[name]
        headers = {**self._headers, "etag": file.etag}
        condition = request_headers.get("if-none-match", "")
        if len(condition) <= _MAX_CONDITION_BYTES and file.etag in condition:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _is_page_file(path: Path) -> bool:
    return path.is_file() and path.suffix != ".py"


def _read(path: Path) -> _File:
    content = path.read_bytes()
    media_type, _ = mimetypes.guess_type(path.name)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return _File(content, media_type or "application/octet-stream", f'"{digest}"')
