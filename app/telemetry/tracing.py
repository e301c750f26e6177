"""OpenTelemetry: a span a request and one a step of its rows, where EXT_CLASSIFY_TRACES asks for them.

Where they are sent and how many of them, OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER and so on). Its packages are the extra `traces`, and imported only then. FastAPI's own
spans come with the way through it that /classify is spared, and know no steps.
"""

import importlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter, time_ns
from typing import Any, TypeAlias

from app import __version__
from app.errors import TracesUnavailable
from app.names import ids_of
from app.outcome import Step, Steps

TRACED_PATH = "/classify"
STEPS = ("fetch", "decode", "predict")
# A collector that does not answer is not to hold up the end of the service.
_SENDING_SECONDS = 2.0
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

    @property
    def is_on(self) -> bool:
        return self._tracer is not None

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
        try:
            self._provide(resources, sdk, export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        except ValueError as error:
            raise TracesUnavailable(
                f"OpenTelemetry refuses what its variables (OTEL_…) say: {error}"
            ) from None
        self._propagator = propagation.TraceContextTextMapPropagator()

    def _provide(self, resources: Any, sdk: Any, processor: Any) -> None:
        service = resources.Resource.create({"service.version": __version__})
        if service.attributes["service.name"].startswith("unknown_service"):
            service = service.merge(resources.Resource({"service.name": "ext-classify"}))
        self._provider = sdk.TracerProvider(resource=service)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ext_classify", __version__)

    def close(self) -> None:
        """Send what is left, for as long as the service waits for it."""
        if self._provider is not None:
            sending = threading.Thread(target=self._provider.shutdown, daemon=True)
            self._provider = self._tracer = None
            sending.start()
            sending.join(_SENDING_SECONDS)

    def request(self, scope: Scope, send: Send) -> AbstractContextManager[Send]:
        """For as long as a request is answered, with what is sent by."""
        if self._tracer is None or scope["path"] != TRACED_PATH:
            return nullcontext(send)
        return self._trace_request(scope, send)

    def add_steps(self, steps: Steps, rows: int, failed: int) -> None:
        """To the request that is being answered, or was when its batch began."""
        if self._tracer is None:
            return
        request = self._api.get_current_span()
        if request.is_recording():  # not one that was answered 202
            request.set_attributes({"ext_classify.rows": rows, "ext_classify.failed": failed})
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
    query_id, batch_id = ids_of(headers)
    named = {"snowflake.query_id": query_id, "snowflake.batch_id": batch_id}
    return {attribute: said for attribute, said in named.items() if said is not None}


TRACING = Tracing()
