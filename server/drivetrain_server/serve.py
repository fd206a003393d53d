"""Run the server: listen first, start the engine behind it, end in order."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from drivetrain.client import EngineClient
from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain.errors import ConfigError
from drivetrain.model_store import served_name
from drivetrain_server.app import Application, create_app
from drivetrain_server.lifecycle import FrontendFactory
from drivetrain_server.protocol import limited
from drivetrain_server.running import openable, recorded, server_on

logger = logging.getLogger("drivetrain.server")

EngineFactory = Callable[[EngineConfig], EngineClient]
KEEP_ALIVE_S = 75
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    engine_config: EngineConfig,
    config: ServerConfig,
    *,
    engine_factory: EngineFactory,
    frontend_factory: FrontendFactory,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until a signal, then drain and return.

    The first SIGTERM or SIGINT turns readiness red, refuses new work and gives running requests `drain_s`; the second
    ends them at once.

    Args:
        engine_factory: makes the engine, not started.
        frontend_factory: loads tokenizer and chat template; runs in a thread while the engine starts.
        announce: told one text when the server listens and one when it is ready.

    Raises:
        ConfigError: the address cannot be listened on.
        DrivetrainError: the engine could not start.
    """
    listener = bind(config)
    name = engine_config.served_model_name or served_name(engine_config.model)
    with listener, recorded(address_of(listener), name):
        asyncio.run(
            _serve(engine_factory(engine_config), frontend_factory, config, listener=listener, announce=announce)
        )


def bind(config: ServerConfig, *, shared: bool = False, port: int | None = None) -> socket.socket:
    """A socket on the server's address.

    Args:
        shared: further sockets may listen on the same address; the system spreads connections over them.
        port: instead of the configured one.

    Raises:
        ConfigError: it is taken, or not an address of this machine.
    """
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    port = config.port if port is None else port
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(_cannot_listen(host, port, error)) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    text = f"server.port: cannot listen on {host} port {port}: {error.strerror or error}; "
    if error.errno == errno.EADDRINUSE and (other := server_on(port)) is not None:
        text += f"your server of {other.model} (pid {other.pid}, `drivetrain ps`) has it: end that one, or "
    return f"{text}choose another port: --port N, or PORT=N of make serve"


def uvicorn_server(app: Application, config: ServerConfig) -> uvicorn.Server:
    """uvicorn with our limits. Signals, start and end of the engine are the caller's."""
    return _Server(
        uvicorn.Config(
            app,
            http=limited(max_head_bytes=config.max_header_bytes, max_unread_bytes=config.max_stream_bytes),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
        )
    )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone: `_serve` handles them."""
        yield


async def _serve(
    engine: EngineClient,
    frontend_factory: FrontendFactory,
    config: ServerConfig,
    *,
    listener: socket.socket,
    announce: Callable[[str], None],
) -> None:
    app = create_app(engine, frontend_factory, config)
    drain_s = config.drain_s
    server = uvicorn_server(app, config)
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    address = address_of(listener)
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    signalled = asyncio.create_task(signals.get())
    starting = asyncio.create_task(app.lifecycle.start())
    try:
        announce(listening_on(address))
        await asyncio.wait({starting, signalled, listening}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            keep_from_collector()
            announce(welcome(address, engine, keyed=bool(config.api_keys)))
            await asyncio.wait({signalled, listening}, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            announce(f"Ending: running requests have {drain_s:g} s; a second signal ends them at once.")
            await drain_or_end(app.lifecycle.drain, signals, drain_s)
    finally:
        starting.cancel()
        signalled.cancel()
        app.lifecycle.refuse_new()
        await asyncio.wait({starting})
        await engine.shutdown(drain_s=0.0)
        app.service.tracing.close()
        server.should_exit = True
        await listening
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def keep_from_collector() -> None:
    """What exists now lives as long as the process: the collector need not walk it while streams run."""
    gc.collect()
    gc.freeze()


async def drain_or_end(
    drain: Callable[[float], Coroutine[None, None, int]], again: asyncio.Queue[Any], limit_s: float
) -> int:
    """Drain for `limit_s` seconds, or end at once when something more comes out of the queue.

    Returns:
        Requests that were ended before they had finished.
    """
    draining = asyncio.create_task(drain(limit_s))
    hurried = asyncio.create_task(again.get())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining
        draining = asyncio.create_task(drain(0.0))
    hurried.cancel()
    ended = await draining
    if ended:
        logger.warning("%d requests were ended before they finished", ended)
    return ended


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_on(address: str) -> str:
    """What to say when the server listens and the engine is not ready yet."""
    return f"Listening on {address}; the engine is starting ({openable(address)}/ready shows how far it is)."


def welcome(address: str, engine: EngineClient, *, keyed: bool) -> str:
    """What to say when the server is ready, with an address that a client on this machine can open."""
    info, address = engine.info, openable(address)
    model = "" if info is None else info.model
    key = " -H 'Authorization: Bearer KEY'" if keyed else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'
    return (
        f"Ready: {model} at {address}/v1\n"
        f"Try:   curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )
