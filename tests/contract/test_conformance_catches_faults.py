"""The conformance suite fails backends that are wrong in one way each, and says what is wrong."""

from __future__ import annotations

import pytest

from contract.broken_backends import FAULTS, backend_with
from drivetrain_plugins.conformance.run import run_conformance


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name):
    report = run_conformance(backend_with(name), {"threads": 1}, only=FAULTS[name].caught_by)
    assert report.results, f"no check is named {FAULTS[name].caught_by}"
    assert len(report.failed) == len(report.results), (report.seed, report.results)
    assert not report.passed


def test_backend_that_raises_fails_every_check_and_the_report_says_so():
    class Unopenable:
        pass

    with pytest.raises(TypeError, match="expected a subclass of Backend"):
        run_conformance(Unopenable)  # type: ignore[arg-type]
