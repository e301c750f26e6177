"""OpenTelemetry: with EXT_CLASSIFY_TRACES, a span per request to /classify and one per step of its rows.

OpenTelemetry's own variables configure export and sampling (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER
and so on). Its packages are the extra `traces`. Its FastAPI instrumentation knows no steps, and /classify
bypasses FastAPI's middleware.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter, time_ns
from typing import TYPE_CHECKING

from starlette.types import Message, Scope, Send

from app import __version__
from app.errors import TracesUnavailable
from app.names import ids_of
from app.outcome import Step, Steps

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

TRACED_PATH = "/classify"
STEPS = ("fetch", "decode", "predict")
# A collector that does not answer must not delay shutdown.
_FLUSH_SECONDS = 2.0
_FIRST_SERVER_ERROR = 500


class Tracing:
    """Does nothing until it is started."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None

    @property
    def is_on(self) -> bool:
        return self._tracer is not None

    def start(self) -> None:
        """Raises TracesUnavailable."""
        try:
            self._provider = _make_provider()
        except ModuleNotFoundError as error:
            raise TracesUnavailable(
                f"EXT_CLASSIFY_TRACES needs {error.name}: pip install 'ext-classify[traces]'"
            ) from None
        except ValueError as error:
            raise TracesUnavailable(
                f"OpenTelemetry's variables (OTEL_…) must be valid. Received: {error}"
            ) from None
        self._tracer = self._provider.get_tracer("ext_classify", __version__)

    def close(self) -> None:
        """Export the remaining spans, within a time limit."""
        if self._provider is not None:
            flushing = threading.Thread(target=self._provider.shutdown, daemon=True)
            self._provider = self._tracer = None
            flushing.start()
            flushing.join(_FLUSH_SECONDS)

    def request(self, scope: Scope, send: Send) -> AbstractContextManager[Send]:
        """A context for a request; it yields the `send` with which the request is answered."""
        if self._tracer is None or scope["path"] != TRACED_PATH:
            return nullcontext(send)
        return _trace_request(self._tracer, scope, send)

    def add_steps(self, steps: Steps, rows: int, failed: int) -> None:
        """Add spans to the current request, or to the one that started the batch."""
        if self._tracer is None:
            return
        from opentelemetry import trace  # noqa: PLC0415 - the packages are optional

        request = trace.get_current_span()
        if request.is_recording():  # not one that was answered 202
            request.set_attributes({"ext_classify.rows": rows, "ext_classify.failed": failed})
        for name in STEPS:
            step: Step = getattr(steps, name)
            if step.seconds:
                _add_step(self._tracer, name, step)


def _make_provider() -> "TracerProvider":
    """Raises ModuleNotFoundError, and ValueError for OpenTelemetry's variables."""
    # The packages are optional.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    service = Resource.create({"service.version": __version__})
    if str(service.attributes["service.name"]).startswith("unknown_service"):
        service = service.merge(Resource({"service.name": "ext-classify"}))
    provider = TracerProvider(resource=service)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextmanager
def _trace_request(tracer: "Tracer", scope: Scope, send: Send) -> Iterator[Send]:
    """Names and attributes follow OpenTelemetry's conventions for HTTP servers."""
    from opentelemetry import trace  # noqa: PLC0415 - the packages are optional
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    span = tracer.start_span(
        f"{scope['method']} {scope['path']}",
        TraceContextTextMapPropagator().extract(headers),
        trace.SpanKind.SERVER,
        {
            "http.request.method": scope["method"],
            "http.route": scope["path"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            **_ids(headers),
        },
    )

    async def send_and_record(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set_attribute("http.response.status_code", status)
            if status >= _FIRST_SERVER_ERROR:
                span.set_status(trace.StatusCode.ERROR)
        await send(message)

    with trace.use_span(span, end_on_exit=True, record_exception=False):
        yield send_and_record


def _add_step(tracer: "Tracer", name: str, step: Step) -> None:
    """A span from the first of its rows to the last; `seconds` is their sum, as rows overlap."""
    epoch_ns = time_ns() - round(perf_counter() * 1e9)
    span = tracer.start_span(
        name, start_time=epoch_ns + round(step.began * 1e9), attributes={"ext_classify.seconds": step.seconds}
    )
    span.end(epoch_ns + round(step.ended * 1e9))


def _ids(headers: Mapping[str, str]) -> dict[str, str]:
    query_id, batch_id = ids_of(headers)
    named = {"snowflake.query_id": query_id, "snowflake.batch_id": batch_id}
    return {attribute: value for attribute, value in named.items() if value is not None}


TRACING = Tracing()
