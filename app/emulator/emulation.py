"""The state that all sessions share: DuckDB, the catalog, the storage and the HTTP client for functions."""

import functools
import json
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from fakesnow.conn import FakeSnowflakeConnection
from fakesnow.instance import FakeSnow
from snowflake.connector.errors import Error

from app.emulator.arguments import coerce, read_arguments
from app.emulator.catalog import DATABASE, SCHEMA, Catalog, Name, Stage
from app.emulator.query import Query
from app.emulator.refusals import unknown_function
from app.emulator.remote import RemoteService
from app.emulator.session import LocalConnection
from app.emulator.storage import Storage
from app.emulator.urls import file_url, scoped_url

MAX_FINISHED_QUERIES = 1000

# DuckDB warns about the way in which fakesnow fetches Arrow results.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)


class LocalSnowflake(FakeSnow):
    """The emulator. `storage` signs the URLs that SQL returns, `uploads` those of clients' PUT and GET."""

    def __init__(self, storage_origin: str, uploads_origin: str, remote: RemoteService) -> None:
        super().__init__()
        self.catalog = Catalog()
        self.storage = Storage(self.catalog, storage_origin)
        self.uploads = Storage(self.catalog, uploads_origin)
        self.remote = remote
        self.queries: OrderedDict[str, Query] = OrderedDict()
        self._running: dict[str, Query] = {}
        self._folders = tempfile.TemporaryDirectory(prefix="ext-classify-stages-")
        # Snowflake has neither DuckDB's file readers nor its extensions.
        self.duck_conn.execute("SET enable_external_access = false")
        self._register_functions()
        # A connection of fakesnow creates its database if it is missing; LocalConnection does not.
        FakeSnowflakeConnection(self.duck_conn.cursor(), self.results_cache, DATABASE, SCHEMA)

    def connect(
        self,
        database: str | None = None,
        schema: str | None = None,
        nop_regexes: list[str] | None = None,  # noqa: ARG002 - fakesnow's signature
        **options: Any,
    ) -> LocalConnection:
        return LocalConnection(
            self,
            self.duck_conn.cursor(),
            self.results_cache,
            database or DATABASE,  # the user's default namespace
            schema or SCHEMA,
            **options,
        )

    def new_stage(self, name: Name, **properties: Any) -> Stage:
        folder = tempfile.mkdtemp(dir=self._folders.name)
        return Stage(name, Path(folder), **properties)

    def start(self, query: Query) -> None:
        with self.catalog.lock:
            self._running[query.id] = query

    def finish(self, query: Query) -> None:
        """Keep the counts and the result of a finished query; evict the oldest ones."""
        with self.catalog.lock:
            self.queries[query.id] = self._running.pop(query.id)
            while len(self.queries) > MAX_FINISHED_QUERIES:
                self.queries.popitem(last=False)
            while len(self.results_cache) > MAX_FINISHED_QUERIES:
                del self.results_cache[next(iter(self.results_cache))]

    def cancel_queries(self) -> None:
        for query in list(self._running.values()):
            query.is_over.set()

    def close(self) -> None:
        self.remote.close()
        self.duck_conn.close()
        self._folders.cleanup()

    def _register_functions(self) -> None:
        """Create the functions that rewritten statements call: on columns, with the query id first."""
        text = pa.string()
        self._register("_local_call", self._call, ["BIGINT", "VARCHAR"], "JSON", pa.json_(text))
        self._register("_local_sign", self._sign, ["VARCHAR", "VARCHAR", "BIGINT"], "VARCHAR", text)
        self._register("_local_file_url", self._file_url, ["VARCHAR", "VARCHAR"], "VARCHAR", text)
        self._register("_local_scoped_url", self._scoped_url, ["VARCHAR", "VARCHAR"], "VARCHAR", text)

    def _register(
        self,
        name: str,
        function: Callable[..., Iterable[str | None]],
        parameters: list[Any],
        returns: Any,
        arrow_type: Any,
    ) -> None:
        @functools.wraps(function)  # DuckDB inspects the signature
        def on_columns(query_ids: Any, *columns: Any) -> Any:
            query = self._running.get(query_ids[0].as_py())
            if query is None:
                raise unknown_function(name.upper())
            try:
                values = function(query, *(column.to_pylist() for column in columns))
            except Error as error:
                query.fail(error)
                raise
            answers = pa.array(values, pa.string())
            return (
                answers if arrow_type == pa.string() else pa.ExtensionArray.from_storage(arrow_type, answers)
            )

        create: Any = self.duck_conn.create_function  # its stubs do not accept type names
        create(
            name,
            on_columns,
            ["VARCHAR", *parameters],
            returns,
            type="arrow",
            side_effects=True,
            null_handling="special",
        )

    def _call(self, query: Query, places: list[int], arguments: list[str]) -> list[str | None]:
        function = query.functions[places[0]]
        rows = [read_arguments(row) for row in arguments]
        sent = [place for place, row in enumerate(rows) if not (function.is_strict and None in row)]
        values = self.remote.call(function, [coerce(function, rows[place]) for place in sent], query)
        answers: list[str | None] = [None] * len(rows)
        for place, value in zip(sent, values, strict=True):
            answers[place] = value
        return answers

    def _sign(
        self, _: Query, stages: list[str], paths: list[str | None], seconds: list[int | None]
    ) -> list[str | None]:
        return [
            None if path is None or second is None else self.storage.sign(self._stage(stage), path, second)
            for stage, path, second in zip(stages, paths, seconds, strict=True)
        ]

    def _file_url(self, _: Query, stages: list[str], paths: list[str | None]) -> list[str | None]:
        pairs = zip(stages, paths, strict=True)
        return [None if path is None else file_url(self._stage(stage), path) for stage, path in pairs]

    def _scoped_url(self, query: Query, stages: list[str], paths: list[str | None]) -> list[str | None]:
        pairs = zip(stages, paths, strict=True)
        return [
            None if path is None else scoped_url(query.id, self._stage(stage), path) for stage, path in pairs
        ]

    def _stage(self, name: str) -> Stage:
        return self.catalog.stages[tuple(json.loads(name))]
