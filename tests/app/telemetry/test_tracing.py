"""Traces of the running service as a collector receives them: OTLP over HTTP."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.client import is_ready
from app.names import BATCH_ID_HEADER, QUERY_ID_HEADER
from tests.app.forms import text_of
from tests.running import TIMEOUT_SECONDS, exchange, free_port, logging_service, running_service, wait_until

pytestmark = pytest.mark.slow

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
HEADERS = {
    "Content-Type": "application/json",
    "traceparent": f"00-{TRACE_ID}-{CALLER}-01",
    QUERY_ID_HEADER: "01b2-query",
}


class Collector(ThreadingHTTPServer):
    """Decodes and collects requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def traced_service(collector_url: str) -> AbstractContextManager[str]:
    return running_service(EXT_CLASSIFY_TRACES="true", OTEL_EXPORTER_OTLP_ENDPOINT=collector_url)


def attributes_of(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_batch_is_a_span_of_the_client_s_trace_with_its_steps_as_children(sample: bytes) -> None:
    body = json.dumps({"data": [[n, text_of(sample)] for n in range(20)] + [[20, "?"]]}).encode()
    with collector() as there:
        with traced_service(there.url) as url:
            answer = exchange(port_of(url), "POST", "/classify", body, HEADERS | {BATCH_ID_HEADER: "b-1"})
            assert answer.status == 200
            exchange(port_of(url), "GET", "/healthz")
        spans = {span.name: span for span in there.spans()}
        [resource] = {str(sent.resource_spans[0].resource) for sent in there.received}
    assert set(spans) == {"POST /classify", "decode", "predict"}, "probes are no spans"
    assert 'string_value: "ext-classify"' in resource
    request = spans["POST /classify"]
    assert request.parent_span_id.hex() == CALLER
    assert request.kind == Span.SPAN_KIND_SERVER
    attributes = attributes_of(request)
    assert attributes["snowflake.query_id"] == "01b2-query"
    assert attributes["snowflake.batch_id"] == "b-1"
    assert attributes["http.response.status_code"] == 200
    assert (attributes["ext_classify.rows"], attributes["ext_classify.failed"]) == (21, 1)
    for name in ("decode", "predict"):
        step = spans[name]
        assert step.parent_span_id == request.span_id
        assert request.start_time_unix_nano < step.start_time_unix_nano < step.end_time_unix_nano
        assert step.end_time_unix_nano < request.end_time_unix_nano
        assert attributes_of(step)["ext_classify.seconds"] > 0  # type: ignore[operator]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}


def test_rejected_request_is_a_span_with_its_status_and_ids() -> None:
    with collector() as there:
        with traced_service(there.url) as url:
            assert exchange(port_of(url), "POST", "/classify", b"{", HEADERS).status == 400
        [span] = there.spans()
    attributes = attributes_of(span)
    assert attributes["http.response.status_code"] == 400
    assert attributes["snowflake.query_id"] == "01b2-query"
    assert span.status.code != Status.STATUS_CODE_ERROR, "the client caused it"


def test_unreachable_collector_delays_neither_answers_nor_shutdown(sample: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with running_service(
            EXT_CLASSIFY_TRACES="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_TIMEOUT="3600",
        ) as url:
            for _ in range(3):
                answer = exchange(port_of(url), "POST", "/classify", sample, {"Content-Type": "image/png"})
                assert answer.status == 200
            began = time.monotonic()
        assert time.monotonic() - began < TIMEOUT_SECONDS, "shutdown does not wait for the collector"


def test_deferred_batch_has_its_steps_and_logs_no_warning(sample: bytes, tmp_path: Path) -> None:
    body = json.dumps({"data": [[n, text_of(sample)] for n in range(400)]}).encode()
    log = tmp_path / "log"
    headers = HEADERS | {BATCH_ID_HEADER: "later"}
    variables = {"EXT_CLASSIFY_TRACES": "true", "EXT_CLASSIFY_SYNC_DEADLINE_SECONDS": "0.05"}
    with collector() as there:
        with logging_service(log, OTEL_EXPORTER_OTLP_ENDPOINT=there.url, **variables) as (_, port):
            wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
            assert exchange(port, "POST", "/classify", body, headers).status == 202
            wait_until(lambda: exchange(port, "GET", "/classify", None, headers).status == 200)
        names = [span.name for span in there.spans()]
    assert {"POST /classify", "GET /classify", "decode", "predict"} == set(names)
    assert "ended span" not in log.read_text(encoding="utf-8")


def fail_to_start(before: str = "pass", **variables: str) -> "subprocess.CompletedProcess[str]":
    serve = f"from app.cli.main import main; sys.exit(main(['serve', '--port', '{free_port()}']))"
    program = f"import sys; {before}; {serve}"
    started = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"EXT_CLASSIFY_TRACES": "true"} | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert started.returncode == 1
    assert "Traceback" not in started.stderr
    return started


def test_missing_packages_are_named_at_start() -> None:
    started = fail_to_start("sys.modules['opentelemetry.sdk'] = None")
    assert "EXT_CLASSIFY_TRACES needs opentelemetry.sdk" in started.stderr
    assert "pip install 'ext-classify[traces]'" in started.stderr


def test_invalid_opentelemetry_variables_are_named_at_start() -> None:
    started = fail_to_start(OTEL_BSP_MAX_QUEUE_SIZE="-1")
    assert "Received: max_queue_size must be" in started.stderr
