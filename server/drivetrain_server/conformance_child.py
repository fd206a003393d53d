"""The conformance suite on one backend, in a process of its own, where a driver may hang or crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from drivetrain.errors import BackendError
from drivetrain_plugins.conformance.report import CheckResult, ConformanceReport

if TYPE_CHECKING:
    from drivetrain_plugins.spec import BackendSpec


def check_backend(
    spec: BackendSpec, options: Mapping[str, object], on_result: Callable[[CheckResult], None]
) -> ConformanceReport:
    """Run every check of the suite on a backend that is ready.

    Args:
        on_result: told of each result as it comes.

    Raises:
        BackendError: the process ended before its report, with its last words.
    """
    command = [sys.executable, "-m", "drivetrain_plugins.conformance", spec.backend, json.dumps(dict(options))]
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
    return report
