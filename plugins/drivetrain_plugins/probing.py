"""Ask backends whether they can serve here. Each probe runs in a child process, because it touches drivers.

A probe that hangs, crashes, raises or answers nonsense makes its own backend `broken` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from drivetrain_plugins.discovery import FoundBackend
from drivetrain_plugins.isolation import ChildCall, ChildOutcome, call_in_children
from drivetrain_plugins.spec import ProbeResult
from drivetrain_plugins.status import BackendState, Status

PROBE_LIMIT_S = 20.0


class _ProbeAnswer(msgspec.Struct, forbid_unknown_fields=True):
    result: ProbeResult | None = None
    failure: str = ""


def probe_backends(
    backends: Sequence[FoundBackend], *, time_limit_s: float = PROBE_LIMIT_S
) -> tuple[BackendState, ...]:
    """Probe all at once and say of each, in the same order, where it stands. Never raises because of a probe.

    Args:
        backends: what `discover` found.
        time_limit_s: how long one probe may take; it is killed after that.
    """
    calls = [
        ChildCall(task="drivetrain_plugins.probe_task:run_probe", argument=backend.spec.probe) for backend in backends
    ]
    outcomes = call_in_children(calls, time_limit_s=time_limit_s)
    return tuple(_state(backend, outcome) for backend, outcome in zip(backends, outcomes, strict=True))


def _state(backend: FoundBackend, outcome: ChildOutcome) -> BackendState:
    if outcome.answer is None:
        return _broken(backend, f"its probe {outcome.failure}", outcome)
    try:
        answer = msgspec.json.decode(outcome.answer, type=_ProbeAnswer)
    except (msgspec.DecodeError, ValueError) as error:
        return _broken(backend, f"its probe gave a malformed answer: {error}", outcome)
    result = answer.result
    if result is None:
        return _broken(backend, answer.failure or "its probe gave an empty answer", outcome)
    return BackendState(
        name=backend.spec.name,
        status=Status.READY if result.ready else Status.UNAVAILABLE,
        reason=result.reason,
        next_step=result.next_step,
        origin=backend.origin,
        spec=backend.spec,
        devices=result.devices,
        details=result.details,
        output=() if result.ready else outcome.output,
        seconds=outcome.seconds,
        idle_hardware=result.idle_hardware,
    )


def _broken(backend: FoundBackend, reason: str, outcome: ChildOutcome) -> BackendState:
    return BackendState(
        name=backend.spec.name,
        status=Status.BROKEN,
        reason=reason,
        next_step=f"report it to the makers of {backend.origin}, or choose another backend",
        origin=backend.origin,
        spec=backend.spec,
        output=outcome.output,
        seconds=outcome.seconds,
    )
