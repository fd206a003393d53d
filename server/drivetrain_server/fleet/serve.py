"""Run a server of several API processes: listen first, start the engine and them behind it, end in order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain.model_store import served_name
from drivetrain.process.client import ProcessEngine
from drivetrain_server.fleet.supervisor import Fleet
from drivetrain_server.running import recorded
from drivetrain_server.serve import SIGNALS, address_of, bind, drain_or_end, listening_on, welcome

END_TIMEOUT_S = 10.0


def serve_fleet(
    engine: ProcessEngine,
    engine_socket: str,
    engine_config: EngineConfig,
    config: ServerConfig,
    *,
    announce: Callable[[str], None],
) -> None:
    """Serve until a signal, then drain and return; signals as in `drivetrain_server.serve`.

    Raises:
        ConfigError: the address cannot be listened on.
        DrivetrainError: the engine could not start, or API processes die one after the other.
    """
    with ExitStack() as sockets:
        listeners = [sockets.enter_context(listener) for listener in _listeners(config)]
        fleet = Fleet(engine, engine_socket, engine_config, config, listeners)
        name = engine_config.served_model_name or served_name(engine_config.model)
        sockets.enter_context(recorded(address_of(listeners[0]), name))
        asyncio.run(_serve(engine, fleet, config, listeners[0], announce))


def _listeners(config: ServerConfig) -> list[socket.socket]:
    """One a process, so that the system spreads connections over them and none is lost with a process that dies."""
    with bind(config) as probe:  # not shared: an address that another server has is refused
        port = probe.getsockname()[1]
    return [bind(config, shared=True, port=port) for _ in range(config.api_processes)]


async def _serve(
    engine: ProcessEngine, fleet: Fleet, config: ServerConfig, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    address = address_of(listener)
    running = asyncio.create_task(fleet.run())
    starting = asyncio.create_task(_start(engine, fleet))
    signalled = asyncio.create_task(signals.get())
    try:
        announce(listening_on(address))
        await asyncio.wait({running, starting, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            announce(welcome(address, engine, keyed=bool(config.api_keys)))
            await asyncio.wait({running, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            announce(f"Ending: running requests have {config.drain_s:g} s; a second signal ends them at once.")
            await drain_or_end(fleet.drain, signals, config.drain_s)
    finally:
        starting.cancel()
        signalled.cancel()
        fleet.end()
        _, late = await asyncio.wait({starting, running}, timeout=END_TIMEOUT_S)
        if late:
            fleet.kill()
            await asyncio.wait(late)
        await engine.shutdown(drain_s=0.0)
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    running.result()


async def _start(engine: ProcessEngine, fleet: Fleet) -> None:
    await engine.start()
    await fleet.all_up.wait()
    if fleet.error is not None:
        raise fleet.error
