"""The conformance suite on one backend, in a process of its own, where a driver may hang or crash."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from drivetrain.errors import BackendError
from drivetrain.version import __version__
from drivetrain_plugins.conformance.check import LEVELS, Level
from drivetrain_plugins.conformance.report import CheckResult, ConformanceReport

if TYPE_CHECKING:
    from drivetrain_plugins.status import BackendState


def check_backend(
    state: BackendState,
    options: Mapping[str, object],
    on_result: Callable[[CheckResult], None],
    *,
    levels: Sequence[Level] = LEVELS,
) -> ConformanceReport:
    """Run the checks of these levels on a backend that is ready.

    Args:
        state: what was found of the backend; the report names its package, and what its probe says of drivers.
        on_result: told of each result as it comes.

    Raises:
        BackendError: the process ended before its report, with its last words.
    """
    spec = state.spec
    assert spec is not None, "a ready backend has a spec"
    command = [sys.executable, "-P", "-m", "drivetrain_plugins.conformance", spec.backend, json.dumps(dict(options))]
    command.append(json.dumps(list(levels)))
    environment = dict(spec.environment) | os.environ
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    report: ConformanceReport | None = None
    said = "it said nothing"
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith('{"name":'):
                on_result(msgspec.json.decode(line, type=CheckResult))
            elif line.startswith('{"contract_version":'):
                report = msgspec.json.decode(line, type=ConformanceReport)
            elif line.strip():
                said = line.strip()
    if report is None:
        raise BackendError(f"checking {spec.name!r} ended with status {child.returncode} before a report: {said}")
    versions = {"drivetrain": __version__} | dict(report.versions)
    versions |= {name: found for name, found in state.details.items() if isinstance(found, str)}
    if state.origin is not None and state.origin.distribution != "drivetrain":
        versions = {state.origin.distribution: state.origin.version} | versions
    return dataclasses.replace(report, name=spec.name, versions=versions)
