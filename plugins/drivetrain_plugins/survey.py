"""The whole picture of backends on this machine: installed and probed, rejected, and known but not installed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from drivetrain_plugins.discovery import LISTING_LIMIT_S, Discovery, blocked_by_environment, discover
from drivetrain_plugins.known import hardware_is_here, not_installed
from drivetrain_plugins.probing import PROBE_LIMIT_S, probe_backends
from drivetrain_plugins.status import BackendState, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Every backend and where it stands.

    Attributes:
        states: installed backends by falling priority, then rejected ones, then those that are not installed.
        warnings: sentences about settings that had no effect.
    """

    states: tuple[BackendState, ...]
    warnings: tuple[str, ...] = ()

    @property
    def ready(self) -> tuple[BackendState, ...]:
        return tuple(state for state in self.states if state.status is Status.READY)


def survey(
    *,
    blocked: Collection[str] = (),
    configured: Collection[str] = (),
    listing_limit_s: float = LISTING_LIMIT_S,
    probe_limit_s: float = PROBE_LIMIT_S,
) -> Survey:
    """Discover and probe everything. Never raises because of a plugin, and imports none into this process.

    Args:
        blocked: names from the configuration; those of `DRIVETRAIN_BLOCKED_BACKENDS` are added.
        configured: names of backends that the configuration has options for.
        listing_limit_s: how long one entry point may take to import and list.
        probe_limit_s: how long one probe may take.
    """
    discovery = discover(
        blocked=frozenset(blocked) | blocked_by_environment(), configured=configured, time_limit_s=listing_limit_s
    )
    return survey_of(discovery, probe_limit_s=probe_limit_s)


def survey_of(discovery: Discovery, *, probe_limit_s: float = PROBE_LIMIT_S) -> Survey:
    """Probe everything that was discovered."""
    probed = probe_backends(discovery.found, time_limit_s=probe_limit_s)
    ordered = sorted(probed, key=lambda state: (-(state.priority or 0), state.name))
    states = tuple(_with_hardware(state) for state in (*ordered, *discovery.rejected))
    installed = {state.name for state in states}
    return Survey(states=(*states, *not_installed(installed)), warnings=discovery.warnings)


def _with_hardware(state: BackendState) -> BackendState:
    """Look for the hardware of a backend that could not say itself whether it is here."""
    if state.status in (Status.BROKEN, Status.INCOMPATIBLE) and hardware_is_here(state.name):
        return replace(state, idle_hardware=True)
    return state
