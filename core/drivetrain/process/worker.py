"""The engine process: `python -m drivetrain.process.worker SOCKET`, its configuration as JSON on standard input.

One thread runs the engine; one thread a frontend reads its frames. The process ends when it is told to, when the engine
cannot go on, or when standard input closes, which is how it learns that its supervisor is gone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from drivetrain.config import EngineConfig
from drivetrain.engine import Engine
from drivetrain.errors import Draining, DrivetrainError, RequestError
from drivetrain.messages import Phase, Update
from drivetrain.process.frames import (
    Abort,
    AskStats,
    Died,
    Ready,
    ResetPrefixCache,
    Shutdown,
    Sleep,
    Slept,
    Stats,
    Submit,
    ToEngine,
    Updates,
    refusal,
)
from drivetrain.process.frontends import SEND_TIMEOUT_S, Frontend, Frontends, Gone

_FAREWELL_S = 5.0


@dataclass(slots=True, eq=False)
class _Owner:
    """Whose a request is. `line` is the number of its first completion; `silent` are those that brought nothing yet."""

    frontend: Frontend
    line: int | None
    silent: set[int]


@dataclass(slots=True, eq=False)
class _Parcel:
    """What is new for one frontend."""

    updates: list[Update] = field(default_factory=list[Update])
    lines: list[int] = field(default_factory=list[int])
    token_ids: list[int] = field(default_factory=list[int])


class _Orphaned(msgspec.Struct, frozen=True):
    """Put into the inbox when standard input closes."""


class _Compiled(msgspec.Struct, frozen=True):
    """Put into the inbox when the grammar of a request is compiled, or refused."""

    submit: Submit


_Message: TypeAlias = ToEngine | Gone | _Orphaned | _Compiled
_Inbox = queue.SimpleQueue[tuple[Frontend | None, _Message]]


class Worker:
    """Connects one engine with its frontends.

    Args:
        listener: the socket that they connect to.

    Attributes:
        frontends: those that are connected.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._inbox: _Inbox = queue.SimpleQueue()
        self.frontends = Frontends(listener, lambda frontend, message: self._inbox.put((frontend, message)))
        self._owners: dict[str, _Owner] = {}
        self._drain_until: float | None = None
        self._compiling: dict[str, Frontend] = {}
        self._compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")

    def listen(self) -> None:
        """Accept frontends and watch standard input, in the background."""
        threading.Thread(target=self.frontends.accept, name="accept", daemon=True).start()
        threading.Thread(target=self._watch_parent, name="parent", daemon=True).start()

    def tell_progress(self, phase: Phase) -> None:
        """Send a start-up phase to every frontend, and to those that come later."""
        self.frontends.announce_progress(phase)

    def run(self, engine: Engine) -> None:
        """Serve until told to stop."""
        self.frontends.announce(Ready(engine.info))
        while True:
            try:
                while True:
                    draining = self._drain_until is not None
                    idle = not engine.has_work and (not draining or bool(self._compiling))
                    # As soon as a message comes, idle work stops; none takes long.
                    while idle and not draining and self._inbox.empty() and engine.prepare_more():
                        pass
                    left_s = None if self._drain_until is None else max(0.0, self._drain_until - time.monotonic())
                    frontend, message = self._inbox.get(block=idle, timeout=left_s if idle else None)
                    if not self._take(engine, frontend, message):
                        return
            except queue.Empty:
                pass
            done = not engine.has_work and not self._compiling
            if self._drain_until is not None and (done or time.monotonic() > self._drain_until):
                self._abort_all(engine)
                return
            self._deliver(engine, engine.step())

    def die(self, error: BaseException) -> None:
        """Tell every frontend why the engine ends."""
        self.frontends.announce(Died(type(error).__name__, str(error) or repr(error)))
        # One that is about to connect is told too: it would else know nothing but the exit status.
        self.frontends.wait_for_one(_FAREWELL_S)

    def _take(self, engine: Engine, frontend: Frontend | None, message: _Message) -> bool:
        """Act on one message; False ends the loop."""
        match message:
            case Submit():
                assert frontend is not None
                name = message.request.request_id
                if name in self._owners or name in self._compiling:
                    error = RequestError(f"request_id: {name!r} is already running", param="request_id")
                    self.frontends.send(frontend, refusal(name, error))
                elif not self._compile_aside(engine, frontend, message):
                    self._submit(engine, frontend, message)
            case _Compiled(submit):
                assert frontend is not None
                if self._compiling.get(submit.request.request_id) is frontend:
                    del self._compiling[submit.request.request_id]
                    self._submit(engine, frontend, submit, accepted=True)
            case Abort(request_id, index):
                owner = self._owners.get(request_id)
                if owner is not None and owner.frontend is frontend:
                    engine.abort(request_id, index)
                elif index is None and self._compiling.get(request_id) is frontend:
                    del self._compiling[request_id]
            case AskStats():
                assert frontend is not None
                self.frontends.send(frontend, Stats(engine.stats()))
            case ResetPrefixCache():
                engine.reset_prefix_cache()
            case Sleep(wake):
                assert frontend is not None
                try:
                    engine.wake() if wake else engine.sleep()
                except DrivetrainError as error:
                    self.frontends.send(frontend, Slept(type(error).__name__, str(error)))
                else:
                    self.frontends.send(frontend, Slept())
            case Shutdown(drain_s):
                self._drain_until = time.monotonic() + drain_s
            case Gone():
                assert frontend is not None
                self._forget(engine, frontend)
            case _Orphaned():
                self._abort_all(engine)
                return False
        return True

    def _deliver(self, engine: Engine, updates: list[Update]) -> None:
        """One frame a frontend and step."""
        parcels: dict[Frontend, _Parcel] = {}
        for update in updates:
            owner = self._owners.get(update.request_id)
            if owner is None:
                continue
            parcel = parcels.get(owner.frontend)
            if parcel is None:
                parcel = parcels[owner.frontend] = _Parcel()
            if owner.line is not None and update.index not in owner.silent and _is_one_token(update):
                parcel.lines.append(owner.line + update.index)
                parcel.token_ids.append(update.token_ids[0])
            else:
                owner.silent.discard(update.index)
                parcel.updates.append(update)
        # Only now: several completions of a request may end in the same step.
        for update in updates:
            if update.finish_reason is not None and not engine.is_live(update.request_id):
                owner = self._owners.pop(update.request_id, None)
                if owner is not None:
                    owner.frontend.requests.discard(update.request_id)
        for frontend, parcel in parcels.items():
            self.frontends.send(frontend, Updates(parcel.updates, parcel.lines, parcel.token_ids))

    def _abort_all(self, engine: Engine) -> None:
        for request_id in list(self._owners):
            engine.abort(request_id, error="the server is shutting down")
        while engine.has_work:
            self._deliver(engine, engine.step())

    def _submit(self, engine: Engine, frontend: Frontend, submit: Submit, *, accepted: bool = False) -> None:
        request = submit.request
        try:
            if self._drain_until is not None and not accepted:
                raise Draining("the server is shutting down and takes no new work")
            engine.submit(request)
        except DrivetrainError as error:
            self.frontends.send(frontend, refusal(request.request_id, error))
        else:
            self._owners[request.request_id] = _Owner(frontend, submit.line, set(range(request.params.n)))
            frontend.requests.add(request.request_id)

    def _compile_aside(self, engine: Engine, frontend: Frontend, submit: Submit) -> bool:
        """Compile a grammar that the engine does not know in a thread, so that others' steps go on meanwhile."""
        grammar = submit.request.params.grammar
        grammars = None if grammar is None else engine.grammars
        if grammar is None or grammars is None or grammars.has(grammar):
            return False

        def compile_it() -> None:
            # What stands against it is raised again when the engine is asked.
            try:
                with contextlib.suppress(DrivetrainError):
                    grammars.compile(grammar)
            finally:
                self._inbox.put((frontend, _Compiled(submit)))

        self._compiling[submit.request.request_id] = frontend
        self._compiler.submit(compile_it)
        return True

    def _forget(self, engine: Engine, frontend: Frontend) -> None:
        self._compiling = {
            request_id: waiting for request_id, waiting in self._compiling.items() if waiting is not frontend
        }
        for request_id in frontend.requests:
            self._owners.pop(request_id, None)
            engine.abort(request_id)
        self.frontends.drop(frontend)

    def _watch_parent(self) -> None:
        while os.read(0, 4096):
            pass
        self._inbox.put((None, _Orphaned()))
        # While the engine loads nobody reads the inbox, and nobody is left to load for.
        time.sleep(SEND_TIMEOUT_S)
        os._exit(1)


def _is_one_token(update: Update) -> bool:
    """Whether it tells nothing but one token."""
    return (
        len(update.token_ids) == 1
        and update.finish_reason is None
        and update.logprobs is None
        and update.prompt_logprobs is None
    )


def main(path: str) -> int:
    """Load the model, tell how that goes, and serve. Returns the exit status."""
    from drivetrain.assembly import assemble

    # The supervisor decides: a terminal's Ctrl-C, or the SIGTERM of a service manager, reaches both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    size = int.from_bytes(_read_exactly(4), "little")
    config = msgspec.json.decode(_read_exactly(size), type=EngineConfig)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    worker = Worker(listener)
    worker.listen()
    try:
        engine = assemble(config, progress=worker.tell_progress)
        # What exists now lives as long as the process: the collector need not walk it in the middle of a step.
        gc.collect()
        gc.freeze()
        worker.run(engine)
        engine.close()
    except DrivetrainError as error:
        worker.die(error)
        return 1
    except Exception as error:
        worker.die(error)
        raise
    return 0


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise SystemExit("engine: standard input ended before the configuration")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
