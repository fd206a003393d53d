"""Run the checks and report: what `drivetrain backends --check NAME` shows, and what the pytest suite is made of."""

from __future__ import annotations

import contextlib
import platform
import secrets
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from drivetrain_plugins.conformance.catalogue import checks
from drivetrain_plugins.conformance.check import LEVELS, Check, Level, NotClaimed, Violation
from drivetrain_plugins.conformance.levels import level_results
from drivetrain_plugins.conformance.report import CheckResult, ConformanceReport, Outcome
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.contract import CONTRACT_VERSION
from drivetrain_plugins.contract.backend import Backend
from drivetrain_plugins.import_string import import_object


def run_conformance(
    backend: str | type[Backend],
    options: Mapping[str, Any] | None = None,
    *,
    levels: Collection[Level] = LEVELS,
    only: str = "",
    seed: int | None = 0,
    world: int | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> ConformanceReport:
    """Check a backend on the device of this machine.

    Args:
        backend: "module:class", or the class itself.
        options: its `[backend_options.NAME]` table.
        only: run the checks whose name contains this.
        seed: of the random inputs; a fresh one if None.
        world: ranks of the parallel checks; None takes two where the capabilities have room for them.
        on_result: told of each result as it comes.
    """
    subject = make_subject(backend, options, seed=seed, world=world)
    started, clock = datetime.now(UTC), time.perf_counter()
    results: list[CheckResult] = []
    for check in checks(levels):
        if only in check.name:
            results.append(result_of(check, subject))
            if on_result is not None:
                on_result(results[-1])
    capabilities = None
    with contextlib.suppress(Exception):  # whatever a backend raises here, every check has told already
        capabilities = subject.capabilities
        subject.close()
    return ConformanceReport(
        contract_version=CONTRACT_VERSION,
        backend=backend if isinstance(backend, str) else f"{backend.__module__}:{backend.__qualname__}",
        device=capabilities.device_name if capabilities else "",
        seed=subject.seed,
        results=tuple(results),
        levels=level_results(results, capabilities, levels),
        versions={"python": platform.python_version(), "torch": str(torch.__version__), "system": platform.platform()},
        started=started.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00") + " UTC",
        seconds=round(time.perf_counter() - clock, 2),
    )


def make_subject(
    backend: str | type[Backend],
    options: Mapping[str, Any] | None,
    *,
    seed: int | None = 0,
    world: int | None = None,
) -> Subject:
    """The backend as checks take it.

    Raises:
        TypeError: the import string leads to something else than a subclass of Backend.
    """
    made = import_object(backend) if isinstance(backend, str) else backend
    if not isinstance(made, type) or not issubclass(made, Backend):
        raise TypeError(f"backend: {backend!r} is {made!r}, expected a subclass of Backend")
    target = backend if isinstance(backend, str) else ""
    seed = secrets.randbits(32) if seed is None else seed
    return Subject(made, options or {}, seed=seed, world=world, target=target)


def run_check(check: Check, subject: Subject) -> None:
    """Run one check.

    Raises:
        NotClaimed: it needs a capability that is not claimed.
        Violation: the backend breaks the contract.
        Exception: whatever the backend raised.
    """
    subject.reseed(check.name)
    with torch.inference_mode():
        check.run(subject)


def result_of(check: Check, subject: Subject) -> CheckResult:
    """Run one check and say what came of it; a backend's own exceptions are failures and not raised."""
    started = time.perf_counter()
    outcome: Outcome = "passed"
    reason = ""
    try:
        run_check(check, subject)
    except NotClaimed as missing:
        outcome, reason = "skipped", str(missing)
    except Violation as violation:
        outcome, reason = "failed", str(violation)
    except Exception as error:  # whatever a backend raises is its failure, not ours
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome, reason = "failed", f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    seconds = round(time.perf_counter() - started, 4)
    return CheckResult(name=check.name, level=check.level, outcome=outcome, reason=reason, seconds=seconds)
