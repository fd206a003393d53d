"""The CPU backend, and every other backend that is ready here, keeps the contract."""

from __future__ import annotations

import pytest

from drivetrain_plugins.conformance.suite import BackendConformance
from drivetrain_plugins.survey import survey


class TestCpu(BackendConformance):
    backend = "drivetrain_cpu.backend:CpuBackend"
    options = {"threads": 1}


def test_other_ready_backends_conform():
    others = [state.spec for state in survey().ready if state.spec is not None and state.spec.name != "cpu"]
    if not others:
        pytest.skip("no backend but cpu is ready here")
    from drivetrain_plugins.conformance.run import run_conformance

    for spec in others:
        report = run_conformance(spec.backend)
        assert report.passed, (spec.name, report.seed, report.failed)
