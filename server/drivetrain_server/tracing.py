"""OpenTelemetry traces of requests: one span each, with what it spent in the queue, in prefill and in decoding.

Child spans are made when a request has ended, from times that are kept anyway: while tokens flow, tracing costs
nothing. Without `otlp_endpoint` nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import time
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, Self

from drivetrain.errors import ConfigError
from drivetrain_server.answers.answer import PromptRun
from drivetrain_server.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

TRACEPARENT = b"traceparent"
SERVER_ERROR = 500


class Trace(Protocol):
    """The span of one request."""

    def end(self, route: str, status: int) -> None:
        """The request has been answered with this status (499: its client went away)."""
        ...


class Tracing:
    """Makes a trace for each request, or none where nobody gathers them."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        self._tracer: Tracer | None = None
        if processor is not None:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider

            from drivetrain.version import __version__

            resource = Resource.create({"service.name": "drivetrain", "service.version": __version__})
            self._provider = TracerProvider(resource=resource)
            self._provider.add_span_processor(processor)
            self._tracer = self._provider.get_tracer("drivetrain", __version__)

    @classmethod
    def to(cls, endpoint: str | None) -> Self:
        """Traces that are sent to a collector over OTLP and HTTP; None sends none.

        Raises:
            ConfigError: OpenTelemetry is not installed.
        """
        if endpoint is None:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"server.otlp_endpoint: traces need OpenTelemetry, and {error.name} is not installed; "
                "install drivetrain[otel] or leave the endpoint out"
            ) from error
        return cls(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))

    def begin(self, exchange: Exchange) -> Trace | None:
        """Begin the trace of a request, as part of the one that its `traceparent` header names; the answer carries
        the header too, so that a client finds its trace."""
        if self._tracer is None:
            return None
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name in (TRACEPARENT, b"tracestate")
            if (value := exchange.header(name)) is not None
        }
        began = _Clock()
        span = self._tracer.start_span(
            exchange.method,
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=began.ns(exchange.arrived),
        )
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(span)
        answered: dict[str, str] = {}
        propagator.inject(answered, context)
        exchange.extra_headers += [(name.encode(), value.encode()) for name, value in answered.items()]
        return _RequestTrace(self._tracer, span, context, began, exchange)

    def close(self) -> None:
        """Send what has been gathered."""
        if self._tracer is not None:
            self._provider.shutdown()


class _Clock:
    """Moments of `perf_counter` as nanoseconds of the calendar."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - int(perf_counter() * 1e9)

    def ns(self, moment_s: float) -> int:
        return self._offset_ns + int(moment_s * 1e9)


class _RequestTrace:
    def __init__(self, tracer: Tracer, span: Span, context: Context, clock: _Clock, exchange: Exchange) -> None:
        self._tracer = tracer
        self._span = span
        self._context = context
        self._clock = clock
        self._exchange = exchange

    def end(self, route: str, status: int) -> None:
        from opentelemetry.trace import StatusCode

        exchange, span = self._exchange, self._span
        now = perf_counter()
        span.update_name(f"{exchange.method} {route}")
        span.set_attributes(
            {
                "http.request.method": exchange.method,
                "http.route": route,
                "http.response.status_code": status,
                "drivetrain.request_id": exchange.request_id,
                "gen_ai.usage.input_tokens": sum(len(run.token_ids) for run in exchange.runs),
                "gen_ai.usage.output_tokens": sum(run.num_generated for run in exchange.runs),
            }
        )
        if status >= SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        for run in exchange.runs:
            self._tell_run(run, now)
        span.end(self._clock.ns(now))

    def _tell_run(self, run: PromptRun, now: float) -> None:
        """Queue, prefill and decode of one prompt. The queue is reckoned from the arrival of the request."""
        arrived, first = self._exchange.arrived, run.first_token_at
        if first is None:
            self._child("queue", arrived, now, {"drivetrain.first_token": False})
            return
        admitted = min(arrived + run.queued_s, first)
        self._child("queue", arrived, admitted, {})
        self._child(
            "prefill",
            admitted,
            first,
            {"gen_ai.usage.input_tokens": len(run.token_ids), "drivetrain.cached_tokens": run.num_cached_tokens},
        )
        self._child("decode", first, run.last_token_at or now, {"gen_ai.usage.output_tokens": run.num_generated})

    def _child(self, name: str, began: float, ended: float, attributes: dict[str, int]) -> None:
        span = self._tracer.start_span(
            name, context=self._context, start_time=self._clock.ns(began), attributes=attributes
        )
        span.end(self._clock.ns(ended))
