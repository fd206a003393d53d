"""The asyncio side of an engine process: starts it, speaks with it, and starts it again when it dies."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque

from drivetrain.config import EngineConfig, format_size
from drivetrain.errors import DrivetrainError, EngineDead
from drivetrain.messages import EngineInfo
from drivetrain.process.child import EngineProcess
from drivetrain.process.frames import Refused, Shutdown, raised
from drivetrain.process.link import EngineLink

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 10.0


class ProcessEngine(EngineLink):
    """An `EngineClient` whose engine is another process.

    An engine that dies once it was ready is started again, at most `max_restarts` times within `restart_window_s`, and
    so is one that dies while it starts again. Requests that had brought tokens fail at once with `EngineDead`; those
    that had not are given to the next engine, once.

    Args:
        socket_path: where every one of its engines listens, so that other processes can connect too (`RemoteEngine`).
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        max_restarts: int = 3,
        restart_window_s: float = 600.0,
        socket_path: str | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._socket_path = socket_path
        self._max_restarts = max_restarts
        self._restart_window_s = restart_window_s
        self._restarts: deque[float] = deque()
        self._process: EngineProcess | None = None
        self._launched: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing = False
        self._given_up: DrivetrainError | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return None if self._process is None else self._process.pid

    def launch(self) -> None:
        """Start the process ahead of `start`, so that it loads while this one still imports what it needs."""
        self._launched = self._new_process()

    def abandon(self) -> None:
        """End a process that was launched, if `start` has not taken it over."""
        launched, self._launched = self._launched, None
        if launched is not None:
            launched.kill()
            launched.close()

    async def start(self) -> None:
        """Start the engine and return once it is ready.

        Raises:
            DrivetrainError: it could not start; the message is the engine's own.
        """
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        await self._ready.wait()
        if self._given_up is not None:
            raise self._given_up
        if self._info is not None:
            _tell(self._info)

    async def shutdown(self, *, drain_s: float) -> None:
        """Let running requests finish for `drain_s` seconds, then abort them and end the process."""
        self._closing = True
        process = self._process
        if process is not None and process.returncode is None:
            if self._info is not None:
                self._write(Shutdown(drain_s))
            else:
                process.kill()  # it still loads, and nothing is lost
            try:
                async with asyncio.timeout(drain_s + _EXIT_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                _log.warning("the engine did not end within %.0f s and is killed", drain_s + _EXIT_TIMEOUT_S)
                process.kill()
                await process.wait()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])

    async def _supervise(self) -> None:
        """Run the engine, again and again while that makes sense."""
        while True:
            try:
                error = await self._run_once()
            except OSError as reason:
                error = EngineDead(f"the engine process could not be run: {reason}")
            again = self._ready.is_set() and not self._closing and self._may_restart()
            if not again:
                self._given_up, self._failure = error, str(error)
            self._disconnected(error, keep_unstarted=again)
            if not again:
                self._ready.set()
                return
            _log.error("engine: %s; starting it again", error)

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - self._restart_window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            _log.error("engine: it died %d times; giving up", len(self._restarts) + 1)
            return False
        self._restarts.append(now)
        return True

    def _new_process(self) -> EngineProcess:
        return EngineProcess(self._config, socket_path=self._socket_path)

    async def _run_once(self) -> DrivetrainError:
        """Start the process, serve until it ends, and say why it ended."""
        launched, self._launched = self._launched, None
        with launched or self._new_process() as process:
            self._process = process
            deadline = time.monotonic() + _CONNECT_TIMEOUT_S
            last_words = await self._converse(
                process.socket_path, goes_on=lambda: process.returncode is None and time.monotonic() < deadline
            )
            process.let_go()
            try:
                async with asyncio.timeout(_EXIT_TIMEOUT_S):
                    status = await process.wait()
            except TimeoutError:
                process.kill()
                status = await process.wait()
        if last_words is not None:
            return (
                raised(Refused("", last_words.kind, last_words.message))
                if self._info is None
                else EngineDead(f"the engine ended: {last_words.kind}: {last_words.message}")
            )
        return EngineDead(f"the engine process {_describe_status(status)}")


def _tell(info: EngineInfo) -> None:
    for warning in info.warnings:
        _log.warning("%s", warning)
    plan = "; ".join(f"{what} {format_size(size)}" for what, size in info.memory)
    _log.info(
        "KV cache: %d tokens in pages of %d; memory plan: %s",
        *((info.num_pages - 1) * info.page_size, info.page_size, plan or "the backend gives none"),
    )


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
