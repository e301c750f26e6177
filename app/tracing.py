"""OpenTelemetry: a span a request and one a step of its rows, where EXT_CLASSIFY_TRACES asks for them.

Where they are sent and how many of them, OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER and so on). Its packages are the extra `traces`, and imported only then. FastAPI's own
spans come with the way through it that /classify is spared, and know no steps.
"""

import importlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter, time_ns
from typing import Any, TypeAlias

from app import __version__
from app.errors import TracesUnavailable
from app.snowflake.wire import BATCH_ID_HEADER, QUERY_ID_HEADER
from app.steps import Step, Steps

TRACED_PATH = "/classify"
STEPS = ("fetch", "decode", "predict")
# A collector that does not answer is not to hold up the end of the service.
_FLUSH_MILLISECONDS = 2000
_FIRST_SERVER_ERROR = 500


# As in ASGI.
Scope: TypeAlias = Mapping[str, Any]
Message: TypeAlias = Any
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class Tracing:
    """Nothing, until it is started."""

    def __init__(self) -> None:
        self._provider: Any = None
        self._tracer: Any = None
        self._api: Any = None
        self._propagator: Any = None

    def start(self) -> None:
        """Raises TracesUnavailable."""
        try:
            self._api = importlib.import_module("opentelemetry.trace")
            propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
            resources = importlib.import_module("opentelemetry.sdk.resources")
            sdk = importlib.import_module("opentelemetry.sdk.trace")
            export = importlib.import_module("opentelemetry.sdk.trace.export")
            otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        except ModuleNotFoundError as error:
            raise TracesUnavailable(
                f"EXT_CLASSIFY_TRACES needs {error.name}: pip install 'ext-classify[traces]'"
            ) from None
        name = os.environ.get("OTEL_SERVICE_NAME", "ext-classify")
        service = resources.Resource.create({"service.name": name, "service.version": __version__})
        self._provider = sdk.TracerProvider(resource=service)
        self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("ext_classify", __version__)
        self._propagator = propagation.TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.force_flush(_FLUSH_MILLISECONDS)
            self._provider.shutdown()
            self._provider = self._tracer = None

    def request(self, scope: Scope, send: Send) -> AbstractContextManager[Send]:
        """For as long as a request is answered, with what is sent by."""
        if self._tracer is None or scope["path"] != TRACED_PATH:
            return nullcontext(send)
        return self._trace_request(scope, send)

    def add_steps(self, steps: Steps, rows: int, failed: int) -> None:
        """To the request that is being answered, or was when its batch began."""
        if self._tracer is None:
            return
        self._api.get_current_span().set_attributes(
            {"ext_classify.rows": rows, "ext_classify.failed": failed}
        )
        for name in STEPS:
            step: Step = getattr(steps, name)
            if step.seconds:
                self._add_step(name, step)

    def _add_step(self, name: str, step: Step) -> None:
        """From the first of its rows to the last; `seconds` is what they took, side by side."""
        epoch_ns = time_ns() - round(perf_counter() * 1e9)
        span = self._tracer.start_span(
            name,
            start_time=epoch_ns + round(step.began * 1e9),
            attributes={"ext_classify.seconds": step.seconds},
        )
        span.end(epoch_ns + round(step.ended * 1e9))

    @contextmanager
    def _trace_request(self, scope: Scope, send: Send) -> Iterator[Send]:
        """Names and attributes are OpenTelemetry's for HTTP servers."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}",
            self._propagator.extract(headers),
            self._api.SpanKind.SERVER,
            {
                "http.request.method": scope["method"],
                "http.route": scope["path"],
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                **_ids(headers),
            },
        )

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= _FIRST_SERVER_ERROR:
                    span.set_status(self._api.StatusCode.ERROR)
            await send(message)

        with self._api.use_span(span, end_on_exit=True, record_exception=False):
            yield send_noting


def _ids(headers: Mapping[str, str]) -> dict[str, str]:
    named = {"snowflake.query_id": QUERY_ID_HEADER, "snowflake.batch_id": BATCH_ID_HEADER}
    return {attribute: headers[name] for attribute, name in named.items() if name in headers}


TRACING = Tracing()
