"""What came of a run of the checks, as data. Imports no torch, so that a command line can read it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from drivetrain_plugins.conformance.check import Level

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What came of one check.

    Attributes:
        reason: why it failed, or which capability was not claimed; empty when it passed.
        seconds: how long it took.
    """

    name: str
    level: Level
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceReport:
    """What a backend keeps of the contract.

    Attributes:
        backend: import string or class of the backend.
        device: as the vendor names it; empty if it could not be opened.
        seed: of the random inputs; the same seed gives the same inputs.
    """

    contract_version: int
    backend: str
    device: str
    seed: int
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return not self.failed and any(result.outcome == "passed" for result in self.results)

    def to_json(self) -> bytes:
        """The report as JSON, with the same field names."""
        return msgspec.json.encode(self)
