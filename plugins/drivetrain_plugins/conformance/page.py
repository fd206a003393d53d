"""A conformance report as a page of Markdown that a vendor can publish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drivetrain_plugins.conformance.report import ConformanceReport


def as_markdown(report: ConformanceReport) -> str:
    """Versions and device, levels with their counts, failures and skips with their reasons, and what passed."""
    facts = [
        ("backend", f"`{report.backend}`"),
        ("device", report.device or "did not open"),
        ("contract", f"version {report.contract_version}"),
        *report.versions.items(),
        ("run", f"{report.started}, {report.seconds:.1f} s, seed {report.seed}"),
    ]
    levels = [
        (level.level, level.verdict, level.claim, str(level.passed), str(level.failed), str(level.skipped))
        for level in report.levels
    ]
    failed = [(f"`{result.name}`", result.level, result.reason) for result in report.failed]
    skipped = [(f"`{result.name}`", result.level, result.reason) for result in report.results if result.skipped]
    passed = [(f"`{result.name}`", result.level, f"{result.seconds:.2f}") for result in report.results if result.passed]
    parts = [
        f"# Conformance of {report.name or report.backend}",
        f"{report.verdict[0].upper()}{report.verdict[1:]}.",
        _table(("", ""), facts),
        "## Levels",
        _table(("level", "verdict", "claimed by", "passed", "failed", "skipped"), levels),
        "## Failed",
        _table(("check", "level", "reason"), failed) if failed else "Nothing.",
        "## Skipped",
        _table(("check", "level", "reason"), skipped) if skipped else "Nothing.",
        "## Passed",
        _table(("check", "level", "seconds"), passed) if passed else "Nothing.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that neither ends its cell nor its line."""
    return " ".join(text.replace("|", "\\|").split())
