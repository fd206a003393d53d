"""Choose the backend: the one asked for, else the ready one of highest priority. Never another one silently.

"Silently" includes the machine whose accelerator cannot serve today because of a driver or a library: where its backend
says so (`idle_hardware`), nothing slower is chosen in its place until the user asks for that by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from drivetrain_plugins.discovery import blocked_by_environment, discover
from drivetrain_plugins.errors import BackendNotReady, BackendTie, HardwareIdle, NoBackendReady, UnknownBackend
from drivetrain_plugins.probing import probe_backends
from drivetrain_plugins.spec import BackendSpec
from drivetrain_plugins.status import BackendState, Status
from drivetrain_plugins.suggestion import did_you_mean
from drivetrain_plugins.survey import Survey, survey_of

AUTO = "auto"
NOTHING_INSTALLED = "No backend is installed. Install drivetrain again: its CPU backend comes with it."


def choose_backend(
    requested: str = AUTO,
    *,
    blocked: Collection[str] = (),
    configured: Collection[str] = (),
    on_found: Callable[[Sequence[BackendSpec]], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> BackendState:
    """Discover, probe and select. Probes only the one asked for, so that no other vendor's slow probe delays a start.

    Args:
        requested: a backend's name, or "auto".
        blocked: names from the configuration; those of `DRIVETRAIN_BLOCKED_BACKENDS` are added.
        configured: names of backends that the configuration has options for.
        on_found: told, before any probe begins, which backends may be chosen.
        on_warning: told of each setting that has no effect.

    Raises:
        UnknownBackend, BackendNotReady, NoBackendReady, HardwareIdle, BackendTie: as `select_backend`.
    """
    discovery = discover(blocked=frozenset(blocked) | blocked_by_environment(), configured=configured)
    if on_warning is not None:
        for warning in discovery.warnings:
            on_warning(warning)
    asked_for = [backend for backend in discovery.found if backend.spec.name == requested]
    if on_found is not None:
        on_found([backend.spec for backend in asked_for or discovery.found])
    for state in probe_backends(asked_for):
        if state.status is Status.READY:
            return state
    return select_backend(survey_of(discovery), requested)


def select_backend(surveyed: Survey, requested: str = AUTO) -> BackendState:
    """Give the state of the backend to use; its `spec` is never None.

    Args:
        surveyed: where every backend stands.
        requested: a backend's name, or "auto".

    Raises:
        UnknownBackend: nothing has the name asked for; says which names there are, and the nearest.
        BackendNotReady: the one asked for cannot serve here; says why and what is ready.
        NoBackendReady: none was asked for and none is ready; gives the reason of each.
        HardwareIdle: none was asked for, and a backend of higher priority than the best ready one finds its hardware
            here and cannot serve on it.
        BackendTie: none was asked for and several ready ones share the highest priority.
    """
    return _highest(surveyed) if requested == AUTO else _requested(surveyed, requested)


def _requested(surveyed: Survey, name: str) -> BackendState:
    candidates = [state for state in surveyed.states if state.name == name]
    for state in candidates:
        if state.status is Status.READY:
            return state
    if not candidates:
        names = {state.name for state in surveyed.states}
        also_called = {state.name: state.spec.also_called for state in surveyed.states if state.spec is not None}
        suggestion = did_you_mean(name, names, also_called) or "."
        raise UnknownBackend(
            f"There is no backend {name!r}{suggestion}"
            f" Known here: {', '.join(sorted(names)) or 'none'}.{_ready(surveyed)}"
        )
    reasons = " ".join(f"{_sentence(state)}{_next_step(state)}" for state in candidates)
    raise BackendNotReady(f"The backend {name!r} was asked for and cannot serve here. {reasons}{_ready(surveyed)}")


def _highest(surveyed: Survey) -> BackendState:
    if not surveyed.ready:
        lines = "".join(f"\n  {state.summary()}.{_next_step(state)}" for state in surveyed.states)
        raise NoBackendReady(f"No backend can serve here.{lines}" if lines else NOTHING_INSTALLED)
    highest = max(state.priority or 0 for state in surveyed.ready)
    idle = [state for state in surveyed.states if _stands_idle(state, surveyed, highest)]
    if idle:
        raise HardwareIdle(_idle(idle, surveyed.ready, highest))
    first, *others = [state for state in surveyed.ready if (state.priority or 0) == highest]
    if others:
        names = " and ".join(f"{state.name!r} ({state.origin})" for state in (first, *others))
        raise BackendTie(
            f"{names} are ready and share the highest priority, {highest}. Choose one: "
            f'backend = "{first.name}" in drivetrain.toml, or --backend {first.name}.'
        )
    return first


def _stands_idle(state: BackendState, surveyed: Survey, highest: int) -> bool:
    """Whether choosing the best ready backend would pass this one's hardware over."""
    if not state.idle_hardware or not state.installed or state.status is Status.BLOCKED:
        return False
    if any(state.name == ready.name for ready in surveyed.ready):
        return False  # a refused namesake of one that is ready
    return state.priority is None or state.priority > highest


def _idle(idle: list[BackendState], ready: Sequence[BackendState], highest: int) -> str:
    best = next(state.name for state in ready if (state.priority or 0) == highest)
    reasons = " ".join(
        f"The hardware of the backend {state.name!r} is in this machine{_named(state)}, but it cannot serve on it. "
        f"{_sentence(state)}{_next_step(state)}"
        for state in idle
    )
    return (
        f"{reasons} Nothing slower is used in its place unless you ask for it: --backend {best}, or "
        f'backend = "{best}" in drivetrain.toml.'
    )


def _named(state: BackendState) -> str:
    names = ", ".join(dict.fromkeys(device.name for device in state.devices))
    return f" ({names})" if names else ""


def _sentence(state: BackendState) -> str:
    source = f" [{state.origin}]" if state.origin else ""
    return f"It is {state.status}{source}: {state.reason}."


def _next_step(state: BackendState) -> str:
    return f" Next: {state.next_step}." if state.next_step else ""


def _ready(surveyed: Survey) -> str:
    names = ", ".join(state.name for state in surveyed.ready)
    return f" Ready: {names}." if names else " No backend is ready."
