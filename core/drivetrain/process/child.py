"""An engine process as its parent sees it. It begins without an event loop: it can load while the parent does."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from drivetrain.config import EngineConfig


class EngineProcess:
    """Starts `drivetrain.process.worker` and hands it its configuration; a context that removes its socket.

    The process ends when this end of its standard input closes, be it by the end of this process.

    Args:
        socket_path: where it listens; None makes a private folder for it.
    """

    def __init__(self, config: EngineConfig, *, socket_path: str | None = None) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if socket_path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="drivetrain-")
            socket_path = str(Path(self._folder.name) / "engine.sock")
        self.socket_path = socket_path
        Path(socket_path).unlink(missing_ok=True)  # of an engine that died
        command = [sys.executable, "-P", "-m", "drivetrain.process.worker", self.socket_path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        self._status: Future[int] = Future()
        threading.Thread(target=self._watch, name="engine status", daemon=True).start()
        body = msgspec.json.encode(config)
        assert self._process.stdin is not None, "standard input is a pipe"
        try:
            self._process.stdin.write(len(body).to_bytes(4, "little") + body)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already; its status says how

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let it go and remove its socket."""
        self.let_go()
        Path(self.socket_path).unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._status.result() if self._status.done() else None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def let_go(self) -> None:
        """Close its standard input: whatever it does, it ends."""
        assert self._process.stdin is not None, "standard input is a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await asyncio.shield(asyncio.wrap_future(self._status))

    def _watch(self) -> None:
        self._status.set_result(self._process.wait())
