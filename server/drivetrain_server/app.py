"""The ASGI application: keys first, then the raw routes, then FastAPI for the rest."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import cast

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from drivetrain.client import EngineClient
from drivetrain.config.server import ServerConfig
from drivetrain.errors import DrivetrainError
from drivetrain_server.cors import Cors
from drivetrain_server.errors import HttpError, http_error, internal_error
from drivetrain_server.exchange import ClientGone, Exchange, SlowReader
from drivetrain_server.hosts import Hosts
from drivetrain_server.kept_responses import KeptResponses
from drivetrain_server.lifecycle import FrontendFactory, Lifecycle
from drivetrain_server.openapi import raw_paths
from drivetrain_server.pages import is_page
from drivetrain_server.peers import Peers
from drivetrain_server.pulse import STALL_S
from drivetrain_server.routes.chat import ChatRoute
from drivetrain_server.routes.completions import CompletionsRoute
from drivetrain_server.routes.control import control_app, method_not_allowed
from drivetrain_server.routes.embeddings import EmbeddingsRoute
from drivetrain_server.routes.kept_responses import add_kept_responses
from drivetrain_server.routes.messages import CountTokensRoute, MessagesRoute
from drivetrain_server.routes.ollama import (
    OllamaChatRoute,
    OllamaEmbeddingsRoute,
    OllamaEmbedRoute,
    OllamaGenerateRoute,
)
from drivetrain_server.routes.ollama_models import OllamaShowRoute, add_ollama_models
from drivetrain_server.routes.responses import ResponsesRoute
from drivetrain_server.routes.tokens import DetokenizeRoute, TokenizeRoute
from drivetrain_server.service import Service

logger = logging.getLogger("drivetrain.server")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
CLIENT_CLOSED_REQUEST = 499
FAIL_TIMEOUT_S = 5.0
OPEN_PATHS = ("/health", "/ready")
"""What is answered without a key, beside the static pages; `/metrics` too where the operator says so."""

Endpoint = Callable[[Exchange], Awaitable[None]]


class Application:
    """The whole server as one ASGI callable.

    Attributes:
        service: its parts.
        control: the FastAPI application of the control routes; `openapi()` documents all of them.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.control = control_app(service)
        kept = KeptResponses(service.peers)
        add_ollama_models(self.control, service)
        add_kept_responses(self.control, kept)
        self._raw: dict[str, Endpoint] = {
            "/v1/chat/completions": ChatRoute(service),
            "/v1/completions": CompletionsRoute(service),
            "/v1/embeddings": EmbeddingsRoute(service),
            "/v1/responses": ResponsesRoute(service, kept),
            "/v1/messages": MessagesRoute(service),
            "/v1/messages/count_tokens": CountTokensRoute(service),
            "/api/chat": OllamaChatRoute(service),
            "/api/generate": OllamaGenerateRoute(service),
            "/api/embed": OllamaEmbedRoute(service),
            "/api/embeddings": OllamaEmbeddingsRoute(service),
            "/api/show": OllamaShowRoute(service),
            "/tokenize": TokenizeRoute(service),
            "/detokenize": DetokenizeRoute(service),
        }
        self._hosts = Hosts(service.config)
        self._cors = Cors(service.config.cors_origins)
        self._starting: asyncio.Task[None] | None = None
        _document(self.control)

    @property
    def lifecycle(self) -> Lifecycle:
        """Start, state and end."""
        return self.service.lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        exchange = Exchange(scope, receive, send, request_id=secrets.token_hex(12))
        offered = exchange.header(b"x-request-id")
        if offered is not None and REQUEST_ID.fullmatch(offered):
            exchange = Exchange(scope, receive, send, request_id=offered.decode())
        status = CLIENT_CLOSED_REQUEST
        trace = self.service.tracing.begin(exchange)
        try:
            await self._answer(exchange)
            status = exchange.status or status
        except ClientGone:
            self.service.telemetry.disconnect()
        finally:
            route = exchange.path if exchange.path in self._raw else _template(exchange.scope)
            elapsed_s = perf_counter() - exchange.arrived
            self.service.telemetry.request(route, exchange.method, status, elapsed_s)
            if trace is not None:
                trace.end(route, status)
            self._log(exchange, route, status, elapsed_s)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            self._hosts.check(exchange)
            if await self._cors.answered(exchange):
                return
            self._admit(exchange)
            endpoint = self._raw.get(exchange.path)
            if endpoint is None:
                if exchange.method == "HEAD":
                    exchange.scope = {**exchange.scope, "method": "GET"}
                await self.control(exchange.scope, exchange.receive, _recorded(exchange))
            elif exchange.method != "POST":
                raise method_not_allowed(exchange.method, exchange.path, "POST")
            else:
                await endpoint(exchange)
        except HttpError as error:
            await _fail(exchange, error)
        except DrivetrainError as error:
            await _fail(exchange, http_error(error))
        except SlowReader as reason:
            logger.warning(
                "request %s: stream ended: %s",
                exchange.request_id,
                reason,
                extra={"request_id": exchange.request_id},
            )
            self.service.telemetry.slow_reader()
            await exchange.abort()
        except ClientGone:
            raise
        except Exception:
            logger.exception(
                "request %s: %s %s failed",
                exchange.request_id,
                exchange.method,
                exchange.path,
                extra={"request_id": exchange.request_id},
            )
            await _fail(exchange, internal_error(exchange.request_id))

    def _log(self, exchange: Exchange, route: str, status: int, elapsed_s: float) -> None:
        # Probes and scrapes come every few seconds for as long as the server lives; why it is not ready is logged once.
        probed = exchange.path in OPEN_PATHS or (exchange.path == "/metrics" and status < 400)
        logger.log(
            logging.DEBUG if probed else logging.INFO,
            "request %s: %s %s: %d in %.3f s",
            exchange.request_id,
            exchange.method,
            exchange.path,
            status,
            elapsed_s,
            extra={
                "request_id": exchange.request_id,
                "method": exchange.method,
                "path": exchange.path,
                "route": route,
                "status": status,
                "duration_s": round(elapsed_s, 6),
                "key": exchange.tenant.name,
            },
        )

    def _admit(self, exchange: Exchange) -> None:
        path = exchange.path
        if path in OPEN_PATHS or is_page(path) or (path == "/metrics" and self.service.config.metrics_public):
            return
        exchange.tenant = self.service.keys.tenant(exchange.header(b"authorization"), exchange.header(b"x-api-key"))
        exchange.scope["drivetrain.tenant"] = exchange.tenant

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start the engine in the background where another server hosts this application."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._starting = asyncio.create_task(self._start())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.lifecycle.drain(self.service.config.drain_s)
                await self.lifecycle.engine.shutdown(drain_s=0.0)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start(self) -> None:
        try:
            await self.lifecycle.start()
        except DrivetrainError as error:
            logger.error("the engine could not start: %s", error)


def create_app(
    engine: EngineClient,
    frontend_factory: FrontendFactory,
    config: ServerConfig,
    *,
    stall_s: float = STALL_S,
    peers: Peers | None = None,
) -> Application:
    """The server as an ASGI application.

    Args:
        engine: started by the application's lifespan, or by `Application.lifecycle.start`.
        frontend_factory: loads tokenizer and chat template of the engine's model; runs in a thread.
        stall_s: how long a client may leave its stream unread before it is ended.
        peers: the other API processes of this server; None where there are none.
    """
    lifecycle = Lifecycle(engine, frontend_factory)
    return Application(Service(lifecycle, config, stall_s=stall_s, peers=peers))


def _recorded(exchange: Exchange) -> Send:
    """`send` for FastAPI's routes, with our headers, and the status kept; without a body where HEAD asked for none."""

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await exchange.start(message["status"], message.get("headers", []))
        else:
            body = b"" if exchange.method == "HEAD" else message.get("body", b"")
            await exchange.write(body, more=message.get("more_body", False))

    return send


async def _fail(exchange: Exchange, error: HttpError) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(FAIL_TIMEOUT_S):
            await exchange.fail(error)
            return
    await exchange.abort()


def _template(scope: Scope) -> str:
    """The route as it was declared, so that metrics have few labels."""
    return cast("str", getattr(scope.get("route"), "path", "other"))


def _document(app: FastAPI) -> None:
    described = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            document = described()
            paths, schemas = raw_paths()
            document["paths"] |= paths
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
