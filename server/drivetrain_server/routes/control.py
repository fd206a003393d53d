"""Routes that tell about the server: models, health, readiness, version, metrics, and the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from drivetrain.errors import DrivetrainError
from drivetrain.messages import Phase
from drivetrain.version import __version__
from drivetrain_server.errors import ANTHROPIC_HEADER, HttpError, error_body, http_error, internal_error
from drivetrain_server.lifecycle import State
from drivetrain_server.openapi import RAW_PATHS
from drivetrain_server.pages import add_pages
from drivetrain_server.routes.models import add_models
from drivetrain_server.service import Service
from drivetrain_server.telemetry import render

PHASE_PERIOD_S = 0.2
INDEX = """Drivetrain {version}

POST /v1/chat/completions   POST /v1/completions
POST /v1/responses          POST /v1/embeddings
POST /v1/messages           POST /v1/messages/count_tokens
POST /api/chat, /api/generate, /api/embed, /api/show   GET /api/tags, /api/ps, /api/version
GET  /v1/models             GET  /v1/models/{{id}}
POST /tokenize              POST /detokenize
GET  /health                GET  /ready
GET  /metrics               GET  /version
GET  /openapi.json

In a browser, / is a chat page; /playground and /reference are beside it.
"""


def control_app(service: Service) -> FastAPI:
    """The FastAPI application of the control routes."""
    app = FastAPI(
        title="Drivetrain",
        version=__version__,
        summary="One LLM serving engine for any accelerator",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    add_models(app, service)
    _add_state(app, service)

    @app.get("/version")
    async def version() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """Version of the server."""
        return {"version": __version__}

    add_pages(app, INDEX.format(version=__version__))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(request, _unrouted(request, error))

    async def wrong(request: Request, error: Exception) -> Response:
        if isinstance(error, HttpError):
            return error_response(request, error)
        assert isinstance(error, DrivetrainError)
        return error_response(request, http_error(error))

    async def broken(request: Request, error: Exception) -> Response:
        return error_response(request, internal_error(str(request.scope["request_id"])))

    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(HttpError, wrong)
    app.add_exception_handler(DrivetrainError, wrong)
    return app


def error_response(request: Request, error: HttpError) -> Response:
    """An error as Starlette sends it."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    body = error_body(request.url.path, error, anthropic=ANTHROPIC_HEADER in request.headers)
    return Response(body, error.status, headers, media_type="application/json")


def _add_state(app: FastAPI, service: Service) -> None:
    lifecycle = service.lifecycle

    @app.get("/health")
    async def health() -> Response:  # pyright: ignore[reportUnusedFunction]
        """200 while the server is alive, ready or not; 503 once its engine has ended."""
        failed = lifecycle.state == "failed"
        return _json({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    @app.get("/ready")
    async def ready(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """200 while new requests are taken, else 503, with the phases of the start. As events when the client accepts
        `text/event-stream`: one for each change, until the server is ready or has failed."""
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(_phase_events(service), media_type="text/event-stream")
        state = service.state
        headers = {} if state == "ready" else {"retry-after": "2" if state == "starting" else "10"}
        return _json(await _readiness(service), 200 if state == "ready" else 503, headers)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Gauges, counters and histograms in Prometheus's text format."""
        stats, readings = await service.stats(), await service.peers.readings()
        text = render(readings, ready=service.state == "ready", info=lifecycle.engine.info, stats=stats)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _readiness(service: Service) -> dict[str, object]:
    lifecycle = service.lifecycle
    readings = await service.peers.readings()
    reason = lifecycle.failure or lifecycle.engine.failure
    answer: dict[str, object] = {
        "status": service.state,
        "phases": [_phase(phase) for phase in lifecycle.engine.phases],
        "open_requests": sum(reading.open_requests for reading in readings),
    }
    return answer if reason is None else answer | {"reason": reason}


def _phase(phase: Phase) -> dict[str, object]:
    return {
        "name": phase.name,
        "done": phase.done,
        "total": phase.total,
        "unit": phase.unit,
        "elapsed_s": round(phase.elapsed_s, 3),
        "finished": phase.finished,
    }


async def _phase_events(service: Service) -> AsyncIterator[bytes]:
    ends: tuple[State, ...] = ("ready", "failed")
    last = None
    while True:
        state = service.state
        now = orjson.dumps(await _readiness(service))
        if now != last:
            yield b"event: %b\ndata: %b\n\n" % (state.encode(), now)
            last = now
        if state in ends:
            return
        await asyncio.sleep(PHASE_PERIOD_S)


def _json(value: object, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")


def _unrouted(request: Request, error: HTTPException) -> HttpError:
    path = request.url.path[:200]
    if error.status_code == 404:
        near = _nearest(path, (*RAW_PATHS, *(route.path for route in request.app.routes)))
        hint = "/ lists them" if near is None else f"did you mean {near}?"
        return HttpError(404, f"there is no route {path}; {hint}", code="unknown_route")
    if error.status_code == 405:
        return method_not_allowed(request.method, path, (error.headers or {}).get("allow", "GET"))
    return HttpError(error.status_code, str(error.detail))


def _nearest(path: str, known: Iterable[str]) -> str | None:
    """The route that is meant by a path with a part too few or too many in front, such as /chat/completions."""
    tidy = "/" + "/".join(filter(None, path.split("/")))
    meant = [route for route in known if min(len(route), len(tidy)) > 1 and _one_ends_the_other(route, tidy)]
    return min(meant, key=len, default=None)


def _one_ends_the_other(one: str, other: str) -> bool:
    return one.endswith(other) or other.endswith(one)


def method_not_allowed(method: str, path: str, allow: str) -> HttpError:
    """The answer to a route that exists and a method that it does not have."""
    return HttpError(
        405,
        f"{path} does not take {method}; use {allow}",
        code="method_not_allowed",
        headers=((b"allow", allow.encode()),),
    )
