"""What `drivetrain doctor` looks at: each check says what it found and, where something is wrong, what to do."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from drivetrain.config import Config, ServerConfig, format_size
from drivetrain.errors import DrivetrainError
from drivetrain_server.running import server_on

Status = Literal["ok", "warning", "problem"]
SMALL_MEMORY = 2 * 1024**3
SMALL_DISK = 2 * 1024**3
OLDEST_PYTHON = (3, 11)
DEPENDENCIES = ("tokenizers", "safetensors", "gguf", "msgspec", "fastapi", "uvicorn", "typer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        found: what is there, in words.
        next_step: what the user can do about a warning or problem; empty when ok.
    """

    name: str
    status: Status
    found: str
    next_step: str = ""


def check_python() -> Finding:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding(name="python", status="problem", found=found, next_step="use Python 3.11 or newer")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return Finding(
            name="python",
            status="warning",
            found=f"{found}, free-threaded",
            next_step="use the ordinary build of Python",
        )
    return Finding(name="python", status="ok", found=found)


def check_torch() -> Finding:
    """The installed build of torch, without importing it."""
    try:
        build = version("torch")
    except PackageNotFoundError:
        return Finding(name="torch", status="problem", found="not installed", next_step="pip install torch")
    kind = build.partition("+")[2] or "the index's default build"
    return Finding(name="torch", status="ok", found=f"{build} ({kind})")


def check_packages() -> Finding:
    """The other packages that serving needs."""
    missing: list[str] = []
    found: list[str] = []
    for name in DEPENDENCIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        step = f"pip install {' '.join(missing)}"
        return Finding(name="packages", status="problem", found=f"missing: {', '.join(missing)}", next_step=step)
    return Finding(name="packages", status="ok", found=", ".join(found))


def check_cpu() -> Finding:
    """Processor and cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{platform.machine()}, {usable} of {os.cpu_count()} cores usable"
    if usable < 2:
        step = "give the process a second core: the server and the engine run beside each other"
        return Finding(name="cpu", status="warning", found=found, next_step=step)
    return Finding(name="cpu", status="ok", found=found)


def check_memory() -> Finding:
    """Host memory."""
    try:
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        free, total = os.sysconf("SC_AVPHYS_PAGES") * page_bytes, os.sysconf("SC_PHYS_PAGES") * page_bytes
    except (OSError, ValueError):
        return Finding(name="memory", status="ok", found="this system does not say")
    available = _available_memory() or free
    found = f"{format_size(available)} available of {format_size(total)}"
    if available < SMALL_MEMORY:
        step = "end other programs, or choose a smaller model or limits.kv_memory"
        return Finding(name="memory", status="warning", found=found, next_step=step)
    return Finding(name="memory", status="ok", found=found)


def check_disk(directory: Path) -> Finding:
    """Room and permission where models and caches are kept."""
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        step = f"make {existing} writable, or set DRIVETRAIN_HOME to a folder that is"
        return Finding(name="disk", status="problem", found=f"{existing} is not writable", next_step=step)
    free = shutil.disk_usage(existing).free
    found = f"{format_size(free)} free for {directory}"
    if free < SMALL_DISK:
        step = "free some space, or set DRIVETRAIN_HOME to a larger disk"
        return Finding(name="disk", status="warning", found=found, next_step=step)
    return Finding(name="disk", status="ok", found=found)


def check_config(load: Callable[[], Config]) -> tuple[Finding, Config | None]:
    """Whether file and environment are valid, and what they set."""
    try:
        config = load()
    except DrivetrainError as error:
        return Finding(name="config", status="problem", found=str(error), next_step="correct what is named"), None
    found = f"{config.path} is valid" if config.path else "no drivetrain.toml here; defaults"
    variables = sorted(origin for origin in config.origins.values() if origin.startswith("DRIVETRAIN_"))
    if variables:
        found += f"; from the environment: {', '.join(variables)}"
    return Finding(name="config", status="ok", found=found), config


def check_port(server: ServerConfig) -> Finding:
    """Whether the server could listen."""
    where = f"{server.host}:{server.port}"
    try:
        family = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.host, server.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and (own := server_on(server.port)) is not None:
            found = f"{where} is where your server of {own.model} listens (pid {own.pid})"
            return Finding(name="port", status="ok", found=found)
        step = "end the program that has it, or choose another: `drivetrain serve --port N`, or server.port in the file"
        return Finding(
            name="port", status="problem", found=f"cannot listen on {where}: {error.strerror}", next_step=step
        )
    return Finding(name="port", status="ok", found=f"{where} is free")


def check_keys(server: ServerConfig) -> Finding:
    """Who may use the server, and whether others can read the keys."""
    if not server.api_keys:
        return Finding(name="keys", status="ok", found=f"no API key; only this machine reaches {server.host}")
    found = f"{len(server.api_keys)} API key{'s' if len(server.api_keys) > 1 else ''}"
    if server.api_keys_file and Path(server.api_keys_file).expanduser().stat().st_mode & 0o077:
        step = f"chmod 600 {server.api_keys_file}"
        return Finding(name="keys", status="warning", found=f"{found}; other users can read the file", next_step=step)
    return Finding(name="keys", status="ok", found=found)


def check_host() -> Iterator[Finding]:
    """Everything about the machine and the installation."""
    yield check_python()
    yield check_torch()
    yield check_packages()
    yield check_cpu()
    yield check_memory()


def _available_memory() -> int | None:
    """What Linux could free without swapping: file caches count as available."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
