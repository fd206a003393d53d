"""The real server on a free port, in a thread, over a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from drivetrain.client import EngineClient
from drivetrain.config.server import ServerConfig
from drivetrain.errors import DrivetrainError
from drivetrain.frontend import Frontend
from drivetrain.generation_defaults import GenerationDefaults
from drivetrain_server.app import create_app
from drivetrain_server.serve import bind, uvicorn_server
from fakes.engine import FakeEngine
from fakes.text import byte_tokenizer, line_template
from fakes.waiting import LIMIT_S, until

T = TypeVar("T")


def frontend_factory(engine: EngineClient) -> Frontend:
    return Frontend(
        engine,
        byte_tokenizer(),
        chat_template=line_template(),
        defaults=GenerationDefaults(temperature=0.6, top_k=40),
    )


class RunningServer:
    """`with RunningServer(engine) as server:`; `server.url` is where it listens."""

    def __init__(
        self,
        engine: FakeEngine,
        *,
        wait: bool = True,
        stall_s: float = 30.0,
        frontend: Callable[[EngineClient], Frontend] = frontend_factory,
        **config: Any,
    ) -> None:
        self.engine = engine
        self.config = ServerConfig(port=0, **config)
        self._stall_s = stall_s
        self._frontend = frontend
        self._wait = wait
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="server")

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self._up.is_set() or not self._thread.is_alive())
        assert self._up.is_set(), "the server did not come up"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.open_gate()
        if self.engine.start_gate is not None:
            self.engine.start_gate.set()
        self._server.should_exit = True
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the server did not end"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        listener = bind(self.config)
        self.port = listener.getsockname()[1]
        self.app = create_app(self.engine, self._frontend, self.config, stall_s=self._stall_s)
        self._server = uvicorn_server(self.app, self.config)
        starting = asyncio.create_task(self._start())
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.001)
        if self._wait:
            await starting
        self._up.set()
        await serving
        await starting

    async def _start(self) -> None:
        with contextlib.suppress(DrivetrainError):
            await self.app.lifecycle.start()
