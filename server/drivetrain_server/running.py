"""The servers of this user on this machine: each leaves a small record while it runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from drivetrain.model_store import models_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """One server. `started` is the wall clock's time in seconds."""

    pid: int
    url: str
    model: str
    started: float


def records_folder() -> Path:
    """Where the records are: `run` under `$DRIVETRAIN_HOME`."""
    return models_folder().parent / "run"


def openable(url: str) -> str:
    """The address that a client on this machine opens where a server listens on `url`: "any" is no such address."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


@contextmanager
def recorded(url: str, model: str) -> Generator[None, None, None]:
    """While inside, `drivetrain ps` lists this process as a server. A home that cannot be written is no reason to
    end: the server is then not listed."""
    server = RunningServer(pid=os.getpid(), url=openable(url), model=model, started=time.time())
    path = records_folder() / f"{server.pid}.json"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        running_servers()  # Clears away what servers that were killed have left.
        path.write_text(json.dumps(asdict(server)), encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def running_servers() -> list[RunningServer]:
    """The servers whose process lives, oldest first. Records of processes that were killed are removed."""
    found: list[RunningServer] = []
    folder = records_folder()
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        server = _read(path)
        if server is None or not _lives(server):
            with suppress(OSError):
                path.unlink()
        else:
            found.append(server)
    return sorted(found, key=lambda server: server.started)


def server_on(port: int) -> RunningServer | None:
    """The server of this user on this machine that listens on `port`, whatever the address."""
    return next((server for server in running_servers() if urlsplit(server.url).port == port), None)


def _read(path: Path) -> RunningServer | None:
    try:
        match json.loads(path.read_text(encoding="utf-8")):
            case {"pid": int(pid), "url": str(url), "model": str(model), "started": int() | float() as started}:
                return RunningServer(pid=pid, url=url, model=model, started=started)
            case _:
                return None
    except (OSError, ValueError):
        return None


def _lives(server: RunningServer) -> bool:
    try:
        os.kill(server.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
