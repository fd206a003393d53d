"""Which levels a backend claims, by its capabilities alone, and what came of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from drivetrain_plugins.conformance.check import LEVELS, Level

if TYPE_CHECKING:
    from drivetrain_plugins.conformance.report import CheckResult
    from drivetrain_plugins.contract.capabilities import Capabilities

Verdict = Literal["kept", "broken", "not proved", "not claimed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelResult:
    """What came of one level.

    Attributes:
        claim: what of the capabilities claims it; what they would have to say if they do not.
        verdict: "kept" with a check that passed and none that failed. "not proved" is claimed, but every check was
            skipped.
    """

    level: Level
    claimed: bool
    claim: str
    verdict: Verdict
    passed: int
    failed: int
    skipped: int


def claim_of(level: Level, capabilities: Capabilities | None) -> tuple[bool, str]:
    """Whether a level is claimed, and by what; every backend claims the core, even one that does not open."""
    if level == "core":
        return True, "every backend"
    if capabilities is None:
        return False, "the device did not open"
    match level:
        case "graphs":
            return capabilities.graphs, f"graphs is {capabilities.graphs}"
        case "parallel":
            return capabilities.max_ranks > 1, f"max_ranks is {capabilities.max_ranks}"
        case "quantized":
            formats = sorted(capabilities.quantizations)
            formats += [f"{name} pages" for name in capabilities.kv_dtypes if name.startswith("fp8")]
            return bool(formats), ", ".join(formats) or "no quantizations, no pages of eight bits"


def level_results(
    results: Iterable[CheckResult], capabilities: Capabilities | None, run: Collection[Level]
) -> tuple[LevelResult, ...]:
    """Every level, in order.

    Args:
        run: the levels whose checks were run.
    """
    found = list(results)
    made: list[LevelResult] = []
    for level in LEVELS:
        claimed, claim = claim_of(level, capabilities)
        outcomes = [result.outcome for result in found if result.level == level]
        passed, failed, skipped = (outcomes.count(outcome) for outcome in ("passed", "failed", "skipped"))
        verdict: Verdict
        if level not in run:
            verdict = "not run"
        elif failed:
            verdict = "broken"
        elif not claimed:
            verdict = "not claimed"
        else:
            verdict = "kept" if passed else "not proved"
        made.append(
            LevelResult(
                level=level,
                claimed=claimed,
                claim=claim,
                verdict=verdict,
                passed=passed,
                failed=failed,
                skipped=skipped,
            )
        )
    return tuple(made)
