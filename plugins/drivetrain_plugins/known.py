"""Backends that could be installed: data, so that the report can explain an absence without knowing a vendor."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drivetrain_plugins.status import BackendState, Status

TABLE = "known_backends.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBackend:
    """A backend that this Drivetrain knows of.

    Attributes:
        name: its name.
        hardware: what it drives, for people.
        install: what to do to get it.
        signs: paths of which one exists where a driver for the hardware is loaded.
    """

    name: str
    hardware: str
    install: str
    signs: tuple[str, ...]


@functools.cache
def known_backends() -> tuple[KnownBackend, ...]:
    """The table `known_backends.toml`, by name."""
    text = importlib.resources.files("drivetrain_plugins").joinpath(TABLE).read_text("utf-8")
    rows = [{"name": name, **row} for name, row in tomllib.loads(text).items()]
    return msgspec.convert(sorted(rows, key=lambda row: row["name"]), tuple[KnownBackend, ...])


def not_installed(installed: Collection[str], *, root: Path = Path("/")) -> tuple[BackendState, ...]:
    """Say of every known backend that is not among the `installed` names whether its hardware can be seen.

    Args:
        installed: names that some package already accounts for, sound or not.
        root: folder that the signs are looked up under.
    """
    return tuple(_absence(backend, root) for backend in known_backends() if backend.name not in installed)


def hardware_is_here(name: str, *, root: Path = Path("/")) -> bool:
    """Whether a driver for the hardware of the backend `name` is loaded; False for a backend that is not known."""
    return any(_sign(backend, root) is not None for backend in known_backends() if backend.name == name)


def _sign(backend: KnownBackend, root: Path) -> str | None:
    return next((sign for sign in backend.signs if (root / sign.lstrip("/")).exists()), None)


def _absence(backend: KnownBackend, root: Path) -> BackendState:
    sign = _sign(backend, root)
    if sign is None:
        reason = f"not installed; no {backend.hardware} found (looked for {', '.join(backend.signs)})"
        next_step = ""
    else:
        article = "an" if backend.hardware[0] in "AEIO" else "a"
        reason = f"not installed, although the driver of {article} {backend.hardware} is loaded ({sign})"
        next_step = backend.install
    return BackendState(name=backend.name, status=Status.UNAVAILABLE, reason=reason, next_step=next_step)
