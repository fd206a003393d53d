"""How a frontend talks to an engine, in the same process or in another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeAlias, runtime_checkable

from drivetrain.errors import DrivetrainError
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Phase, Update

TokenLine: TypeAlias = Callable[[int, float], None]
"""Takes one token of one completion and the moment (`perf_counter`) at which it came."""


class Sink(Protocol):
    """Where the answer to one request goes. Its methods are called in the event loop, as soon as something arrives;
    they neither wait nor raise."""

    def line(self, index: int) -> TokenLine:
        """What takes the tokens of completion `index` that come alone: one in a step, and nothing else to tell. The
        first and the last update of a completion never come that way."""
        ...

    def take(self, updates: list[Update]) -> None:
        """Take everything else."""
        ...

    def fail(self, error: DrivetrainError) -> None:
        """The request has ended with an error; nothing follows."""
        ...


@runtime_checkable
class EngineClient(Protocol):
    """An engine as asyncio code sees it."""

    @property
    def info(self) -> EngineInfo | None:
        """None until the engine is ready."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the engine ended for good; None while it lives or is started again."""
        ...

    @property
    def phases(self) -> list[Phase]:
        """Start-up phases so far, in order."""
        ...

    async def start(self) -> None:
        """Start the engine and return once it is ready.

        Raises:
            DrivetrainError: it could not start; the message is the engine's own.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[list[Update], None]:
        """Stream the updates of a request; all that is queued comes at once.

        The stream ends when all `params.n` completions have finished. Closing the iterator early (or cancelling the
        task that reads it) aborts the request and frees its pages.

        Raises:
            Overloaded: the waiting queue is full.
            RequestError: the engine refused the request.
            EngineDead: the engine ended; raised at once in every open stream.
        """
        ...

    def attach(self, request: GenerateRequest, sink: Sink) -> None:
        """Submit a request whose answer is pushed to `sink`: what `generate` does, without a task switch a token.

        Whoever attached it calls `detach` in the end.

        Raises:
            EngineDead: the engine is not there. A refusal comes to `sink.fail`.
        """
        ...

    def detach(self, request_id: str) -> None:
        """Send nothing more to the sink of a request, and abort it if it has not ended."""
        ...

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End one completion of a running request (or, without an index, all of them) and free its pages.

        For what a frontend finds in the text, such as a stop string in one completion of several. The stream of the
        request goes on with its other completions and ends when those have finished; an ended completion brings at
        most one more update, with finish_reason "abort". Unknown or finished requests are left alone.
        """
        ...

    async def stats(self) -> EngineStats:
        """Gauges and counters of this moment (at most one step old)."""
        ...

    async def reset_prefix_cache(self) -> None:
        """Forget every cached page that no request uses."""
        ...

    async def sleep(self) -> None:
        """Forget every prefix and give the memory of the KV pages back; requests are refused until `wake`.

        Raises:
            EngineError: requests are under way.
            Unsupported: the device's number of pages is fixed.
            EngineDead: the engine ended.
        """
        ...

    async def wake(self) -> None:
        """Take the memory of the KV pages again.

        Raises:
            OutOfMemory: somebody else has taken it; the engine goes on sleeping.
            EngineDead: the engine ended.
        """
        ...

    async def shutdown(self, *, drain_s: float) -> None:
        """Refuse new work, let running requests finish for `drain_s` seconds, then abort them and end."""
        ...
