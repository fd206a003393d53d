"""Traces: one span a request with its parts, in the trace that the client named; and logs for programs."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from drivetrain_server.logs import JsonFormatter
from drivetrain_server.tracing import Tracing
from fakes.engine import FakeEngine
from fakes.server import RunningServer

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 5}


def ns(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None and span.end_time is not None
    return span.start_time, span.end_time


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_queue_prefill_and_decode(stream: bool) -> None:
    exporter = InMemorySpanExporter()
    engine = FakeEngine()
    engine.pause_s = 0.01
    engine.queued_s = 0.0005
    with RunningServer(engine) as server:
        server.app.service.tracing = Tracing(SimpleSpanProcessor(exporter))
        answer = httpx.post(
            server.url + "/v1/completions",
            json=BODY | {"stream": stream},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
    *parts, request = exporter.get_finished_spans()
    assert request.name == "POST /v1/completions"
    assert request.parent is not None and f"{request.parent.span_id:016x}" == PARENT
    assert {f"{span.context.trace_id:032x}" for span in (*parts, request) if span.context} == {TRACE}
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.input_tokens"] == 4
    assert request.attributes["gen_ai.usage.output_tokens"] == 5
    assert request.attributes["drivetrain.request_id"] == answer.headers["x-request-id"]
    assert request.context is not None
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert [part.name for part in parts] == ["queue", "prefill", "decode"]
    assert all(part.parent is not None and part.parent.span_id == request.context.span_id for part in parts)
    queue, prefill, decode = (ns(part) for part in parts)
    assert ns(request)[0] == queue[0] and queue[1] == prefill[0] and prefill[1] == decode[0]
    assert decode[1] <= ns(request)[1]
    assert queue[1] - queue[0] == pytest.approx(5e5, abs=2e3)
    assert decode[1] - decode[0] >= 3 * 10e6  # four more tokens, 10 ms apart


def test_a_refused_request_is_a_span_without_parts_and_a_gone_engine_an_error() -> None:
    exporter = InMemorySpanExporter()
    engine = FakeEngine()
    with RunningServer(engine) as server:
        server.app.service.tracing = Tracing(SimpleSpanProcessor(exporter))
        httpx.post(server.url + "/v1/completions", json=BODY | {"max_tokens": "five"})
        engine.die("killed")
        httpx.post(server.url + "/v1/completions", json=BODY)
    refused, dead = exporter.get_finished_spans()
    assert refused.attributes is not None and refused.attributes["http.response.status_code"] == 400
    assert refused.status.is_ok or refused.status.is_unset
    assert dead.attributes is not None and dead.attributes["http.response.status_code"] == 503
    assert not dead.status.is_ok and not dead.status.is_unset


class Collector(BaseHTTPRequestHandler):
    """Takes what an OTLP exporter posts."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.path, ExportTraceServiceRequest.FromString(body)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_spans_reach_a_collector_over_otlp() -> None:
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    collector.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        with RunningServer(FakeEngine(), otlp_endpoint=endpoint) as server:
            httpx.post(server.url + "/v1/completions", json=BODY)
        # Only now: the client has its answer a moment before the request's span ends.
        server.app.service.tracing.close()
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    ((path, sent),) = collector.seen  # type: ignore[attr-defined]
    assert path == "/v1/traces"
    (resource,) = sent.resource_spans
    assert any(
        each.key == "service.name" and each.value.string_value == "drivetrain" for each in resource.resource.attributes
    )
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["queue", "prefill", "decode", "POST /v1/completions"]


def test_without_an_endpoint_nothing_is_traced_and_no_header_added() -> None:
    with RunningServer(FakeEngine()) as server:
        answer = httpx.post(
            server.url + "/v1/completions", json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
    assert "traceparent" not in answer.headers


def test_a_json_log_line_has_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "drivetrain.server"), RunningServer(FakeEngine()) as server:
        httpx.post(server.url + "/v1/completions", json=BODY, headers={"x-request-id": "mine-7"})
    (record,) = [record for record in caplog.records if vars(record).get("request_id") == "mine-7"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["status"], line["route"]) == (
        "info",
        "drivetrain.server",
        200,
        "/v1/completions",
    )
    assert line["duration_s"] > 0
    assert line["message"].startswith("request mine-7: POST /v1/completions: 200 in")


def test_a_json_log_line_of_an_exception_is_one_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "broke: %s", (error,), (ValueError, error, None))
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "first\nsecond" in json.loads(text)["exception"]
