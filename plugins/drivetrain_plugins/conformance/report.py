"""What came of a run of the checks, as data. Imports no torch, so that a command line can read it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from drivetrain_plugins.conformance.check import Level
from drivetrain_plugins.conformance.levels import LevelResult

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

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def skipped(self) -> bool:
        return self.outcome == "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceReport:
    """What a backend keeps of the contract.

    Attributes:
        backend: import string or class of the backend.
        device: as the vendor names it; empty if it could not be opened.
        seed: of the random inputs; the same seed gives the same inputs.
        levels: every level, with what claims it and what came of it.
        name: of the backend, if it is installed under one.
        versions: of what took part, by name.
        started: date and time, UTC.
        seconds: how long all checks took.
    """

    contract_version: int
    backend: str
    device: str
    seed: int
    results: tuple[CheckResult, ...]
    levels: tuple[LevelResult, ...] = ()
    name: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    started: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return not self.failed and any(result.outcome == "passed" for result in self.results)

    @property
    def verdict(self) -> str:
        """What to say of it in a clause."""
        if not self.passed:
            broken = [level.level for level in self.levels if level.verdict == "broken"]
            return f"breaks the contract ({', '.join(broken)})" if broken else "nothing was proved"
        kept = [level.level for level in self.levels if level.verdict == "kept"]
        return f"keeps the contract ({', '.join(kept)})"

    def to_json(self) -> bytes:
        """The report as JSON, with the same field names."""
        return msgspec.json.encode(self)
