"""The storage of stages: signed URLs that expire, with error responses like those of Amazon S3."""

import hashlib
import hmac
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from app.emulator.catalog import Catalog, Stage
from app.emulator.errors import invalid

MAX_SIGNED_SECONDS = 604_800
_TIME = "%Y%m%dT%H%M%SZ"
# Snowflake's clients use this storage as they use Google Cloud Storage.
METADATA_PREFIX = "x-goog-meta-"
DIGEST = f"{METADATA_PREFIX}sfc-digest"
_EXISTS = "A different file of this name exists; PUT it with OVERWRITE = TRUE"


class Storage:
    """Signs URLs of one origin, and serves them."""

    def __init__(self, catalog: Catalog, origin: str) -> None:
        self._catalog = catalog
        self._origin = origin
        self._key = os.urandom(32)

    def sign(
        self,
        stage: Stage,
        relative_path: str,
        seconds: int,
        *,
        method: str = "GET",
        overwrite: bool = False,
    ) -> str:
        """A URL that is valid for `seconds`. As in Snowflake, the file need not exist.

        A PUT replaces a different file only with `overwrite`.
        """
        if not 0 < seconds <= MAX_SIGNED_SECONDS:
            raise invalid(f"Expiration time must be 1 to {MAX_SIGNED_SECONDS} seconds. Received: {seconds}.")
        path = "/".join(quote(part, safe="") for part in stage.name) + "/" + quote(relative_path)
        when = datetime.now(UTC).strftime(_TIME)
        query = f"X-Amz-Date={when}&X-Amz-Expires={seconds}" + ("&overwrite=true" if overwrite else "")
        signature = self._signature(method, path, query)
        return f"{self._origin}/{path}?{query}&X-Amz-Signature={signature}"

    @property
    def refused_url(self) -> str:
        """A URL that the storage always refuses."""
        return f"{self._origin}/refused"

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._serve, methods=["GET", "HEAD", "PUT"])])

    async def _serve(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1").removeprefix("/")
        refusal = self._refuse(request, path)
        if refusal is not None:
            return refusal
        *name, relative_path = path.split("/", 3)
        stage = self._catalog.stages.get(tuple(map(unquote, name)))  # type: ignore[arg-type]
        if stage is None:
            return _error(404, "NoSuchBucket", "The specified bucket does not exist")
        if request.method != "PUT":
            return await run_in_threadpool(_send, stage, unquote(relative_path))
        upload = _Upload(stage, unquote(relative_path), await request.body(), _metadata(request))
        return await run_in_threadpool(upload.store, overwrite="overwrite" in request.query_params)

    def _refuse(self, request: Request, path: str) -> Response | None:
        method = "GET" if request.method == "HEAD" else request.method
        query, _, signature = request.url.query.rpartition("&X-Amz-Signature=")
        if not hmac.compare_digest(self._signature(method, path, query).encode(), signature.encode()):
            return _error(403, "SignatureDoesNotMatch", "The request signature does not match")
        when, seconds = request.query_params["X-Amz-Date"], request.query_params["X-Amz-Expires"]
        expires = datetime.strptime(when, _TIME).replace(tzinfo=UTC) + timedelta(seconds=int(seconds))
        if datetime.now(UTC) >= expires:
            return _error(403, "AccessDenied", "Request has expired")
        return None

    def _signature(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


def _send(stage: Stage, relative_path: str) -> Response:
    path = stage.path_of(relative_path)
    if path is None:
        return _error(404, "NoSuchKey", "The specified key does not exist.")
    return FileResponse(path, headers=stage.metadata.get(relative_path))


def _metadata(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.startswith(METADATA_PREFIX)}


@dataclass(frozen=True)
class _Upload:
    """A file to store in a stage."""

    stage: Stage
    relative_path: str
    content: bytes
    metadata: dict[str, str]

    def store(self, *, overwrite: bool) -> Response:
        """Store the file. A file with the digest of the stored one, however encrypted, changes nothing."""
        with self.stage.lock:
            try:
                path = self.stage.resolve(self.relative_path)
                if path.exists() and not overwrite:
                    return Response() if self._is_stored() else _error(412, "PreconditionFailed", _EXISTS)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.content)
            except (ValueError, OSError):
                return _error(403, "InvalidURI", "A file of this path cannot be stored")
            self.stage.metadata[self.relative_path] = self.metadata
        return Response()

    def _is_stored(self) -> bool:
        stored = self.stage.metadata.get(self.relative_path, {})
        return DIGEST in self.metadata and stored.get(DIGEST) == self.metadata[DIGEST]


def _error(status: int, code: str, message: str) -> Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(text, status, media_type="application/xml")
