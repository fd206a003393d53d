"""What `drivetrain backends` shows, as data: every backend, which one would be used and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from drivetrain_plugins.contract import CONTRACT_VERSION
from drivetrain_plugins.errors import BackendError
from drivetrain_plugins.selection import AUTO, select_backend
from drivetrain_plugins.status import BackendState
from drivetrain_plugins.survey import Survey, survey


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendsReport:
    """Every backend and the outcome of the selection.

    Attributes:
        contract_version: version of the contract that this Drivetrain speaks.
        requested: what the configuration asks for; "auto" if nothing.
        selected: name of the backend that would be used; None if the selection fails.
        selection: a sentence on why that one, or the error that a start would end with.
        backends: every backend, see `Survey.states`.
        warnings: sentences about settings that had no effect.
    """

    contract_version: int
    requested: str
    selected: str | None
    selection: str
    backends: tuple[BackendState, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> bytes:
        """The report as JSON, with the same field names."""
        return msgspec.json.encode(self)


def backends_report(
    *, requested: str = AUTO, blocked: Collection[str] = (), configured: Collection[str] = ()
) -> BackendsReport:
    """Survey this machine and report on it; a selection that fails is part of the report and not raised.

    Args:
        requested: a backend's name, or "auto".
        blocked, configured: as `survey` takes them.
    """
    return report_on(survey(blocked=blocked, configured=configured), requested)


def report_on(surveyed: Survey, requested: str = AUTO) -> BackendsReport:
    """Report on a survey that was made before."""
    try:
        chosen = select_backend(surveyed, requested)
    except BackendError as error:
        selected, selection = None, str(error)
    else:
        selected, selection = chosen.name, _why(chosen, surveyed, requested)
    return BackendsReport(
        contract_version=CONTRACT_VERSION,
        requested=requested,
        selected=selected,
        selection=selection,
        backends=surveyed.states,
        warnings=surveyed.warnings,
    )


def _why(chosen: BackendState, surveyed: Survey, requested: str) -> str:
    if requested != AUTO:
        return f"{chosen.name!r} is used because it was asked for."
    if len(surveyed.ready) == 1:
        return f"{chosen.name!r} is used because it is the only one that is ready."
    names = ", ".join(state.name for state in surveyed.ready)
    return (
        f"{chosen.name!r} is used because its priority, {chosen.priority}, is the highest of the ready ones ({names})."
    )
