"""An API process of several: `python -m drivetrain_server.fleet.member LISTENER CONTROL`, two inherited sockets.

It ends when it is told to, or when its supervisor is gone.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import cast

import msgspec

from drivetrain.errors import DrivetrainError
from drivetrain.frontend import load_frontend
from drivetrain.process.remote import RemoteEngine
from drivetrain_server.app import Application, create_app
from drivetrain_server.fleet.channel import Channel
from drivetrain_server.fleet.frames import (
    AllReady,
    AskEverything,
    Begin,
    Count,
    Counted,
    Drain,
    Drained,
    End,
    Enter,
    Entered,
    Everything,
    Failed,
    Forget,
    GiveUp,
    Keep,
    Leave,
    Recall,
    Recalled,
    ToMember,
    Up,
)
from drivetrain_server.keys import Tenant, too_many_open
from drivetrain_server.logs import set_up_logs
from drivetrain_server.serve import drain_or_end, keep_from_collector, uvicorn_server
from drivetrain_server.telemetry import Reading

COUNT_PERIOD_S = 1.0


class Member:
    """One API process; a `Peers` for its own application."""

    def __init__(self, channel: Channel[ToMember], begin: Begin) -> None:
        self.ready = False
        self._channel = channel
        self._begin = begin
        self._engine = RemoteEngine(begin.engine_socket)
        self._app: Application = create_app(
            self._engine, lambda engine: load_frontend(begin.engine, engine), begin.server, peers=self
        )
        self._entering: deque[asyncio.Future[int | None]] = deque()
        self._recalling: deque[asyncio.Future[bytes | None]] = deque()
        self._asking: list[asyncio.Future[list[Reading]]] = []
        self._drains: asyncio.Queue[object] = asyncio.Queue()
        self._ended = asyncio.Event()

    async def enter(self, tenant: Tenant) -> None:
        limit = self._begin.server.max_requests_per_key
        if limit is None:
            return
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._entering.append(answer)
        self._channel.send(Enter(tenant.name))
        try:
            refusal = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: self._leave_late(tenant, done))
            raise
        if refusal is not None:
            raise too_many_open(refusal, limit)

    def leave(self, tenant: Tenant) -> None:
        if self._begin.server.max_requests_per_key is not None:
            self._channel.send(Leave(tenant.name))

    async def keep(self, tenant: Tenant, response_id: str, raw: bytes) -> None:
        await self._recalled(Keep(tenant.name, response_id, raw))

    async def recall(self, tenant: Tenant, response_id: str) -> bytes | None:
        return await self._recalled(Recall(tenant.name, response_id))

    async def forget(self, tenant: Tenant, response_id: str) -> bool:
        return await self._recalled(Forget(tenant.name, response_id)) is not None

    async def _recalled(self, message: Keep | Recall | Forget) -> bytes | None:
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._recalling.append(answer)
        self._channel.send(message)
        return await asyncio.shield(answer)  # the answer comes even if nobody waits for it any more

    async def readings(self) -> Sequence[Reading]:
        answer: asyncio.Future[list[Reading]] = asyncio.get_running_loop().create_future()
        self._asking.append(answer)
        self._channel.send(AskEverything())
        return await answer

    async def run(self, listener: socket.socket) -> None:
        """Serve until told to end."""
        following = asyncio.create_task(self._follow())
        starting = asyncio.create_task(self._start())
        if self._begin.late:
            # Connections wait at the socket, which the supervisor keeps open, instead of meeting a server that starts.
            await asyncio.wait({starting, following}, return_when=asyncio.FIRST_COMPLETED)
        server = uvicorn_server(self._app, self._begin.server)
        listening = asyncio.create_task(server.serve(sockets=[listener]))
        counting = asyncio.create_task(self._count_on())
        draining = asyncio.create_task(self._drain())
        await asyncio.wait({following, listening}, return_when=asyncio.FIRST_COMPLETED)
        for task in (starting, counting, draining):
            task.cancel()
        self._app.lifecycle.refuse_new()
        await asyncio.wait({starting, counting, draining})
        await self._engine.shutdown(drain_s=0.0)
        self._app.service.tracing.close()
        server.should_exit = True
        await listening
        self._channel.send(self._counted())
        await self._channel.close()

    async def _start(self) -> None:
        try:
            await self._app.lifecycle.start()
        except DrivetrainError as error:
            self._channel.send(Failed(type(error).__name__, str(error)))
        else:
            keep_from_collector()
            self._channel.send(Up())

    async def _count_on(self) -> None:
        while True:
            await asyncio.sleep(COUNT_PERIOD_S)
            self._channel.send(self._counted())

    async def _drain(self) -> None:
        drain = cast("Drain", await self._drains.get())
        self._channel.send(Drained(await drain_or_end(self._app.lifecycle.drain, self._drains, drain.limit_s)))

    async def _follow(self) -> None:
        """Do what the supervisor says, until it says to end or is gone."""
        while (message := await self._channel.receive()) is not None:
            match message:
                case Entered(refusal):
                    self._entering.popleft().set_result(refusal)
                case Recalled(raw):
                    self._recalling.popleft().set_result(raw)
                case Everything(readings):
                    for answer in self._asking:
                        if not answer.done():
                            answer.set_result(readings)
                    self._asking.clear()
                case Count():
                    self._channel.send(self._counted())
                case AllReady():
                    self.ready = True
                case GiveUp(reason):
                    self._engine.give_up(reason)
                case Drain():
                    self._app.lifecycle.refuse_new()
                    self._drains.put_nowait(message)
                case End():
                    return
                case Begin():
                    raise AssertionError("a member begins once")

    def _counted(self) -> Counted:
        lifecycle = self._app.lifecycle
        return Counted(self._app.service.telemetry.reading(open_requests=lifecycle.num_open))

    def _leave_late(self, tenant: Tenant, done: asyncio.Future[int | None]) -> None:
        """Count out a request that was let in after its client had gone."""
        if not done.cancelled() and done.result() is None:
            self.leave(tenant)


async def _run(listener: socket.socket, control: socket.socket) -> None:
    channel = await Channel[ToMember].open(control, msgspec.msgpack.Decoder(ToMember))
    begin = await channel.receive()
    if not isinstance(begin, Begin):
        return  # the supervisor is gone
    set_up_logs(begin.server.log_format)
    await Member(channel, begin).run(listener)


def main() -> None:
    """Serve over the two sockets that the command line names by number."""
    # The supervisor decides: a terminal's Ctrl-C, or the SIGTERM of a service manager, reaches all.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    listener, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    asyncio.run(_run(listener, control))


if __name__ == "__main__":
    main()
